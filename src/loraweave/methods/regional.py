"""Regionally controllable sampling of Mix-of-Show (Gu et al., NeurIPS 2023).

All LoRAs act everywhere, as one model; only the text differs from region to region: cross-attention
looks at a region's own prompt inside it and at the whole prompt outside. In the paper the one model
is a fusion by gradients; here it is the exact sum of the LoRAs.
"""

from dataclasses import replace

from ..denoise.composition import Composition, Pass
from ..denoise.executor import Executor
from ..denoise.loop import StepScheduler
from ..prompt import full_prompt, words_alone
from ..scene import BACKGROUND
from .base import Method
from .masked import LayoutSettings, MaskedStage, check_layout


class RegionalSettings(LayoutSettings):
    """Settings of regionally controllable sampling: where the concepts are."""


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
    ) -> list[MaskedStage]:
        assert isinstance(self.settings, RegionalSettings)
        passes = region_texts(composition)
        return [MaskedStage(composition, executor, scheduler, passes, self.settings.layout)]


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
