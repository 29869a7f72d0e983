"""Merge: the weighted sum of all LoRAs, active everywhere at every step.

What `pipe.set_adapters([...], weights)` does in diffusers. One prompt with all triggers, one row
per half and step, whatever the number of LoRAs. The concepts share every layer and every place,
so they blend.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.loop import StepScheduler, Trace, guided
from ..layout.masks import concept_strength, word_maps
from .base import Method


class Merge(Method):
    """The exact weighted sum of all LoRAs."""

    name = "merge"
    summary = "weighted sum of all LoRAs, everywhere, always"
    source = "Hu et al. 2021 (LoRA), diffusers set_adapters"
    passes = "1"
    least_concepts = 0

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["MergeStage"]:
        return [MergeStage(composition, executor, scheduler)]


class MergeStage:
    """One pass with everything."""

    def __init__(self, composition: Composition, executor: Executor, scheduler: StepScheduler):
        self.passes = [composition.merged_pass()]
        self.guidance = composition.scene.guidance_scale
        self.executor, self.scheduler, self.trace = executor, scheduler, Trace()
        self._words = [self.passes[0].words.of(c.name) for c in composition.concepts]

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "1 C h w"]:
        return latents

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "1 C h w"]:
        out = self.executor.evaluate(self.passes, self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        assert out.maps is not None
        if self._words:
            size = self.executor.backbone.map_size(latents)
            maps = [word_maps(out.maps[0, -1], tokens, size) for tokens in self._words]
            self.trace.maps.append(torch.stack([concept_strength(m) for m in maps]).float().cpu())
        return guided(out.noise[0], self.guidance)
