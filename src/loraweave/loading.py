"""Base models from local folders and files; nothing is ever downloaded."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPImageProcessor

from .backbone.sd1 import base_name
from .errors import ModelNotFound
from .lora.folder import find_lora
from .scene import MINIATURE, SHIPPED, LoraRef, Scene


def default_device() -> str:
    """CUDA if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load(
    base: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> StableDiffusionPipeline:
    """A base model as a stock `StableDiffusionPipeline`.

    Args:
        base: "miniature" for the small model that ships with the package, a diffusers folder, or
            a single-file checkpoint (.safetensors) of Stable Diffusion 1.x. A single file needs
            the model's configuration beside it: the folder `<file without suffix>/` with the
            diffusers configuration files, because nothing is downloaded.
        dtype: of the weights; float32 if not given, for the miniature too (it ships as fp16).
        device: where to put it; CUDA if there is one, else the CPU.

    Raises:
        ModelNotFound: there is no such model, or it is not a Stable Diffusion 1.x.
    """
    device = device or default_device()
    dtype = dtype or torch.float32
    if str(base) == MINIATURE:
        from .miniature.shipped import base_folder

        base = base_folder()
    path = Path(base)
    if path.is_dir():
        pipe = _from_folder(path, dtype)
    elif path.is_file():
        pipe = _from_file(path, dtype)
    else:
        raise ModelNotFound(
            f"no base model at {str(base)!r}; give {MINIATURE!r}, a diffusers folder or a "
            ".safetensors checkpoint on this machine (models are not downloaded)"
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def check_base(path: Path) -> None:
    """Say what can be said of a base model without reading its weights.

    Raises:
        ModelNotFound: it is neither a diffusers folder nor a checkpoint with its configuration.
    """
    if path.is_dir():
        _index_of(path)
    else:
        _config_of(path)


def _index_of(path: Path) -> Path:
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelNotFound(f"{path} is no diffusers folder: it has no model_index.json")
    return index


def _from_folder(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    index = _index_of(path)
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        kind, checker = parts["_class_name"], parts.get("safety_checker")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFound(f"{index} is damaged or no diffusers index: {error!r}") from error
    if kind != StableDiffusionPipeline.__name__:
        raise ModelNotFound(f"{path} holds a {kind}; a StableDiffusionPipeline (SD 1.x) is needed")
    # Said here because the loader's own words for it do not: the checker is never left out quietly.
    if checker and checker[0] and not (path / "safety_checker").is_dir():
        raise ModelNotFound(
            f"{index} names a safety checker, but {path / 'safety_checker'} is not there; restore "
            'it, or write "safety_checker": [null, null] to do without'
        )
    try:
        return StableDiffusionPipeline.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # the loader raises many kinds for incomplete folders
        raise ModelNotFound(f"{path} cannot be loaded: {error}") from error


def _config_of(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise ModelNotFound(f"{path} is no .safetensors file; pickled checkpoints are not read")
    config = path.with_suffix("")
    if not (config / "model_index.json").is_file():
        raise ModelNotFound(
            f"{path.name} needs its configuration, which is not downloaded: put the diffusers "
            f"configuration files of Stable Diffusion 1.x (model_index.json, unet/config.json, "
            f"tokenizer/, ...) into {config}"
        )
    return config


def _from_file(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    config = _config_of(path)
    try:
        checker = _safety_checker(config, dtype)
        return StableDiffusionPipeline.from_single_file(
            str(path), config=str(config), dtype=dtype, local_files_only=True,
            requires_safety_checker=checker["safety_checker"] is not None, **checker,
        )  # fmt: skip
    except Exception as error:  # the loader raises many kinds for foreign checkpoints
        raise ModelNotFound(
            f"{path.name} is not a Stable Diffusion 1.x checkpoint: {error}"
        ) from error


def _safety_checker(config: Path, dtype: torch.dtype) -> dict[str, Any]:
    """A safety checker from the configuration beside a checkpoint, which has none itself."""
    if not (config / "safety_checker").is_dir():
        return {"safety_checker": None, "feature_extractor": None}
    return {
        "safety_checker": StableDiffusionSafetyChecker.from_pretrained(
            config / "safety_checker",
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
        ),
        "feature_extractor": CLIPImageProcessor.from_pretrained(
            config / "feature_extractor", local_files_only=True
        ),
    }


def with_shipped_loras(scene: Scene) -> Scene:
    """The scene with paths `miniature:NAME` replaced by the files that ship with the package.

    Raises:
        LoraError: no LoRA of that name ships.
    """
    from .miniature.shipped import lora_file

    found = {
        name: lora.model_copy(update={"path": lora_file(str(lora.path).removeprefix(SHIPPED))})
        for name, lora in scene.loras.items()
        if str(lora.path).startswith(SHIPPED)
    }
    return scene.replace(loras={**scene.loras, **found}) if found else scene


def with_folder_loras(scene: Scene, folder: str | Path, there: Collection[str] = ()) -> Scene:
    """The scene with files from a folder of LoRAs for the names that have none.

    Args:
        scene: what was asked for.
        folder: see `lora.folder`.
        there: names that need no file, such as those that are loaded in a pipeline.

    Raises:
        LoraError: no such folder, a name that is not in it, or several of that name.
    """
    found = {}
    for words in (*scene.parsed.concepts, *scene.parsed.styles):
        own = scene.loras.get(words.name, LoraRef())
        if own.path is None and words.name not in there:
            path = find_lora(folder, words.name)
            found[words.name] = own.model_copy(update={"path": path})
    return scene.replace(loras={**scene.loras, **found}) if found else scene


def base_identity(pipe: StableDiffusionPipeline, scheduler: Any = None) -> dict[str, str]:
    """Name and hashes of a loaded base: what a picture's record says about it.

    `sha256` is the U-Net's, `text_encoder` and `vae` theirs, `scheduler_sha256` that of the
    scheduler's settings (the pipeline's own if none is given). The hashes of models cover the
    names, shapes and a sample of the weights, so that they are quick at any size and tell models
    apart.
    """
    scheduler = scheduler or pipe.scheduler
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    text = json.dumps(settings, sort_keys=True, default=str)
    return {
        "name": base_name(pipe),
        "sha256": _sampled_sha256(pipe.unet),
        "text_encoder": _sampled_sha256(pipe.text_encoder),
        "vae": _sampled_sha256(pipe.vae),
        "scheduler": type(scheduler).__name__,
        "scheduler_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _sampled_sha256(model: nn.Module) -> str:
    digest, values = hashlib.sha256(), model.state_dict()
    if any(value.is_meta for value in values.values()):  # offloaded layer by layer
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        values |= get_state_dict_offloaded_model(model)  # in the same order
    for name, value in values.items():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer", "")
        digest.update(f"{plain} {tuple(value.shape)}".encode())
        digest.update(value.flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()
