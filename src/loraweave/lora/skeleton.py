"""A base model's modules and shapes without its weights.

Enough to say where every tensor of a LoRA file belongs; it costs no memory, being on torch's meta
device, and nothing is downloaded.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from loraweave.errors import ModelNotFound

SD1_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
SD1_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}

SD1_VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "latent_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
"""The public configuration of Stable Diffusion 1.5."""


class Skeleton(NamedTuple):
    """A denoiser and its first text encoder, without values."""

    unet: nn.Module
    text_encoder: nn.Module


def sd1_skeleton() -> Skeleton:
    """Stable Diffusion 1.x, by its public configuration."""
    return _made(SD1_UNET, SD1_TEXT)


def skeleton(folder: str | Path) -> Skeleton:
    """The model of a diffusers folder, from its configuration files alone.

    Raises:
        ModelNotFound: the folder has no `unet/config.json` or `text_encoder/config.json`, or they
            do not describe such models.
    """
    configs = []
    for part in ("unet", "text_encoder"):
        path = Path(folder).expanduser() / part / "config.json"
        try:
            configs.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ModelNotFound(
                f"{folder} is no diffusers folder: {part}/config.json cannot be read ({error})."
            ) from error
    try:
        return _made(*configs)
    except Exception as error:  # the libraries raise many kinds for configurations of other models
        raise ModelNotFound(f"{folder} is not a Stable Diffusion 1.x model: {error}") from error


def _made(unet: dict[str, Any], text: dict[str, Any]) -> Skeleton:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return Skeleton(
        _empty(lambda: UNet2DConditionModel.from_config(unet)),
        _empty(lambda: CLIPTextModel(CLIPTextConfig(**text))),
    )


def _empty(make: Callable[[], Any]) -> nn.Module:
    with torch.device("meta"):
        return make().eval()
