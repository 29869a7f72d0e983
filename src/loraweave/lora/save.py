"""Writing LoRA files that other programs read: kohya names for A1111 and ComfyUI, or diffusers'.

The file is written beside its final place and then renamed, so a stop half-way never leaves a
damaged LoRA under the right name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from torch import Tensor

from loraweave.errors import LoraError
from loraweave.files import write_atomically
from loraweave.lora.alphas import HEADER_CONFIG
from loraweave.lora.embeddings import LAYERED

Format = Literal["kohya", "diffusers"]
_HALVES = {".lora_A.weight": "lora_down", ".lora_B.weight": "lora_up"}


def save_lora(
    path: str | Path,
    unet_state: Mapping[str, Tensor],
    text_encoder_state: Mapping[str, Tensor] | None = None,
    *,
    rank: int,
    alpha: float,
    metadata: Mapping[str, str] | None = None,
    format: Format = "kohya",
    layered: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a LoRA as float16 safetensors.

    Args:
        path: ends in .safetensors; the folder is made if needed.
        unet_state: `<module path>.lora_A.weight` (r, in[, kh, kw]) and `.lora_B.weight`
            (out, r[, 1, 1]), as `peft.get_peft_model_state_dict` returns them.
        text_encoder_state: the same for the text encoder.
        rank: of every module, for the metadata.
        alpha: of every module; the update is applied at alpha / rank.
        metadata: further header texts, see `lora_metadata`.
        format: "kohya" carries alpha in tensors, "diffusers" in the header.
        layered: of an ED-LoRA, token -> (X, D), a vector for each cross-attention layer.

    Raises:
        LoraError: nothing to save, wrong names, a value that float16 cannot hold, or a path that
            does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise LoraError(f"A LoRA is written as .safetensors, but the path is {path.name}.")
    states = {"unet": dict(unet_state), "text_encoder": dict(text_encoder_state or {})}
    if format == "kohya":
        tensors = _kohya(states, alpha)
        texts = {}
    elif format == "diffusers":
        tensors = {f"{c}.{name}": t for c, state in states.items() for name, t in state.items()}
        texts = {HEADER_CONFIG: _peft_config(states, rank, alpha)}
    else:
        raise LoraError(f"Unknown LoRA format {format!r}; it is 'kohya' or 'diffusers'.")
    if not tensors:
        raise LoraError("There is nothing to save: the LoRA has no tensors.")
    tensors |= {f"{LAYERED}{token}": vectors for token, vectors in (layered or {}).items()}
    half = {name: t.detach().to("cpu", torch.float16).contiguous() for name, t in tensors.items()}
    for name, tensor in half.items():
        if not torch.isfinite(tensor).all():
            raise LoraError(
                f"{name} has values that float16 cannot hold: the training has diverged. Use a "
                "lower learning rate."
            )
    texts |= {
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "ss_network_module": "networks.lora",
        **(metadata or {}),
    }
    write_atomically(path, with_metadata(save(half), texts))
    return path


def with_metadata(data: bytes, texts: Mapping[str, str]) -> bytes:
    """Put texts into the header of serialised tensors, in a fixed order.

    The library writes them in the order of a hash map that differs from process to process, so
    that two equal trainings would give files with different hashes.
    """
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(texts.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors must start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def lora_metadata(
    *,
    title: str,
    trigger_phrase: str,
    resolution: tuple[int, int],
    learning_rate: float,
    images: int,
    steps: int,
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None,
    base_version: str = "sd_v1",
    prediction_type: str = "epsilon",
    date: str | None = None,
    **more: object,
) -> dict[str, str]:
    """Header texts that A1111, ComfyUI and model sites show.

    Args:
        title: the LoRA's name.
        trigger_phrase: what to write in the prompt.
        resolution: (width, height) in pixels of the training pictures.
        learning_rate: of the denoiser's LoRA.
        images: number of training pictures.
        steps: number of optimiser steps.
        tag_frequency: folder -> tag or caption -> count.
        base_version: "sd_v1" or "sd_v2", kohya's name of the base.
        prediction_type: of the base's scheduler.
        date: ISO 8601; left out if not given, so that equal trainings give equal files.
        more: further `ss_*` texts, without the prefix.
    """
    family = "stable-diffusion-v2-512" if base_version == "sd_v2" else "stable-diffusion-v1"
    texts: dict[str, object] = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{family}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger_phrase,
        "modelspec.resolution": f"{resolution[0]}x{resolution[1]}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(prediction_type, prediction_type),
        "ss_base_model_version": base_version,
        "ss_output_name": title,
        "ss_learning_rate": learning_rate,
        "ss_num_train_images": images,
        "ss_steps": steps,
        "ss_resolution": f"({resolution[0]}, {resolution[1]})",
        "ss_tag_frequency": json.dumps(tag_frequency or {}),
    }
    if date is not None:
        texts["modelspec.date"] = date
    texts |= {f"ss_{name}": value for name, value in more.items()}
    return {name: str(value) for name, value in texts.items()}


def _kohya(states: Mapping[str, Mapping[str, Tensor]], alpha: float) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for component, state in states.items():
        prefix = "lora_unet_" if component == "unet" else "lora_te_"
        for name, tensor in state.items():
            stem, half = _split(name)
            if component == "text_encoder":  # the readers know CLIP by its old names
                stem = f"text_model.{stem.removeprefix('text_model.')}"
            key = prefix + stem.replace(".", "_")
            tensors[f"{key}.{half}.weight"] = tensor
            tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
    return tensors


def _peft_config(states: Mapping[str, Mapping[str, Tensor]], rank: int, alpha: float) -> str:
    """What diffusers reads alpha from: a LoraConfig per component, with flattened names."""
    config: dict[str, object] = {}
    for component, state in states.items():
        targets = sorted({_split(name)[0] for name in state})
        if targets:
            config |= {
                f"{component}.r": rank,
                f"{component}.lora_alpha": alpha,
                f"{component}.target_modules": targets,
            }
    return json.dumps(config, sort_keys=True)


def _split(name: str) -> tuple[str, str]:
    for suffix, half in _HALVES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), half
    raise LoraError(f"{name} is not the name of a PEFT LoRA tensor (<module>.lora_A.weight).")
