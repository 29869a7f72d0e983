"""From attention maps to masks.

A mask says where a concept may write. What no concept claims belongs to the base model.

`N` concepts, `P` = N + 1 passes, (h, w) positions of the maps, (H, W) cells of the latent. What
has (...) in its shape takes any number of pictures in front.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def word_maps(
    maps: Float[Tensor, "L T"], tokens: Sequence[int], size: tuple[int, int]
) -> Float[Tensor, "words h w"]:
    """The maps of some tokens, laid out as (height, width) = `size`."""
    return maps[:, list(tokens)].T.unflatten(1, size)


def threshold_mask(maps: Float[Tensor, "words h w"], threshold: float) -> Float[Tensor, "h w"]:
    """Union over words of [map > threshold * its maximum] (CLoRA, section 3.3), 0 or 1."""
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    return (maps > threshold * peaks).any(0).to(maps.dtype)


def smoothed(maps: Float[Tensor, "words h w"], sigma: float) -> Float[Tensor, "words h w"]:
    """Gaussian smoothing with reflected edges; `sigma` in positions, 0 leaves the maps alone."""
    if sigma <= 0:
        return maps
    radius = max(1, round(2 * sigma))
    radius = min(radius, min(maps.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (radius,) * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(blurred, kernel.view(1, 1, 1, -1))[:, 0]


def exclusive(
    masks: Float[Tensor, "... N h w"], strengths: Float[Tensor, "... N h w"]
) -> Float[Tensor, "... N h w"]:
    """Each position that several masks claim goes to the concept that is strongest there."""
    claimed = torch.where(masks > 0, strengths, torch.full_like(strengths, -torch.inf))
    numbers = torch.arange(masks.shape[-3], device=masks.device).view(-1, 1, 1)
    return masks * (claimed.argmax(-3, keepdim=True) == numbers)


def concept_strength(maps: Float[Tensor, "words h w"]) -> Float[Tensor, "h w"]:
    """Mean of the words' maps, each divided by its maximum: comparable between concepts."""
    peaks = maps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return (maps / peaks).mean(0)


def normalized(maps: Float[Tensor, "E L"]) -> Float[Tensor, "E L"]:
    """Each map scaled to [0, 1]; a flat map becomes zero, without gradient, not undefined."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    flat = high <= low
    scaled = (maps - low) / torch.where(flat, 1.0, high - low)
    return torch.where(flat, 0.0, scaled)


def strengths(
    maps: Float[Tensor, "B L T"], words: Sequence[Sequence[int]], size: tuple[int, int]
) -> Float[Tensor, "B N h w"]:
    """`concept_strength` of each concept's tokens in maps that have them all."""
    return torch.stack([
        torch.stack([concept_strength(word_maps(own, tokens, size)) for tokens in words])
        for own in maps
    ])  # fmt: skip


def with_base(masks: Float[Tensor, "... N h w"]) -> Float[Tensor, "... P h w"]:
    """Put the base model's mask in front: what no concept claims.

    1 minus the sum of soft masks, and 0 where that is negative.
    """
    return torch.cat([(1 - masks.sum(-3, keepdim=True)).clamp(min=0), masks], -3)


def resized(masks: Float[Tensor, "... P h w"], size: Sequence[int]) -> Float[Tensor, "... P H W"]:
    """Nearest-neighbour resizing to the latent's cells."""
    pictures = masks.reshape(-1, *masks.shape[-3:])
    return F.interpolate(pictures, tuple(size), mode="nearest").reshape(*masks.shape[:-2], *size)


def softened(masks: Float[Tensor, "B P H W"], sigma: float) -> Float[Tensor, "B P H W"]:
    """Masks with edges blurred by a Gaussian of `sigma` cells; where they summed to 1 they do."""
    return torch.stack([smoothed(own, sigma) for own in masks])


def fused(
    noise: Float[Tensor, "... P S C H W"], masks: Float[Tensor, "... P H W"]
) -> Float[Tensor, "... S C H W"]:
    """Noise predictions averaged with the masks as weights; overlaps share (CLoRA code)."""
    weights = masks[..., :, None, None, :, :]  # (..., P, 1, 1, H, W)
    return (noise * weights).sum(-5) / weights.sum(-5)
