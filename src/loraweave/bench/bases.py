"""Base models and LoRAs whose pictures mean nothing, for measuring speed.

Speed does not depend on values: Stable Diffusion 1.5's architecture with random weights takes as
long as the trained model, and so does a random LoRA. (Where a method cuts masks from attention, the
masks of random weights are of other shapes; nothing that is counted here depends on them much.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..loading import load
from ..lora.keys import plain_modules
from ..lora.save import save_lora
from ..lora.skeleton import SD1_TEXT, SD1_UNET, SD1_VAE
from ..miniature.shipped import base_folder

BaseName = Literal["miniature", "sd15-random", "tiny"]
TINY_UNET = {
    **SD1_UNET, "sample_size": 16, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2,
    "cross_attention_dim": 16, "attention_head_dim": 2, "layers_per_block": 1,
}  # fmt: skip
TINY_TEXT = {**SD1_TEXT, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "projection_dim": 16}  # fmt: skip
TINY_VAE = {**SD1_VAE, "sample_size": 128, "block_out_channels": (8, 8, 8, 8),
            "norm_num_groups": 2, "layers_per_block": 1}  # fmt: skip
CONFIGS = {"sd15-random": (SD1_UNET, SD1_TEXT, SD1_VAE), "tiny": (TINY_UNET, TINY_TEXT, TINY_VAE)}
NOUNS = ("cat", "dog", "bird", "robot", "flower", "house", "fish", "girl")
"""Of the concepts; so many LoRAs there can be."""
CHANGED = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
"""Layers of the denoiser's transformers that the common trainers give LoRAs."""
CHANGED_OF_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def speed_base(
    name: BaseName, device: str, dtype: torch.dtype, seed: int = 0
) -> StableDiffusionPipeline:
    """A pipeline to measure with; on the device `meta` it has shapes and no values.

    Args:
        name: the miniature, Stable Diffusion 1.5's architecture with random weights, or a tiny
            one of the same structure.
        device: where it is.
        dtype: of its weights.
        seed: of random weights.
    """
    if name == "miniature":
        return load("miniature", dtype=dtype, device=device)
    tokenizer = CLIPTokenizer.from_pretrained(base_folder() / "tokenizer")
    special = {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    own_unet, own_text, own_vae = CONFIGS[name]
    parts: list[Any] = [
        _filled(lambda: UNet2DConditionModel.from_config(own_unet), device, dtype, seed),
        _filled(lambda: CLIPTextModel(CLIPTextConfig(**own_text, **special)), device, dtype, seed),
        _filled(lambda: AutoencoderKL.from_config(own_vae), device, dtype, seed),
    ]
    unet, text_encoder, vae = parts
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None, requires_safety_checker=False,  # type: ignore[arg-type]
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _filled(make: Any, device: str, dtype: torch.dtype, seed: int) -> nn.Module:
    """A model with the values of one random sequence, again and again: quick to make."""
    with torch.device("meta"):
        # nn.Module's own: diffusers' logs a warning about an empty list of exceptions.
        model: nn.Module = nn.Module.to(make(), dtype)
    model.eval().requires_grad_(False)
    if device == "meta":
        return model
    model = model.to_empty(device=device)
    chunk = torch.randn(2**20, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        repeated = chunk.repeat(-(-parameter.numel() // len(chunk)))[: parameter.numel()]
        parameter.data.copy_(repeated.view_as(parameter) * parameter[0].numel() ** -0.5)
    for name, buffer in model.named_buffers():  # the text encoder's positions
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return model


def speed_loras(
    pipe: StableDiffusionPipeline, folder: Path, count: int, rank: int, few: bool = False
) -> dict[str, Path]:
    """Files of random LoRAs for the layers that the common trainers change, by name.

    Args:
        pipe: whose shapes they have.
        folder: where they are written.
        count: how many.
        rank: of each.
        few: queries of cross-attention only, where it does not matter what they change.
    """
    found = {}
    changed, of_text = (
        (("attn2.to_q",), ("layers.0.self_attn.q_proj",)) if few else (CHANGED, CHANGED_OF_TEXT)
    )
    for n in range(count):
        generator = torch.Generator().manual_seed(n)
        unet = _factors(pipe.unet, changed, rank, generator)
        text = _factors(pipe.text_encoder, of_text, rank, generator)
        path = folder / f"{NOUNS[n]}.safetensors"
        found[NOUNS[n]] = save_lora(path, unet, text, rank=rank, alpha=rank)
    return found


def _factors(
    model: nn.Module, changed: Sequence[str], rank: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path, module in plain_modules(model).items():
        if not path.endswith(tuple(changed)) or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        out, into = module.weight.shape[:2]
        ones = (1,) * (module.weight.ndim - 2)
        for key, size in (("A", (rank, into)), ("B", (out, rank))):
            values = torch.randn((*size, *ones), generator=generator) * 0.02
            found[f"{path}.lora_{key}.weight"] = values
    return found


def speed_prompt(count: int) -> str:
    """A prompt with so many concepts."""
    return ", ".join(f"a [sks {noun}]({noun})" for noun in NOUNS[:count]) + " in the meadow"
