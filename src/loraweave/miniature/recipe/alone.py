"""What each LoRA draws alone: what its concept looks like to whoever asks for it.

A LoRA does not draw quite what it was taught: shades drift, dots run together. So half of its
pictures join the drawings as references (`calibrate.py`). The other half is kept for measuring, so
that no picture is compared with itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from ...progress import track
from ..checks.loras import drawn_alone
from ..concepts import KNOWN
from .run import Run

SEED = 50_000  # of the first noise
Pictures = Mapping[str, Sequence[Image.Image]]


def alone_pictures(
    run: Run, pipe: StableDiffusionPipeline, loras: Mapping[str, Path], count: int
) -> dict[str, list[Image.Image]]:
    """`count` pictures of every individual by its LoRA alone, those of each in a checkpoint."""
    individuals = [name for name in loras if name in KNOWN]
    pictures = {}
    for name in track(individuals, "miniature: alone", total=len(individuals)):
        stage = f"alone_{name}"
        if (kept := run.load(stage)) is None:
            drawn = drawn_alone(pipe, name, loras[name], count, SEED)
            kept = {"pixels": torch.from_numpy(np.stack([np.asarray(one) for one in drawn]))}
            run.save(stage, kept)
        pictures[name] = [Image.fromarray(one) for one in kept["pixels"].numpy()]
    return pictures


def halves(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[Image.Image]]:
    """What serves as reference, and what is measured."""
    return list(pictures[::2]), list(pictures[1::2])
