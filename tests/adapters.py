"""Random T2I-Adapters for the tiny base, and pictures for them."""

from pathlib import Path

import numpy as np
import torch
from diffusers import T2IAdapter
from PIL import Image


def random_adapter(folder: Path, reads: int = 1, seed: int = 0, **changes) -> Path:
    """Write an adapter whose features are large enough to change a picture visibly.

    Args:
        folder: a new one.
        reads: channels of the pictures.
        seed: of the weights.
        changes: of its configuration, which otherwise fits the tiny base.
    """
    given = {"channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 2} | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = T2IAdapter(in_channels=reads, **given)
        for parameter in adapter.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    adapter.save_pretrained(folder)
    return folder


def random_picture(path: Path, size=(32, 32), mode: str = "L", seed: int = 0) -> Path:
    """Write a picture of random pixels."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path
