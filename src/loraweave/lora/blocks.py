"""Weights of single blocks of the U-Net, in the form that diffusers' `set_adapters` takes."""

import re
from dataclasses import replace

from ..errors import LoraError
from ..lora_ref import BlockWeights, PerBlock
from .adapter import Adapter
from .updates import Dora, Update

_PLACE = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(?:attentions\.(\d+)\.)?|(mid_block)\.")


def with_blocks(adapter: Adapter, weights: BlockWeights) -> Adapter:
    """An adapter whose updates of the U-Net are scaled by the weights of their blocks.

    Raises:
        LoraError: a block or an attention that the LoRA has nothing in.
    """
    seen: set[tuple[str, str, int | None]] = set()
    scaled = {}
    for path, update in adapter.unet.items():
        factor, place = _factor(path, weights)
        seen |= place
        scaled[path] = scale_update(update, factor)
    for part in ("down", "up"):
        for block, value in _listed(getattr(weights, part)).items():
            count = len(value) if isinstance(value, list) else None
            found = {attention for p, b, attention in seen if (p, b) == (part, block)}
            if not found:
                raise LoraError(
                    f"the LoRA {adapter.name!r} has a weight for {part}.{block} and nothing there"
                )
            if count is not None and (most := max((a or 0) + 1 for a in found)) != count:
                raise LoraError(
                    f"the LoRA {adapter.name!r} has {count} weights for the attentions of "
                    f"{part}.{block}, which has {most}"
                )
    return replace(adapter, unet=scaled)


def scale_update(update: Update, factor: float) -> Update:
    """An update that does at weight 1 what it did at weight `factor`."""
    if factor == 1:
        return update
    if isinstance(update, Dora):
        moments = update.moments
        if moments is not None:
            moments = moments * moments.new_tensor([1, factor, factor**2])[:, None]
        inner = replace(update.inner, scale=update.inner.scale * factor)  # type: ignore[type-var]
        return replace(update, inner=inner, moments=moments)
    return replace(update, scale=update.scale * factor)  # type: ignore[type-var]


def _listed(part: float | PerBlock) -> PerBlock:
    return part if isinstance(part, dict) else {}


def _factor(path: str, weights: BlockWeights) -> tuple[float, set[tuple[str, str, int | None]]]:
    """The factor of one layer, and the place that it was looked up for."""
    match = _PLACE.match(path)
    if match is None:
        return 1.0, set()
    if match[4]:
        return weights.mid, set()
    side, block = match[1].partition("_")[0], f"block_{match[2]}"
    attention = None if match[3] is None else int(match[3])
    part = weights.down if side == "down" else weights.up
    value = part.get(block, 1.0) if isinstance(part, dict) else part
    place = {(side, block, attention)}
    if not isinstance(value, list):
        return value, place
    if attention is None:
        return 1.0, place
    return (value[attention] if attention < len(value) else 1.0), place
