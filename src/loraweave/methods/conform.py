"""CONFORM on top of merge (Meral et al., CVPR 2024): a contrast of maps within one prompt.

The maps of one concept's words are to agree with each other and with what they were at the step
before, and to differ from the other concepts' maps. CLoRA is the same idea over several passes.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.loop import StepScheduler
from .base import Method
from .contrast import info_nce
from .guided_merge import GuidanceSettings, GuidedMergeStage


class ConformSettings(GuidanceSettings):
    """Settings of CONFORM; maps are taken as they are, as the authors' examples do.

    Attributes:
        temperature: of InfoNCE, by which similarities are divided; lower is stricter.
        refinement_steps: steps with extra updates.
        refinements: how many extra updates there.
        memory: the maps of the step before are positives too.
    """

    sharpen: bool = False
    temperature: float = Field(0.5, gt=0)
    refinement_steps: tuple[int, ...] = Field((0, 10, 20), strict=False)
    refinements: int = Field(20, ge=0)
    memory: bool = True


class Conform(Method):
    """Merged LoRAs, with the maps of different concepts pulled apart."""

    name = "conform"
    summary = "merge, with the maps of different concepts pulled apart"
    source = "Meral et al., CONFORM, arXiv 2312.06059"
    passes = "1, and gradients in the first half"
    Settings = ConformSettings

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["ConformStage"]:
        return [ConformStage(composition, executor, scheduler, self.settings)]  # type: ignore[arg-type]


class ConformStage(GuidedMergeStage):
    """The loss over the words of all concepts, now and at the step before."""

    settings: ConformSettings

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: ConformSettings,
    ):  # fmt: skip
        super().__init__(composition, executor, scheduler, settings)
        groups = [t + n for t, n in zip(self.triggers, self.nouns)]
        self.tokens = [token for group in groups for token in group]
        self.labels = [label for label, group in enumerate(groups) for _ in group]
        self.before: Tensor | None = None  # (B, W, L)
        self.now: Tensor | None = None

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        if len(self.nouns) < 2:
            return latents  # nothing to differ from
        latents = super().refine(latents, i, t)
        self.before = self.now if self.settings.memory else None
        return latents

    def loss(self, maps: Float[Tensor, "B L T"]) -> Float[Tensor, " B"]:
        words = maps[..., self.tokens].transpose(1, 2)  # (B, W, L)
        self.now, values = words.detach(), []
        for b, own in enumerate(words):
            embeddings, labels = own, self.labels
            if self.before is not None:
                embeddings = torch.cat([embeddings, self.before[b]])
                labels = [*labels, *labels]
            values.append(info_nce(embeddings, labels, self.settings.temperature))
        return torch.stack(values)

    def unfinished(self, i: int, n: int, losses: Float[Tensor, " B"]) -> Tensor | None:
        more = i in self.settings.refinement_steps and n < self.settings.refinements
        return torch.ones_like(losses, dtype=torch.bool) if more else None
