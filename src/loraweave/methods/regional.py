"""Regionally controllable sampling of Mix-of-Show (Gu et al., NeurIPS 2023).

All LoRAs act everywhere, as one model; only the text differs from region to region: cross-attention
looks at a region's own prompt inside it and at the whole prompt outside. In the paper the one model
is a fusion by gradients; here it is the exact sum of the LoRAs.

On top of it, as options, the box guidance of BoxDiff and of Attention Refocusing
(methods/box_losses.py), asked of the words of each region's own prompt. BoxDiff moves the latent
once before each early step; its extra updates at three steps, which end at thresholds of peaks for
Stable Diffusion, are left out. Attention Refocusing repeats as its code does.

`B` pictures, `M` regions, `L` = h*w places of the level that methods read, `W` words of a region.
"""

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition, Pass
from ..denoise.executor import Executor
from ..denoise.loop import Stage, StepScheduler
from ..prompt import full_prompt, words_alone
from ..scene import BACKGROUND
from .base import Method
from .box_losses import boxdiff, looking_out, refocused
from .guided_merge import sharpened, smoothed_3x3
from .guided_regions import GuidedRegionsStage
from .masked import LayoutSettings, MaskedStage, check_layout
from .stepping import StepSettings, falling


class RegionalSettings(LayoutSettings, StepSettings):
    """Settings of regionally controllable sampling.

    Attributes:
        guidance: `none`, or the latent is moved so that each region's words look into it, by the
            losses of BoxDiff (`boxdiff`) or of Attention Refocusing (`refocusing`).
        max_update_step: with BoxDiff the latent is moved at steps before this one. Attention
            Refocusing has its own schedule: before every step up to the tenth, then before every
            fifth up to the 35th, of 50; here the same fractions of the run.
    """

    guidance: Literal["none", "boxdiff", "refocusing"] = "none"
    max_update_step: int = Field(25, ge=0)

    @property
    def takes_gradients(self) -> bool:
        return self.guidance != "none"


class Regional(Method):
    """One model for all, a text for each region."""

    name = "regional"
    summary = "weighted sum of all LoRAs everywhere, each region with a text of its own"
    source = "Gu et al., Mix-of-Show, arXiv 2305.18292"
    passes = "1"
    regions = "needed, or left-to-right strips"
    own_prompts = True
    Settings = RegionalSettings

    def check(self, composition: Composition) -> None:
        super().check(composition)
        assert isinstance(self.settings, RegionalSettings)
        check_layout(self.name, self.settings.layout, composition)

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list[Stage]:
        settings = self.settings
        assert isinstance(settings, RegionalSettings)
        passes = region_texts(composition)
        if settings.guidance == "none":
            return [MaskedStage(composition, executor, scheduler, passes, settings.layout)]
        kind = BoxDiffStage if settings.guidance == "boxdiff" else RefocusingStage
        return [kind(composition, executor, scheduler, passes, settings)]


def region_texts(composition: Composition) -> list[Pass]:
    """The whole prompt, and every concept's words with its own negative prompt; all LoRAs act."""
    scene, every = composition.scene, composition.concepts
    parsed = scene.parsed
    around = composition.own_text(BACKGROUND, full_prompt(parsed))
    whole = composition.make_pass(every, background=True, prompt=around)
    passes = [whole]
    for concept in every:
        text = words_alone(parsed, concept.name, scene.worn(concept.name))
        text = composition.own_text(concept.name, text)
        own = composition.make_pass([concept], prompt=text, readers=every)
        passes.append(replace(own, adapters=whole.adapters))
    return passes


class _BoxStage(GuidedRegionsStage):
    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        passes: list[Pass], settings: RegionalSettings,
    ):  # fmt: skip
        super().__init__(composition, executor, scheduler, passes, settings, settings.layout)
        self.settings = settings

    def prepared(self, maps: Tensor, size: tuple[int, int]) -> Float[Tensor, "L T"]:
        """As both authors' code and Attend-and-Excite have it: sharp over the words, smooth."""
        return smoothed_3x3(sharpened(maps, maps.shape[-1] - 1)[None], size, 0.5)[0]


class BoxDiffStage(_BoxStage):
    """One update before each early step."""

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        if i >= self.settings.max_update_step:
            return latents
        losses, gradient = self.gradient(latents, t, i)
        self.trace.losses.append((i, losses))
        fall = falling(i, len(self.scheduler.timesteps)) ** 0.5
        return latents - self.stepper(latents, gradient, fall)

    def loss(
        self, maps: list[Float[Tensor, "W h w"]], looks: Float[Tensor, "L L"],
        regions: Bool[Tensor, "M h w"], i: int,
    ) -> Float[Tensor, ""]:  # fmt: skip
        return torch.stack([boxdiff(*pair) for pair in zip(maps, regions)]).sum()


class RefocusingStage(_BoxStage):
    """Several updates before early steps, until the words peak in their boxes."""

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        i = round(i * 50 / len(self.scheduler.timesteps))  # the authors' schedule is of 50 steps
        moving = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        for _ in range(updates(i)):
            self._least: list[Tensor] = []
            losses, gradient = self.gradient(latents, t, i)
            self.trace.losses.append((i, losses))
            step = self.stepper(latents, gradient, strength(i) / strength(0))
            latents = torch.where(moving.view(-1, 1, 1, 1), latents - step, latents)
            moving = moving & (losses > GOOD_LOSS) & (torch.stack(self._least) < GOOD_PEAK)
            if not moving.any():
                break
        return latents

    def loss(
        self, maps: list[Float[Tensor, "W h w"]], looks: Float[Tensor, "L L"],
        regions: Bool[Tensor, "M h w"], i: int,
    ) -> Float[Tensor, ""]:  # fmt: skip
        peaks = [own[:, region].amax() for own, region in zip(maps, regions)]
        self._least.append(torch.stack(peaks).amin().detach())
        return strength(i) * (refocused(maps, regions, i < 15) + looking_out(looks, regions))


GOOD_LOSS, GOOD_PEAK = 0.1, 0.2
"""Updates before a step end below this loss, or when every word's peak in its box is above that."""


def updates(i: int) -> int:
    """At most so many before step i of 50 (authors' code)."""
    if i >= 10:
        return 2 if i % 5 == 0 and i <= 35 else 0
    return 2 if i < 2 else 6 if i < 5 else 3


def strength(i: int) -> float:
    """Weight of the losses at step i of 50 (authors' code)."""
    return 4.0 if i < 5 else 3.0 if i < 20 else 1.0
