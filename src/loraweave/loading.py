"""Base models from local folders and files; nothing is ever downloaded."""

import hashlib
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from .errors import ModelNotFound
from .backbone.sd1 import base_name
from .scene import MINIATURE, SHIPPED, LoraRef, Scene


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
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
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


def _from_folder(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelNotFound(f"{path} is no diffusers folder: it has no model_index.json")
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFound(f"{index} is damaged or no diffusers index: {error!r}") from error
    if kind != StableDiffusionPipeline.__name__:
        raise ModelNotFound(f"{path} holds a {kind}; a StableDiffusionPipeline (SD 1.x) is needed")
    try:
        return StableDiffusionPipeline.from_pretrained(
            path, dtype=dtype, local_files_only=True, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False, use_safetensors=True,
        )  # fmt: skip
    except Exception as error:  # the loader raises many kinds for incomplete folders
        raise ModelNotFound(f"{path} cannot be loaded: {error}") from error


def _from_file(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    if path.suffix != ".safetensors":
        raise ModelNotFound(f"{path} is no .safetensors file; pickled checkpoints are not read")
    config = path.with_suffix("")
    if not (config / "model_index.json").is_file():
        raise ModelNotFound(
            f"{path.name} needs its configuration, which is not downloaded: put the diffusers "
            f"configuration files of Stable Diffusion 1.x (model_index.json, unet/config.json, "
            f"tokenizer/, ...) into {config}"
        )
    try:
        return StableDiffusionPipeline.from_single_file(
            str(path), config=str(config), dtype=dtype, local_files_only=True,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    except Exception as error:  # the loader raises many kinds for foreign checkpoints
        raise ModelNotFound(
            f"{path.name} is not a Stable Diffusion 1.x checkpoint: {error}"
        ) from error


def with_shipped_loras(scene: Scene) -> Scene:
    """The scene with paths `miniature:NAME` replaced by the files that ship with the package.

    Raises:
        LoraError: no LoRA of that name ships.
    """
    from .miniature.shipped import lora_file

    found = {
        name: LoraRef(path=lora_file(str(lora.path).removeprefix(SHIPPED)), weight=lora.weight)
        for name, lora in scene.loras.items()
        if str(lora.path).startswith(SHIPPED)
    }
    return scene.replace(loras={**scene.loras, **found}) if found else scene


def base_identity(pipe: StableDiffusionPipeline) -> dict[str, str]:
    """Name and hash of a loaded base: what a picture's record says about it.

    The hash covers the names, shapes and a sample of the U-Net's weights, so that it is quick at
    any size and tells models apart.
    """
    digest = hashlib.sha256()
    for name, value in pipe.unet.state_dict().items():
        if "lora_" in name:
            continue
        plain = name.replace(".base_layer", "")
        digest.update(f"{plain} {tuple(value.shape)}".encode())
        digest.update(value.flatten()[:16].float().cpu().numpy().tobytes())
    return {"name": base_name(pipe), "sha256": digest.hexdigest()}
