"""What a method draws on the miniature, coarse enough to compare across machines."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from ..api import compose
from .judged import own_settings
from .prompts import marked_prompt

NAMES = ("blackcat", "golddog")
BLOCKS = 8  # a side


def golden_blocks(
    pipe: StableDiffusionPipeline, method: str, loras: Mapping[str, str | Path]
) -> np.ndarray:
    """Mean colours (8, 8, 3) in [0, 1] of a picture drawn in 8 steps with seed 1."""
    settings = own_settings(method, {"segmenter": "miniature"} if method == "omg" else None)
    image = compose(
        pipe, marked_prompt(NAMES, "meadow"), method=method,
        loras={name: loras[name] for name in NAMES}, settings=settings,
        num_inference_steps=8, progress=False, output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images[0]  # fmt: skip
    side = image.shape[0] // BLOCKS
    return image.reshape(BLOCKS, side, BLOCKS, side, 3).mean((1, 3))
