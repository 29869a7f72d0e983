"""What a training run leaves behind: nothing in the model, and one file to go on from."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from loraweave.errors import TrainingError
from loraweave.files import write_atomically

ADAPTER = "loraweave_training"
_FORMAT = 1


@contextmanager
def lora_layers(
    model: Any, config: LoraConfig, generator: torch.Generator
) -> Iterator[dict[str, nn.Parameter]]:
    """Wrap a model's layers with trainable PEFT layers; undo it all on exit.

    Args:
        model: a diffusers or transformers model without adapters; every weight of it is frozen.
        config: which layers, and the rank and alpha.
        generator: on the CPU; draws the down projections from N(0, 1/r^2), so that they are the
            same on every device. The up projections are zero.

    Yields:
        Module path + ".lora_A.weight" or ".lora_B.weight" -> float32 parameter. After the exit
        every module is the object that it was before, with the flags that it had.

    Raises:
        TrainingError: the model has adapters already, or none of the layers in `config`.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise TrainingError(
            "The pipeline already has LoRA layers. Call pipe.unload_lora_weights() before training."
        )
    children = [(p, name, child) for p in model.modules() for name, child in p.named_children()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    attributes = dict(vars(model))
    try:
        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # PEFT draws initial values that are not used
            try:
                model.add_adapter(config, adapter_name=ADAPTER)
            except ValueError as error:
                raise TrainingError(f"Cannot put LoRA layers into this model: {error}") from error
        yield _initialised(model, config.r, generator)
    finally:
        for parent, name, child in children:
            if getattr(parent, name) is not child:
                setattr(parent, name, child)
        for name in vars(model).keys() - attributes.keys():
            delattr(model, name)
        vars(model).update(attributes)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _initialised(model: Any, rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if f".{ADAPTER}." not in name:
            continue
        parameter.data = parameter.data.float()  # the base may be half precision
        if ".lora_A." in name:
            drawn = torch.randn(parameter.shape, generator=generator) / rank
            parameter.data.copy_(drawn)
        else:
            parameter.data.zero_()
        parameter.requires_grad_(True)
        parameters[name.replace(f".{ADAPTER}.", ".")] = parameter
    return parameters


def base_sha256(pipe: Any) -> str:
    """Tells base models apart: their configurations and the denoiser's first and last weights."""
    digest = hashlib.sha256()
    for model in (pipe.unet, pipe.vae, pipe.text_encoder):
        config = model.config if isinstance(model.config, Mapping) else model.config.to_dict()
        kept = {k: v for k, v in config.items() if not k.startswith("_") and "version" not in k}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for layer in (pipe.unet.conv_in, pipe.unet.conv_out):
        weight = layer.weight.detach().float().cpu().contiguous()
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def save_state(path: Path, fingerprint: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a checkpoint; an interruption leaves the previous one in place."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "fingerprint": json.dumps(dict(fingerprint)), **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint at `path`, or None if there is none.

    Raises:
        TrainingError: it is damaged, or belongs to other settings, pictures or another base.
    """
    if not path.exists():
        return None
    advice = f"Delete {path} to start from the beginning (or pass resume=False)."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved = json.loads(content["fingerprint"])
        known = content["format"] == _FORMAT
    except Exception as error:  # the reader raises many types for a damaged file
        raise TrainingError(f"The checkpoint {path.name} cannot be read. {advice}") from error
    wanted = json.loads(json.dumps(dict(fingerprint)))
    if known and saved == wanted:
        return content
    changed = sorted(k for k in saved.keys() | wanted.keys() if saved.get(k) != wanted.get(k))
    raise TrainingError(
        f"The checkpoint {path.name} is of another training run; what differs: "
        f"{', '.join(changed) or 'its format'}. {advice}"
    )
