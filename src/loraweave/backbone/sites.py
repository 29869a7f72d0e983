"""Which cross-attention sites a U-Net has, at which level, and which level methods read.

A level is told by its downsampling factor relative to the latent: 1 for the outermost blocks, 2
one level further in, and so on. Nothing here assumes square pictures.
"""

from collections.abc import Iterator
from typing import NamedTuple

from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

READING_SIDE = 16
"""Positions a side, at the backbone's native size, of the level that methods read: the
"semantically richest" level of Stable Diffusion 1.x (CLoRA section 3; Attend-and-Excite)."""


class Site(NamedTuple):
    """One cross-attention layer: its path in the U-Net, its module, its downsampling factor."""

    name: str
    module: Attention
    factor: int


def cross_attention_sites(unet: UNet2DConditionModel) -> list[Site]:
    """All cross-attention layers in the order in which a forward pass meets them."""
    levels = len(unet.down_blocks)
    blocks: list[tuple[str, nn.Module | None, int]] = [
        (f"down_blocks.{i}", block, 2**i) for i, block in enumerate(unet.down_blocks)
    ]
    blocks.append(("mid_block", unet.mid_block, 2 ** (levels - 1)))
    blocks += [
        (f"up_blocks.{i}", block, 2 ** (levels - 1 - i)) for i, block in enumerate(unet.up_blocks)
    ]
    return [
        Site(f"{name}.{path}", module, factor)
        for name, block, factor in blocks
        for path, module in _cross_attentions(block)
    ]


def native_size(unet: UNet2DConditionModel) -> tuple[int, int]:
    """Width and height in latent cells that the denoiser was made for."""
    size = unet.config["sample_size"]
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def reading_factor(unet: UNet2DConditionModel) -> int:
    """Downsampling factor of the level that methods read: the one nearest to 16x16."""
    side = max(native_size(unet))
    factors = sorted({site.factor for site in cross_attention_sites(unet)})
    return min(factors, key=lambda f: abs(side / f - READING_SIDE))


def reading_sites(unet: UNet2DConditionModel) -> list[Attention]:
    """The cross-attention layers of the level that methods read."""
    factor = reading_factor(unet)
    return [site.module for site in cross_attention_sites(unet) if site.factor == factor]


def _cross_attentions(block: nn.Module | None) -> Iterator[tuple[str, Attention]]:
    if block is None:
        return
    for path, module in block.named_modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            yield path, module
