"""From the options of `generate` and `compare` to a checked scene and a loaded model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import typer

from ..data_file import SUFFIXES
from ..errors import LoraError, SceneError
from ..precision import DType
from ..progress import silence_libraries
from ..scene import MINIATURE, PLAIN, SHIPPED, LoraRef, Scene, scene_from_dict
from .fields import changed

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

    @property
    def device(self) -> str | None:
        """The record's device if this machine has it; None for a new picture."""
        import torch

        found = self.record.get("device")
        there = {
            "cpu": True,
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        return found if isinstance(found, str) and there.get(found) else None

    def settings(self, method: str) -> dict[str, Any]:
        """The record's settings, if they are this method's."""
        return dict(self.record.get("settings") or {}) if method == self.method else {}


def make_job(
    prompt: str | None,
    scene_file: Path | None,
    picture: Path | None,
    base: str | None,
    loras: Mapping[str, LoraRef],
    *,
    lora_dir: Path | None = None,
    fields: Mapping[str, Any] | None = None,
    own_prompt: str | None = None,
    **given: Any,
) -> Job:
    """Check what was asked for, as far as that is possible without a model.

    Args:
        prompt, scene_file, picture: exactly one of them; a prompt that ends like a scene file's
            name is one.
        base: None for the miniature, or the one of the picture's record.
        loras: files given, and weights if they have any; they replace those of the scene.
        lora_dir: folder in which LoRAs without a file are found.
        fields: of the scene, by dotted key; see `fields.changed`.
        own_prompt: replaces the prompt of a scene file or picture.
        given: fields of the scene that replace its own; None for not given.

    Raises:
        SceneError, LoraError: the scene cannot be drawn.
    """
    if prompt is not None and prompt.lower().endswith(SUFFIXES):
        if scene_file is not None:
            raise SceneError(f"two scene files, {prompt} and {scene_file}; give one of them")
        prompt, scene_file = None, Path(prompt)
    if (scene_file, picture) == (None, None) and prompt is None:
        prompt, own_prompt = own_prompt, None
    if [prompt, scene_file, picture].count(None) != 2 or (prompt and own_prompt):
        raise SceneError(
            "give exactly one of PROMPT, a scene file and --from PICTURE; --prompt TEXT replaces "
            "the prompt of the other two"
        )
    changes = {name: value for name, value in given.items() if value is not None}
    if own_prompt is not None:
        changes["prompt"] = own_prompt
    record: dict[str, Any] = {}
    if picture is not None:
        from ..output import read_png_record

        record = read_png_record(picture)
        try:
            scene = scene_from_dict(record["scene"])
        except SceneError as error:
            raise SceneError(f"the record in {picture} is no scene: {error}") from None
        scene = _without_lost_files(scene, lora_dir)
    elif scene_file is not None:
        scene = Scene.from_file(scene_file)
    else:
        scene = Scene(**{"prompt": prompt, "seed": DEFAULT_SEED, **changes})
    scene = scene.replace(loras={**scene.loras, **_given_files(scene, loras)})
    scene = changed(scene, fields or {}, changes)
    if base is None:
        base = record.get("base", {}).get("name", MINIATURE)
        if base != MINIATURE:
            raise SceneError(f"{picture} was made with the base model {base!r}; give its folder or "
                             "file with --base")  # fmt: skip
    if base == MINIATURE:
        scene = _shipped(scene, lora_dir)
    if lora_dir is not None:
        from ..loading import with_folder_loras

        scene = with_folder_loras(scene, lora_dir)
    for name in _names(scene):
        if name not in scene.loras or scene.loras[name].path is None:
            raise LoraError(f"the prompt uses the LoRA {name!r}, but no file is given for it; add "
                            f"--lora {name}=path/to/{name}.safetensors, or --lora-dir with the "
                            f"folder that it is in{_ships(base)}")  # fmt: skip
    scene.check_loras()
    return Job(scene, base, record)


def _given_files(scene: Scene, loras: Mapping[str, LoraRef]) -> dict[str, LoraRef]:
    """The scene's LoRAs with what was given for them; where and when they act stays."""
    found = {}
    for name, own in loras.items():
        given = {field: getattr(own, field) for field in own.model_fields_set}
        found[name] = scene.loras[name].model_copy(update=given) if name in scene.loras else own
    return found


def _without_lost_files(scene: Scene, lora_dir: Path | None) -> Scene:
    """The scene of a record without the paths that are gone, if they can be looked for.

    What is found instead has to have the recorded hash, or `differences` says that it has not.
    """
    if lora_dir is None:
        return scene
    kept = dict(scene.loras)
    for name, lora in scene.loras.items():
        ships = str(lora.path).startswith(SHIPPED) or str(lora.path) == PLAIN
        if lora.path and not ships and not lora.path.expanduser().exists():
            kept[name] = lora.model_copy(update={"path": None})
    return scene.replace(loras=kept)


def _shipped(scene: Scene, lora_dir: Path | None) -> Scene:
    """The scene with the LoRAs that ship with the miniature, where it has no file yet."""
    from ..lora.folder import list_loras
    from ..miniature.shipped import lora_names

    ships = set(lora_names())
    found = {}
    for name in _names(scene):
        own = scene.loras.get(name, LoraRef())
        if name not in ships or own.path is not None:
            continue
        if lora_dir is not None and name in list_loras(lora_dir):
            raise LoraError(f"the LoRA {name!r} ships with the miniature and is in {lora_dir} too; "
                            f"say which: --lora {name}={SHIPPED}{name} or "
                            f"--lora {name}=path/to/file.safetensors")  # fmt: skip
        found[name] = own.model_copy(update={"path": Path(f"{SHIPPED}{name}")})
    return scene.replace(loras={**scene.loras, **found}) if found else scene


def _ships(base: str) -> str:
    from ..miniature.shipped import lora_names

    names = ", ".join(lora_names())
    return f", or use one that ships: {names}" if base == MINIATURE and names else ""


def _names(scene: Scene) -> list[str]:
    return [words.name for words in (*scene.parsed.concepts, *scene.parsed.styles)]


def check_device(device: str) -> None:
    """Raise typer.BadParameter for a device that this machine does not have."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter without CUDA
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"--device {device!r}: {reason}") from None


def load_model(base: str, dtype: DType, device: str | None) -> Any:
    """The base model, loaded without the libraries' chatter.

    Raises:
        ModelNotFound: see `loraweave.load`.
    """
    import torch

    from ..loading import load

    silence_libraries()
    if device is not None:
        check_device(device)
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
    if caveat := record.get("caveat"):
        found.append(f"the picture cannot be made again exactly: {caveat}")
    base = record.get("base", {})
    if record.get("scene", {}).get("scheduler") != info["scene"]["scheduler"]:  # as was asked
        base = {key: value for key, value in base.items() if not key.startswith("scheduler")}
    parts = {
        "sha256": "base model",
        "text_encoder": "text encoder",
        "vae": "VAE",
        "scheduler": "scheduler",
        "scheduler_sha256": "scheduler's settings",
    }
    for key, words in parts.items():
        if key in base and base[key] != info["base"][key]:
            verb = "are" if words.endswith("s") else "is"
            found.append(f"the {words} {verb} not what the picture was made with")
    loras = record.get("loras", {})
    found += [
        f"the LoRA {name!r} is not the file that the picture was made with"
        for name, lora in info["loras"].items()
        if name in loras and loras[name].get("sha256") != lora["sha256"]
    ]
    found += _other_conditions(record.get("conditions", []), info["conditions"])
    for key in ("dtype", "device"):
        if (before := record.get(key, info[key])) != info[key]:
            found.append(f"the picture was made with {key} {before}, this is {info[key]}")
    for library, number in info["versions"].items():
        old = record.get("versions", {}).get(library)
        if old != number:
            found.append(f"the picture was made with {library} {old}, this is {number}")
    return found


def _other_conditions(
    before: Sequence[Mapping[str, str]], now: Sequence[Mapping[str, str]]
) -> list[str]:
    """Why the pictures that a scene is drawn after are not what they were, in words."""
    if len(before) != len(now):
        return [f"the picture was made with {len(before)} conditions, this with {len(now)}"]
    return [
        f"the {part} of condition {n + 1}, {own[part]}, is not what the picture was made with"
        for n, (old, own) in enumerate(zip(before, now))
        for part in ("adapter", "image")
        if old.get(f"{part}_sha256") != own[f"{part}_sha256"]
    ]
