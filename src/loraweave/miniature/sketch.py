"""Sketches of the miniature's scenes, and the adapter that draws from them."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from .shipped import WEIGHTS

NAME = "sketch"
ADAPTER = WEIGHTS / NAME
STROKE = 1
"""Pixels on either side of an outline, at 128 pixels."""


def sketch_of(masks: Bool[np.ndarray, "N h w"]) -> Image.Image:
    """Outlines of subjects, white on black, as a grey picture of the masks' size."""
    lines = np.zeros(masks.shape[1:], dtype=bool)
    stroke = max(1, round(STROKE * min(lines.shape) / 128))
    for mask in masks:
        lines |= _grown(mask, stroke) & _grown(~mask, stroke)
    return Image.fromarray(lines.astype(np.uint8) * 255)


def _grown(mask: Bool[np.ndarray, "h w"], stroke: int) -> Bool[np.ndarray, "h w"]:
    """With the pixels at most `stroke` away, in rows and columns."""
    padded = np.pad(mask, stroke, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * stroke + 1,) * 2)
    return np.asarray(windows.any((2, 3)))


def adapter_folder() -> Path | None:
    """Where the sketch adapter that ships is; None in an installation without it."""
    return ADAPTER if (ADAPTER / "config.json").is_file() else None
