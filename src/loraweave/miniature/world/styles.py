"""Styles: what a drawing looks like after a post-process that defines each of them.

A style is a function of the finished picture, so that any scene can be drawn in it and a judge
can measure how much of it a generated picture has. Lengths scale with the picture's size.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

Pixels = Float[np.ndarray, "H W 3"]
"""Colours in [0, 1]."""

_LUMA = np.array([0.299, 0.587, 0.114])
_PAPER, _INK = np.array([0.98, 0.965, 0.93]), np.array([0.20, 0.20, 0.24])
_DUSK = np.array([0.055, 0.035, 0.13])
_SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
_PIXEL_CELLS = 32  # a side
_PIXEL_LEVELS = 6  # of each colour


def _edges(pixels: Pixels) -> Float[np.ndarray, "H W"]:
    """Strength of the strongest edge among the colours, about 0 to 1."""
    sigma = pixels.shape[1] / 128 * 0.6
    found = [ndimage.gaussian_gradient_magnitude(pixels[..., c], sigma) for c in range(3)]
    return np.clip(np.max(found, axis=0) * sigma * 4.5, 0, 1)


def pencil(pixels: Pixels) -> Pixels:
    """Dark outlines on paper, with a little grey where the picture is dark."""
    tone = 0.30 * (1 - pixels @ _LUMA)
    ink = np.clip(1.25 * _edges(pixels) + tone, 0, 1)[..., None]
    return _PAPER * (1 - ink) + _INK * ink


def pixel_art(pixels: Pixels) -> Pixels:
    """Large square cells of few colours."""
    height, width, _ = pixels.shape
    cell = max(1, round(min(height, width) / _PIXEL_CELLS))
    rows, columns = np.arange(height) // cell, np.arange(width) // cell
    sums = np.zeros((rows[-1] + 1, columns[-1] + 1, 3))
    np.add.at(sums, (rows[:, None], columns[None, :]), pixels)
    count = np.outer(np.bincount(rows), np.bincount(columns))[..., None]
    levels = np.rint(sums / count * (_PIXEL_LEVELS - 1)) / (_PIXEL_LEVELS - 1)
    return levels[rows[:, None], columns[None, :]]


def sepia(pixels: Pixels) -> Pixels:
    """Brown monochrome, as an old photograph."""
    return np.clip(pixels @ _SEPIA.T, 0, 1) * np.array([0.98, 0.93, 0.82])


def neon(pixels: Pixels) -> Pixels:
    """Glowing outlines in the subjects' most vivid colours, on dusk."""
    vivid = pixels - pixels.min(2, keepdims=True)
    vivid = vivid / np.maximum(vivid.max(2, keepdims=True), 0.08)
    size = max(3, round(pixels.shape[1] / 128 * 5))
    bright = np.stack([ndimage.maximum_filter(vivid[..., c], size) for c in range(3)], 2)
    line = _edges(pixels)[..., None]
    glow = ndimage.gaussian_filter(line[..., 0], pixels.shape[1] / 128 * 1.6)[..., None]
    light = 0.35 + 0.65 * bright
    return np.clip(_DUSK + 0.22 * vivid * pixels + light * (line + 0.7 * glow), 0, 1)


STYLES: dict[str, Callable[[Pixels], Pixels]] = {
    "pencil": pencil, "pixelart": pixel_art, "sepia": sepia, "neon": neon,
}  # fmt: skip


def in_style(image: Image.Image, style: str) -> Image.Image:
    """A drawing in one of `STYLES`.

    Raises:
        ValueError: no such style.
    """
    if style not in STYLES:
        raise ValueError(f"no style {style!r}; there are: {', '.join(STYLES)}")
    pixels = np.asarray(image.convert("RGB"), float) / 255
    return Image.fromarray(np.rint(STYLES[style](pixels) * 255).astype(np.uint8))
