"""What the record of a picture cannot say, and what was asked for without effect, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from .conditioning import Given
from .lora.adapter import Adapter
from .scene import LoraRef, Scene


def caveat(
    pipe: StableDiffusionPipeline, scene: Scene, generator: torch.Generator | None,
    latents: Tensor | None, callback: Any, masks: Mapping[str, Any], in_batch: bool,
    pictures: Sequence[Given] = (), tiles: bool = False, rows: int | None = None,
    shared_generator: bool = False,
) -> str | None:  # fmt: skip
    """Why a picture's record is not enough to make it again; None if it is."""
    if latents is not None:
        return "its noise was given as latents"
    if generator is not None:
        fresh = torch.Generator(generator.device).manual_seed(generator.initial_seed())
        if generator.device.type != "cpu":
            return f"its noise was drawn on {generator.device.type}"
        if shared_generator or not torch.equal(fresh.get_state(), generator.get_state()):
            return "its generator had been used before"
        if not 0 <= generator.initial_seed() < 2**63:
            return "its seed is out of the range of scenes"
    if callback is not None:
        return "a callback took part"
    if masks:
        return f"the masks of {', '.join(masks)} were given by a program"
    if pictures:
        return "the picture of a condition was given by a program"
    if tiles:
        return "it was decoded in tiles, so one decoded whole differs at their seams"
    if in_batch:
        return "it was drawn in a batch, so one drawn alone differs by rounding"
    if rows is not None:
        return f"it was computed {rows} rows at a time, so one computed at once differs by rounding"
    own = {one.name for one in (*scene.concepts, *scene.styles)}
    if loaded := sorted(n for n in own if scene.loras.get(n, LoraRef()).path is None):
        return f"its LoRAs {', '.join(loaded)} were loaded in the pipeline, not given as files"
    active = pipe.get_active_adapters() if pipe.get_list_adapters() else []
    if others := sorted(set(active) - own):
        return f"the pipeline's own adapters {', '.join(others)} acted on it"
    return None


def unused_weights(scene: Scene, adapters: Mapping[str, Adapter]) -> list[str]:
    """A sentence about each LoRA that has a weight for a text encoder but no part for it."""
    words = (*scene.parsed.concepts, *scene.parsed.styles)
    given = {one.name for one in words if one.text_encoder_weight}
    given |= {n for n, ref in scene.loras.items() if ref.text_encoder_weight != ref.unet_weight}
    return [
        f"the LoRA {name!r} has no part for the text encoder, so its weight there changes nothing"
        for name in sorted(given)
        if name in adapters and not adapters[name].text_encoder
    ]
