"""Pictures of each concept by its LoRA alone, which compositions are compared with."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from ..api import compose
from ..errors import SceneError
from ..progress import track
from ..prompt import escaped
from ..scene import Scene

COUNT = 50
"""As many for each concept as in CLoRA's evaluation."""


def own_scene(scene: Scene, name: str) -> Scene:
    """One concept's part of a scene: `a [trigger|noun](name)`, with its LoRA and its weights.

    Raises:
        SceneError: no such concept with a LoRA.
    """
    (words,) = [w for w in scene.parsed.concepts if w.name == name] or [None]
    if words is None or name not in {concept.name for concept in scene.concepts}:
        raise SceneError(f"{name!r} is no concept of the scene")
    weights = [words.weight, words.text_encoder_weight]
    tail = "".join(f":{weight:g}" for weight in weights if weight is not None)
    prompt = f"a [{escaped(words.trigger)}|{escaped(words.noun)}]({name}{tail})"
    loras = {name: scene.loras[name]} if name in scene.loras else {}
    return Scene(
        prompt=prompt, negative_prompt=scene.negative_prompt, loras=loras,
        num_inference_steps=scene.num_inference_steps, guidance_scale=scene.guidance_scale,
    )  # fmt: skip


def draw_references(
    pipe: StableDiffusionPipeline, scene: Scene, folder: Path, count: int = COUNT,
    allow_pickle: bool = False,
) -> int:  # fmt: skip
    """Draw `folder/NAME/000.png` and so on, with seeds from 0; those that are there stay.

    Args:
        pipe: the base model.
        scene: whose concepts are drawn, each alone, square and of the model's own size.
        folder: where they go.
        count: of each concept.
        allow_pickle: read LoRA files that are pickles too.

    Returns:
        How many were drawn.

    Raises:
        SceneError, LoraError: see `compose`.
    """
    jobs = [
        (own_scene(scene, concept.name), seed, path)
        for concept in scene.concepts
        for seed in range(count)
        if not (path := _folder_of(folder, concept.name) / f"{seed:03d}.png").is_file()
    ]
    for own, seed, path in track(jobs, "references", total=len(jobs)):
        output = compose(
            pipe, own.replace(seed=seed), method="merge", progress=False, allow_pickle=allow_pickle,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        output.save(path)
    return len(jobs)


def read_references(folder: Path, names: Sequence[str]) -> dict[str, list[Image.Image]]:
    """The pictures in `folder/NAME`, by concept.

    Raises:
        SceneError: none of a concept, or one that is no picture.
    """
    found = {}
    for name in names:
        own = _folder_of(folder, name)
        paths = sorted(path for path in own.glob("*.png") if path.is_file())
        if not paths:
            raise SceneError(
                f"no reference picture of {name!r} in {own}; draw some with `loraweave "
                "references`, or put PNGs there"
            )
        found[name] = [_read(path) for path in paths]
    return found


def _folder_of(folder: Path, name: str) -> Path:
    if Path(name).name != name or name == "..":
        raise SceneError(
            f"the concept {name!r} cannot have a folder of its name; call it otherwise"
        )
    return folder / name


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SceneError(f"cannot read the reference picture {path}: {error}") from None
