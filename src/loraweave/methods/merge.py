"""Merge: the weighted sum of all LoRAs, active everywhere at every step.

What `pipe.set_adapters([...], weights)` does in diffusers. One prompt with all triggers, one row
per half and step, whatever the number of LoRAs. The concepts share every layer and every place,
so they blend.
"""

from jaxtyping import Float
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.loop import Stage, StepScheduler, guided
from ..layout.masks import strengths
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


class MergeStage(Stage):
    """One pass with everything."""

    def __init__(self, composition: Composition, executor: Executor, scheduler: StepScheduler):
        super().__init__(scheduler)
        self.passes = [composition.merged_pass()]
        self.guidance = composition.scene.guidance_scale
        self.executor = executor
        self._words = [self.passes[0].words.of(c.name) for c in composition.concepts]

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        out = self.executor.evaluate(self.passes, self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        assert out.maps is not None
        if self._words:
            size = self.executor.backbone.map_size(latents)
            self.trace.maps.append(strengths(out.maps[:, 0, -1], self._words, size).float().cpu())
        return guided(out.noise[:, 0], self.guidance)
