"""Which of the world's styles a picture is in: a small convolutional network."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ModelNotFound
from .codec import pixels_of
from .segmenter import SIDE
from .shipped import WEIGHTS
from .world.styles import STYLES

PLAIN = "plain"
NAMES = (PLAIN, *STYLES)


class StyleReader(nn.Module):
    """Scores of `NAMES` from pictures in [-1, 1]."""

    def __init__(self, channels: tuple[int, ...] = (16, 24, 32, 48)):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *channels), channels):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], len(NAMES))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Scores before the softmax."""
        return self.head(self.body(pixels).mean((2, 3)))

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image]) -> list[str]:
        """The style of each picture, or `plain`."""
        resized = [i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for i in images]
        return [NAMES[k] for k in self(pixels_of(resized)).argmax(1).tolist()]


@cache
def load_style_reader(path: Path = WEIGHTS / "judge" / "style.safetensors") -> StyleReader:
    """The style reader that ships with the miniature.

    Raises:
        ModelNotFound: this installation came without it.
    """
    if not path.is_file():
        raise ModelNotFound(f"no style reader at {path}; make it with `loraweave miniature train`")
    reader = StyleReader()
    reader.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return reader.eval()
