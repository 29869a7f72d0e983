"""From the options of `generate` and `compare` to a checked scene and a loaded model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import typer

from ..errors import LoraError, SceneError
from ..progress import silence_libraries
from ..scene import MINIATURE, SHIPPED, LoraRef, Scene, scene_from_dict
from .options import DType

DEFAULT_SEED = 7


@dataclass(frozen=True)
class Job:
    """What is to be drawn, before a model is loaded.

    Attributes:
        scene: with a file for every LoRA of the prompt.
        base: what `loraweave.load` takes.
        record: of the picture that is drawn again; empty for a new one.
    """

    scene: Scene
    base: str
    record: Mapping[str, Any]

    @property
    def method(self) -> str | None:
        """The record's method."""
        return self.record.get("method")

    @property
    def dtype(self) -> DType:
        """The record's arithmetic; float32 for a new picture."""
        found = self.record.get("dtype")
        return cast(DType, found) if found in get_args(DType) else "float32"

    def settings(self, method: str) -> dict[str, Any]:
        """The record's settings, if they are this method's."""
        return dict(self.record.get("settings") or {}) if method == self.method else {}


def make_job(
    prompt: str | None,
    scene_file: Path | None,
    picture: Path | None,
    base: str | None,
    loras: Mapping[str, LoraRef],
    **given: Any,
) -> Job:
    """Check what was asked for, as far as that is possible without a model.

    Args:
        prompt, scene_file, picture: exactly one of them.
        base: None for the miniature, or the one of the picture's record.
        loras: files given; they replace those of the scene.
        given: fields of the scene that replace its own; None for not given.

    Raises:
        SceneError, LoraError: the scene cannot be drawn.
    """
    if [prompt, scene_file, picture].count(None) != 2:
        raise SceneError("give exactly one of PROMPT, --scene FILE and --from PICTURE")
    changes = {name: value for name, value in given.items() if value is not None}
    record: dict[str, Any] = {}
    if picture is not None:
        from ..output import read_png_record

        record = read_png_record(picture)
        scene = scene_from_dict(record["scene"]).replace(**changes)
    elif scene_file is not None:
        scene = Scene.from_file(scene_file).replace(**changes)
    else:
        scene = Scene(**{"prompt": prompt, "seed": DEFAULT_SEED, **changes})
    if base is None:
        base = record.get("base", {}).get("name", MINIATURE)
        if base != MINIATURE:
            raise SceneError(f"{picture} was made with the base model {base!r}; give its folder or "
                             "file with --base")  # fmt: skip
    files = {**scene.loras, **loras}
    if base == MINIATURE:
        files |= _shipped(scene, files)
    for name in _names(scene):
        if name not in files or files[name].path is None:
            raise LoraError(f"the prompt uses the LoRA {name!r}, but no file is given for it; add "
                            f"--lora {name}=path/to/{name}.safetensors{_ships(base)}")  # fmt: skip
    scene = scene.replace(loras=files)
    scene.check_loras()
    return Job(scene, base, record)


def _shipped(scene: Scene, files: Mapping[str, LoraRef]) -> dict[str, LoraRef]:
    """LoRAs of the prompt that have no file yet and ship with the miniature."""
    from ..miniature.shipped import lora_names

    ships = set(lora_names())
    lacking = [n for n in _names(scene) if n in ships and not (n in files and files[n].path)]
    return {
        name: LoraRef(
            path=Path(f"{SHIPPED}{name}"), weight=files[name].weight if name in files else 1.0
        )
        for name in lacking
    }


def _ships(base: str) -> str:
    from ..miniature.shipped import lora_names

    names = ", ".join(lora_names())
    return f", or use one that ships: {names}" if base == MINIATURE and names else ""


def _names(scene: Scene) -> list[str]:
    return [words.name for words in (*scene.parsed.concepts, *scene.parsed.styles)]


def load_model(base: str, dtype: DType, device: str | None) -> Any:
    """The base model, loaded without the libraries' chatter.

    Raises:
        ModelNotFound: see `loraweave.load`.
    """
    import torch

    from ..loading import load

    silence_libraries()
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch raises the latter without CUDA
            reason = str(error).splitlines()[0]
            raise typer.BadParameter(f"--device {device!r}: {reason}") from None
    return load(base, dtype=getattr(torch, dtype), device=device)


def judge_for(job: Job) -> Callable[[Any], Any] | None:
    """Picture -> verdict, where the judge knows the base model and all concepts; else None."""
    from ..miniature.concepts import CONCEPTS

    names = [concept.name for concept in job.scene.concepts]
    if job.base != MINIATURE or not names or not set(names) <= set(CONCEPTS):
        return None
    from ..miniature.judge import load_judge

    judge = load_judge()
    return lambda image: judge.examine(image, names)


def differences(record: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    """Why a picture drawn again may come out differently, in words."""
    found = []
    if record.get("base", {}).get("sha256") != info["base"]["sha256"]:
        found.append("the base model is not the one that the picture was made with")
    loras = record.get("loras", {})
    found += [
        f"the LoRA {name!r} is not the file that the picture was made with"
        for name, lora in info["loras"].items()
        if name in loras and loras[name].get("sha256") != lora["sha256"]
    ]
    for key in ("dtype", "device"):
        if (before := record.get(key, info[key])) != info[key]:
            found.append(f"the picture was made with {key} {before}, this is {info[key]}")
    for library, number in info["versions"].items():
        old = record.get("versions", {}).get(library)
        if old != number:
            found.append(f"the picture was made with {library} {old}, this is {number}")
    return found
