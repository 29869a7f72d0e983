"""Eyes: a small convolutional network that names the class at every place of a picture.

There are two of them, of other weights and other training scenes: the judge's, and the finder for
methods that look at a picture while they draw it, so that none is judged by its own eyes.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from .codec import pixels_of
from .half import load_half

SIDE = 128  # pixels a side at which it looks
NEAR, SMALL_PIECE = 3.0, 0.6  # cells between a piece and its whole, and how large it may be


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
    def classes(self, images: Sequence[Image.Image]) -> Int[np.ndarray, "B s s"]:
        """Class at each place, s = SIDE / 2; 0 is background."""
        return self(looked_at(images)).argmax(1).numpy()


def looked_at(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 SIDE SIDE"]:
    """Pictures of any size as networks of this size see them, in [-1, 1]."""
    resized = [i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for i in images]
    return pixels_of(resized)


def components(where: Bool[np.ndarray, "h w"], least: float) -> list[Bool[np.ndarray, "h w"]]:
    """Connected parts of a mask that cover at least `least` places, from left to right."""
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(where))
    parts = [labels == number for number in range(1, count + 1)]
    return _left_to_right([part for part in parts if part.sum() >= least])


def _left_to_right(parts: list[np.ndarray]) -> list[np.ndarray]:
    return sorted(parts, key=lambda part: int(np.nonzero(part.any(0))[0][0]))


def joined_components(
    where: Bool[np.ndarray, "h w"], least: float
) -> list[Bool[np.ndarray, "h w"]]:
    """The same, but a small piece close to a larger one is part of it.

    A subject whose neck or stripe the segmenter takes for something else is still one subject.
    """
    whole: list[np.ndarray] = []
    for piece in sorted(components(where, 1), key=np.sum, reverse=True):
        part = next((part for part in whole if _belongs(piece, part)), None)
        if part is None:
            whole.append(piece)
        else:
            part |= piece
    return _left_to_right([part for part in whole if part.sum() >= least])


def _belongs(piece: np.ndarray, part: np.ndarray) -> bool:
    if piece.sum() >= SMALL_PIECE * part.sum():
        return False
    away = cast(np.ndarray, ndimage.distance_transform_edt(~piece))
    return bool((away[part] <= NEAR).any())


def load_segmenter(path: Path, classes: int) -> Segmenter:
    """A trained segmenter in eval mode."""
    segmenter = Segmenter(classes)
    segmenter.load_state_dict(load_half(path))
    return segmenter.eval()
