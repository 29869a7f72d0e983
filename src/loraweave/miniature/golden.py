"""What a method draws on the miniature, coarse enough to compare across machines."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from ..api import compose
from ..detect.registry import SEGMENTERS, Entry
from .finder import Finder, load_finder
from .judged import own_settings
from .prompts import marked_prompt

NAMES = ("blackcat", "golddog")
BLOCKS = 8  # a side
OWN = "of this miniature"
"""Name of the segmenter of these pictures, while they are drawn."""


def golden_blocks(
    pipe: StableDiffusionPipeline, method: str, loras: Mapping[str, str | Path],
    finder: Finder | None = None,
) -> np.ndarray:  # fmt: skip
    """Mean colours (8, 8, 3) in [0, 1] of a picture drawn in 8 steps with seed 1.

    Args:
        pipe, loras: of the miniature.
        method: that draws.
        finder: of the same miniature; that which ships if None.
    """
    settings = own_settings(method, {"segmenter": OWN} if method == "omg" else None)
    SEGMENTERS[OWN] = Entry(lambda: finder or load_finder())
    try:
        image = compose(
            pipe, marked_prompt(NAMES, "meadow"), method=method,
            loras={name: loras[name] for name in NAMES}, settings=settings,
            num_inference_steps=8, progress=False, output_type="np",
            generator=torch.Generator().manual_seed(1),
        ).images[0]  # fmt: skip
    finally:
        del SEGMENTERS[OWN]
    side = image.shape[0] // BLOCKS
    return image.reshape(BLOCKS, side, BLOCKS, side, 3).mean((1, 3))
