"""What each LoRA reaches alone."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image

from ..judge import Judge
from ..prompts import own_prompt
from ..world import BACKGROUNDS
from .pictures import CHECK_SEED, drawn


def right_alone(
    pipe: StableDiffusionPipeline, judge: Judge, loras: Mapping[str, Path], count: int
) -> dict[str, float]:
    """By concept the share of pictures of its LoRA alone in which it is right."""
    rates = {}
    for name, path in loras.items():
        images = drawn_alone(pipe, name, path, count)
        rates[name] = round(float(np.mean([judge.examine(i, [name]).success for i in images])), 4)
    return rates


def drawn_alone(
    pipe: StableDiffusionPipeline, name: str, path: Path, count: int, first_seed: int = CHECK_SEED
) -> list[Image.Image]:
    """`count` pictures of a concept by its LoRA, loaded by diffusers itself, in all places."""
    prompts = [own_prompt(name, BACKGROUNDS[n % len(BACKGROUNDS)]) for n in range(count)]
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    try:
        return drawn(pipe, prompts, f"{name} alone", first_seed=first_seed)
    finally:
        pipe.unload_lora_weights()
