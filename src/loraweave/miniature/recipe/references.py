"""Last stage: what the papers' scores compare compositions with, each LoRA's own pictures."""

from collections.abc import Mapping
from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from ...evaluate.encoders import Clip, Dino
from ...evaluate.similarity import instances_of
from ...progress import track
from ..checks.pictures import drawn
from ..concepts import KNOWN
from ..judge import Judge
from ..prompts import own_prompt
from ..scoring import Looking, references_version

COUNT = 50
"""As many for each concept as in CLoRA's evaluation."""
SEED = 6_000_000
"""Of the first picture's noise; no other stage uses seeds from here on."""


def write_references(
    weights: Path, pipe: StableDiffusionPipeline, judge: Judge, count: int = COUNT
) -> None:
    """Draw every concept by its LoRA alone, and keep the means of the pictures' features.

    Args:
        weights: the folder with everything else, where the file goes.
        pipe: the base, as it ships.
        judge: that finds the instances.
        count: of pictures of each concept.
    """
    clip, dino = Clip(weights / "clip"), Dino(weights / "dino")
    loras = {path.stem: path for path in sorted((weights / "loras").glob("*.safetensors"))}
    own = {name: path for name, path in loras.items() if name in KNOWN}
    means: dict[str, Tensor] = {}
    for name in track(own, "miniature: references", total=len(own)):
        means |= _means(pipe, judge, clip, dino, name, own, count)
    made = {"count": str(count), "version": references_version(weights, list(own))}
    save_file(means, weights / "references.safetensors", made)


def _means(
    pipe: StableDiffusionPipeline, judge: Judge, clip: Clip, dino: Dino, name: str,
    loras: Mapping[str, Path], count: int,
) -> dict[str, Tensor]:  # fmt: skip
    path, kind = loras[name], KNOWN[name].kind
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    try:
        images = drawn(pipe, [own_prompt(name, None)] * count, f"{name} alone", first_seed=SEED)
    finally:
        pipe.unload_lora_weights()
    looking = Looking(judge, {kind: 1})
    cut = [found[0].image for image in images if (found := instances_of(image, kind, looking))]
    found = {"clip_i": clip.images(images), "dino": dino.images(images)}
    if cut:  # else the scorer will say that there is none
        found |= {"instance_clip_i": clip.images(cut), "instance_dino": dino.images(cut)}
    return {f"{score}.{name}": one.mean(0, keepdim=True) for score, one in found.items()}
