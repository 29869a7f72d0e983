"""Merge: all LoRAs as one, active everywhere at every step.

The weighted sum is what `pipe.set_adapters([...], weights)` does in diffusers. One prompt with all
triggers, one row per half and step, whatever the number of LoRAs. The concepts share every layer
and every place, so they blend. Other rules (TIES, DARE, pruning) and a low rank by SVD work on the
whole deltas (`lora/merging.py` says why).
"""

from collections.abc import Mapping

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.loop import Stage, StepScheduler, guided
from ..errors import MethodError
from ..layout.masks import strengths
from ..lora.adapter import Adapter
from ..lora.merging import Rule, merged_adapter
from ..scene import LoraRef, Scene
from .base import Method, MethodSettings

MERGED = "merged LoRAs"  # no name of a LoRA has a space


class MergeSettings(MethodSettings):
    """Settings of merging.

    Attributes:
        rule: how the deltas are put together.
        density: share of a delta's entries that pruning rules keep.
        rank: the result is reduced to this rank by SVD; not reduced if None.
        seed: of what `dare` drops.
    """

    rule: Rule = "sum"
    density: float = Field(0.5, gt=0, le=1)
    rank: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)


class Merge(Method):
    """All LoRAs as one."""

    name = "merge"
    summary = "weighted sum of all LoRAs, everywhere, always"
    source = "Hu et al. 2021 (LoRA), diffusers set_adapters; TIES 2306.01708; DARE 2311.03099"
    passes = "1"
    refuses = ("DoRA, and LoRAs that act for a while, with a rule or a rank",)
    least_concepts = 0
    Settings = MergeSettings

    def extra_adapters(self, scene: Scene, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
        own = self.settings
        assert isinstance(own, MergeSettings)
        if not scene.concepts or (own.rule == "sum" and own.rank is None):
            return {}
        own_refs = {c.name: scene.loras.get(c.name, LoraRef()) for c in scene.concepts}
        if timed := [name for name, ref in own_refs.items() if ref.scheduled]:
            raise MethodError(
                f"merge with rule {own.rule!r} or a rank makes one LoRA of all, and so cannot let "
                f"{', '.join(timed)} act for a while; leave out start, stop and schedule, or the "
                "rule and the rank"
            )
        weighted = [(adapters[c.name], c.weight, c.text_encoder_weight) for c in scene.concepts]
        merged = merged_adapter(
            MERGED, weighted, own.rule, density=own.density, rank=own.rank, seed=own.seed
        )
        return {MERGED: merged}

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["MergeStage"]:
        return [MergeStage(composition, executor, scheduler)]


class MergeStage(Stage):
    """One pass with everything."""

    def __init__(self, composition: Composition, executor: Executor, scheduler: StepScheduler):
        super().__init__(scheduler)
        if MERGED in composition.adapters:
            one = composition.adapters[MERGED]
            own = composition.concepts
            self.passes = [composition.make_pass(own, background=True, instead=one)]
        else:
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
            self.trace.maps.append(strengths(out.maps[:, 0, -1], self._words, size).float())
        return guided(out.noise[:, 0], self.guidance)
