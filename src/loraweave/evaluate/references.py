"""Pictures of each concept by its LoRA alone, which compositions are compared with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from ..api import compose
from ..errors import SceneError
from ..files import write_atomically
from ..loading import base_identity, with_shipped_loras
from ..lora.file import read_lora
from ..progress import track
from ..prompt import escaped
from ..scene import Scene

COUNT = 50
"""As many for each concept as in CLoRA's evaluation."""
NOTE = "references.json"
"""Says how the pictures beside it were made."""


def own_scene(scene: Scene, name: str) -> Scene:
    """One concept's part of a scene: `a [trigger noun](name)`, with its LoRA and its weights.

    Raises:
        SceneError: no such concept.
    """
    found = [w for w in scene.parsed.concepts if w.name == name]
    if not found or name not in {concept.name for concept in scene.concepts}:
        raise SceneError(f"{name!r} is no concept of the scene")
    (words,) = found
    # A bar after nothing would say that there is no trigger, in the LoRA's file either.
    trigger = f"{escaped(words.trigger)}|" if words.trigger or words.bar else ""
    weights = [words.weight, words.text_encoder_weight]
    tail = "".join(f":{weight:g}" for weight in weights if weight is not None)
    own = scene.negative_prompts.get(name)
    return Scene(
        prompt=f"a [{trigger}{escaped(words.noun)}]({name}{tail})",
        negative_prompt=scene.negative_prompt,
        negative_prompts={} if own is None else {name: own},
        loras={name: scene.loras[name]} if name in scene.loras else {},
        num_inference_steps=scene.num_inference_steps, guidance_scale=scene.guidance_scale,
    )  # fmt: skip


def draw_references(
    pipe: StableDiffusionPipeline, scene: Scene, folder: Path, count: int = COUNT,
    allow_pickle: bool = False, allow_partial: bool = False,
) -> int:  # fmt: skip
    """Draw `folder/NAME/000.png` and so on, with seeds from 0; those that are there stay.

    Args:
        pipe: the base model.
        scene: whose concepts are drawn, each alone, square and of the model's own size.
        folder: where they go.
        count: of each concept.
        allow_pickle, allow_partial: see `compose`.

    Returns:
        How many were drawn.

    Raises:
        SceneError: no concepts, or pictures that were made otherwise; see `compose`, too.
        LoraError: see `compose`.
    """
    if not scene.concepts:
        raise SceneError("the scene has no concepts to draw references of")
    jobs, base = [], base_identity(pipe)
    for concept in scene.concepts:
        own = own_scene(scene, concept.name)
        place = _folder_of(folder, concept.name)
        _claim(place, _description(base, own, concept.name, allow_pickle))
        paths = [(seed, place / f"{seed:03d}.png") for seed in range(count)]
        jobs += [(own, seed, path) for seed, path in paths if not path.is_file()]
    for own, seed, path in track(jobs, "references", total=len(jobs)):
        output = compose(
            pipe, own.replace(seed=seed), method="merge", progress=False, allow_pickle=allow_pickle,
            allow_partial=allow_partial, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        output.save(path)
    return len(jobs)


def _description(base: dict[str, str], own: Scene, name: str, allow_pickle: bool) -> dict[str, Any]:
    """All that a concept's references depend on, but the seed."""
    lora = with_shipped_loras(own).loras.get(name)
    text = own.model_dump(mode="json", exclude={"seed", "loras"})
    weights = None if lora is None else lora.model_dump(mode="json", exclude={"path"})
    path = None if lora is None else lora.path
    there = path is not None and path.exists()
    sha256 = read_lora(path, allow_pickle).sha256 if path is not None and there else None
    return {"scene": text, "base": base, "lora": weights, "sha256": sha256}


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Note down how a folder's pictures are made; raise if it has others."""
    note = folder / NOTE
    text = f"{json.dumps(description, indent=1, sort_keys=True)}\n"
    if note.is_file():
        if note.read_text() != text:
            raise SceneError(
                f"the pictures in {folder} are of another LoRA, base or prompt, or have other "
                "steps; see its references.json, and give another folder or move them away"
            )
    elif any(folder.glob("*.png")):
        raise SceneError(f"the pictures in {folder} were not made here; give another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(note, text.encode())


def read_references(folder: Path, names: Sequence[str]) -> dict[str, list[Image.Image]]:
    """The pictures in `folder/NAME`, by concept.

    Raises:
        SceneError: none of a concept, one that is no picture, or a gap among those that
            `draw_references` has numbered.
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
        numbers = {int(path.stem) for path in paths if path.stem.isdecimal()}
        gone = set(range(max(numbers, default=0))) - numbers
        if gone and (own / NOTE).is_file():
            raise SceneError(
                f"the reference picture {own / f'{min(gone):03d}.png'} is missing; `loraweave "
                "references` draws it again"
            )
        found[name] = [read_picture(path) for path in paths]
    return found


def read_picture(path: Path) -> Image.Image:
    """An RGB picture.

    Raises:
        SceneError: it cannot be read to its end.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SceneError(f"cannot read the picture {path}: {error}") from None


def _folder_of(folder: Path, name: str) -> Path:
    if Path(name).name != name or name == "..":
        raise SceneError(
            f"the concept {name!r} cannot have a folder of its name; call it otherwise"
        )
    return folder / name
