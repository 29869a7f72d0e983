"""Which of the world's styles a picture is in: a small convolutional network."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ..errors import ModelNotFound
from .half import load_half
from .segmenter import looked_at
from .shipped import WEIGHTS
from .world.styles import STYLES, in_style

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
        return [NAMES[k] for k in self(looked_at(images)).argmax(1).tolist()]


def styled(image: Image.Image, name: str) -> Image.Image:
    """A drawing in one of `NAMES`; as it is if that is `plain`."""
    return image if name == PLAIN else in_style(image, name)


@cache
def load_style_reader(path: Path = WEIGHTS / "judge" / "style.safetensors") -> StyleReader:
    """The style reader that ships with the miniature.

    Raises:
        ModelNotFound: this installation came without it.
    """
    if not path.is_file():
        raise ModelNotFound(f"no style reader at {path}; make it with `loraweave miniature train`")
    reader = StyleReader()
    reader.load_state_dict(load_half(path))
    return reader.eval()
