"""LoRA files that are pickles, read only where the caller asks for it, and then as plain weights.

A pickle can run code. torch's weights-only reader builds nothing but tensors, numbers, texts and
containers of them, and refuses the rest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraweave.errors import UnsupportedLoraFormat
from loraweave.lora.embeddings import BUNDLED

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}
_EDLORA = {"new_concept_embedding", "new_concept_token", "text_encoder", "unet"}


def read_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    """The tensors of a pickle under one flat set of names.

    ED-LoRA's parts get their part's name in front (`unet.`, `text_encoder.`,
    `new_concept_embedding.`), an A1111 embedding the name that it has inside a LoRA file.

    Raises:
        UnsupportedLoraFormat: not allowed, not plain weights, or not named tensors.
    """
    if not allow_pickle:
        raise UnsupportedLoraFormat(
            f"{path.name} is a pickle file, and pickle files can run code. Use a .safetensors "
            "file, or pass allow_pickle=True (--allow-pickle) to read it with torch's "
            "weights-only reader."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many types for files that it refuses
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UnsupportedLoraFormat(
            f"{path.name} cannot be read as plain weights ({reason[0]}). Use a safetensors file."
        ) from error
    for wrapper in ("state_dict", "params"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    flat = _flat(path, state) if isinstance(state, dict) else None
    if flat is None or not all(isinstance(value, Tensor) for value in flat.values()):
        raise UnsupportedLoraFormat(
            f"{path.name} holds something else than named tensors (a training checkpoint, or a "
            "list?). Give a LoRA file."
        )
    return {str(name): tensor for name, tensor in flat.items()}


def _flat(path: Path, state: Mapping[str, Any]) -> dict[str, Any] | None:
    params = state.get("string_to_param")
    if isinstance(params, dict):
        if set(params) != {"*"}:
            raise UnsupportedLoraFormat(
                f'{path.name} is a textual inversion of {len(params)} texts; one, "*", is known.'
            )
        return {BUNDLED.format(state.get("name") or path.stem): params["*"]}
    if state and set(state) <= _EDLORA and all(isinstance(v, dict) for v in state.values()):
        return {f"{part}.{key}": t for part, own in state.items() for key, t in own.items()}
    return dict(state)
