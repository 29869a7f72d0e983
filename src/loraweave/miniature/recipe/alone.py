"""What each LoRA draws alone: what its concept looks like to whoever asks for it.

A LoRA does not draw quite what it was taught: shades drift, dots run together. So half of its
pictures join the drawings as references (`calibrate.py`). The other half is kept for measuring, so
that no picture is compared with itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from ...progress import track
from ..checks.loras import drawn_alone
from ..codec import images_of, pixels_of
from ..concepts import KNOWN
from .run import Run

SEED = 50_000  # of the first noise
Pictures = Mapping[str, Sequence[Image.Image]]


def alone_pictures(
    run: Run, pipe: StableDiffusionPipeline, loras: Mapping[str, Path], count: int
) -> dict[str, list[Image.Image]]:
    """`count` pictures of every individual by its LoRA alone, kept in the folder `alone`."""
    folder = run.folder / "alone"
    folder.mkdir(exist_ok=True)
    individuals = [name for name in loras if name in KNOWN]
    pictures = {}
    for name in track(individuals, "miniature: alone", total=len(individuals)):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            drawn = pixels_of(drawn_alone(pipe, name, loras[name], count, SEED))
            partial = path.with_suffix(".tmp")
            save_file({"pixels": ((drawn + 1) * 127.5).round().byte().contiguous()}, partial)
            partial.replace(path)
        pictures[name] = images_of(load_file(path)["pixels"].float() / 127.5 - 1)
    return pictures


def halves(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[Image.Image]]:
    """What serves as reference, and what is measured."""
    return list(pictures[::2]), list(pictures[1::2])
