"""Attend-and-Excite on top of merge (Chefer et al., SIGGRAPH 2023), and Divide & Bind's losses.

No subject may be forgotten: the loss is that of the noun whose attention has the lowest peak.
Divide & Bind (Li et al., BMVC 2023) asks for many separate peaks instead (the total variation of
the map) and lets a concept's trigger look where its noun does (Jensen-Shannon divergence).
Neither keeps LoRAs apart: all of them act everywhere.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.loop import StepScheduler
from .base import Method
from .guided_merge import GuidanceSettings, GuidedMergeStage

AUTHORS: dict[str, tuple[dict[int, float], int]] = {
    "excite": ({0: 0.05, 10: 0.5, 20: 0.8}, 20),
    "divide": ({0: 0.05, 10: 0.2, 20: 0.3}, 50),
}
"""By objective the thresholds by step, and the most refinements, of the authors' code."""


class AttendAndExciteSettings(GuidanceSettings):
    """Settings of Attend-and-Excite.

    Attributes:
        objective: `excite`, 1 minus the lowest peak; `divide`, minus the lowest total variation.
        bind: weight of the divergence between the maps of trigger and noun. Divide & Bind's own
            form of it (maps of attribute and object from several levels, the worst token counts)
            is not built.
        thresholds: by step, the peak or variation that refinement is to reach; if not given, that
            of the objective's authors: .05, .5 and .8 at steps 0, 10 and 20, for `divide` .05,
            .2 and .3.
        refinements: at most so many there; if not given 20, for `divide` 50.
    """

    objective: Literal["excite", "divide"] = "excite"
    bind: float = Field(0.0, ge=0)
    thresholds: dict[int, float] | None = Field(None, strict=False)
    refinements: int | None = Field(None, ge=0)


class AttendAndExcite(Method):
    """Merged LoRAs, with attention for every noun."""

    name = "attend_and_excite"
    summary = "merge, with the latent moved so that no noun is forgotten"
    source = "Chefer et al., Attend-and-Excite, arXiv 2301.13826; Li et al., arXiv 2307.10864"
    passes = "1, and gradients in the first half"
    Settings = AttendAndExciteSettings

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["AttendAndExciteStage"]:
        return [AttendAndExciteStage(composition, executor, scheduler, self.settings)]  # type: ignore[arg-type]


class AttendAndExciteStage(GuidedMergeStage):
    """The loss and when to refine."""

    settings: AttendAndExciteSettings

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: AttendAndExciteSettings,
    ):  # fmt: skip
        super().__init__(composition, executor, scheduler, settings)
        goals, most = AUTHORS[settings.objective]
        self.goals = goals if settings.thresholds is None else settings.thresholds
        self.most = most if settings.refinements is None else settings.refinements

    def loss(self, maps: Float[Tensor, "B L T"]) -> Float[Tensor, " B"]:
        settings = self.settings
        nouns = maps[..., [token for own in self.nouns for token in own]]  # (B, L, W)
        if settings.objective == "excite":
            value = (1 - nouns.amax(1)).amax(1)
        else:
            value = -total_variation(nouns, self._size).amin(1)
        if settings.bind:
            value = value + settings.bind * self._divergence(maps)
        return value

    def _divergence(self, maps: Float[Tensor, "B L T"]) -> Float[Tensor, " B"]:
        """Mean over concepts with a trigger of JSD(trigger, noun)."""
        pairs = [(t, n) for t, n in zip(self.triggers, self.nouns) if t]
        if not pairs:
            return maps.new_zeros(len(maps))
        return torch.stack([
            jensen_shannon(maps[..., trigger].mean(-1), maps[..., noun].mean(-1))
            for trigger, noun in pairs
        ]).mean(0)  # fmt: skip

    def unfinished(self, i: int, n: int, losses: Float[Tensor, " B"]) -> Tensor | None:
        goal = self.goals.get(i)
        if goal is None or n >= self.most:
            return None
        return losses > (1 - goal if self.settings.objective == "excite" else -goal)


def total_variation(maps: Float[Tensor, "B L W"], size: tuple[int, int]) -> Float[Tensor, "B W"]:
    """Mean difference between neighbours, down plus across, as Divide & Bind's code has it."""
    grid = maps.unflatten(1, size)
    down, across = grid.diff(dim=1).abs(), grid.diff(dim=2).abs()
    return down.mean((1, 2)) + across.mean((1, 2))


def jensen_shannon(a: Float[Tensor, "B L"], b: Float[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """Divergence of two maps as distributions over places; 0 if equal, log 2 if apart."""
    tiny = torch.finfo(a.dtype).tiny
    a, b = (x / x.sum(1, keepdim=True).clamp(min=tiny) for x in (a, b))
    middle = ((a + b) / 2).clamp(min=tiny).log()
    return sum(
        (x * (x.clamp(min=tiny).log() - middle)).sum(1) for x in (a, b)
    ) / 2  # type: ignore[return-value]  # fmt: skip
