"""Eyes: a small convolutional network that names the class at every place of a picture.

There are two of them, of other weights and other training scenes: the judge's, and the finder for
methods that look at a picture while they draw it, so that none is judged by its own eyes.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor, nn

from .codec import pixels_of
from .half import load_half

SIDE = 128  # pixels a side at which it looks


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1), nn.GroupNorm(8, outputs), nn.SiLU(),
    )  # fmt: skip


class Segmenter(nn.Module):
    """Class scores at half resolution from pictures in [-1, 1].

    Args:
        classes: number of classes; class 0 is the background.
        channels: widths at a half, a quarter, an eighth and a sixteenth of the resolution.
    """

    def __init__(self, classes: int, channels: tuple[int, ...] = (16, 40, 96, 160)):
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 5, 2, 2)
        self.down = nn.ModuleList(
            [_block(channels[0], channels[0])]
            + [_block(a, b, 2) for a, b in itertools.pairwise(channels)]
        )
        self.up = nn.ModuleList([_block(b + a, a) for a, b in itertools.pairwise(channels)][::-1])
        self.head = nn.Conv2d(channels[0], classes, 1)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K H/2 W/2"]:
        """Scores before the softmax."""
        x, skips = self.stem(pixels), []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], 1))
        return self.head(x)

    @torch.no_grad()
    def classes(self, images: Sequence[Image.Image]) -> Int[np.ndarray, "B h w"]:
        """Class at each place; 0 is background. The shorter side has SIDE / 2 places."""
        return self(looked_at(images)).argmax(1).numpy()


def looked_at(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 h w"]:
    """Pictures of one size as networks of this size see them, in [-1, 1].

    The shorter side becomes SIDE; the longer one keeps the ratio, but for a rounding to what the
    network halves four times.
    """
    width, height = images[0].size
    scale = SIDE / min(width, height)
    size = round(width * scale / 16) * 16, round(height * scale / 16) * 16
    resized = [i.convert("RGB").resize(size, Image.Resampling.BICUBIC) for i in images]
    return pixels_of(resized)


def at_places(mask: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "h w"]:
    """A mask, or classes, of a square picture at the segmenter's places.

    Args:
        mask: its side is a multiple of SIDE.
    """
    stride = 2 * len(mask) // SIDE
    return mask[stride // 2 :: stride, stride // 2 :: stride]


def load_segmenter(path: Path, classes: int) -> Segmenter:
    """A trained segmenter in eval mode."""
    segmenter = Segmenter(classes)
    segmenter.load_state_dict(load_half(path))
    return segmenter.eval()
