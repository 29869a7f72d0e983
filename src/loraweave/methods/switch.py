"""LoRA Switch: one LoRA at a time, in turn (Zhong et al., TMLR 2024).

At the price of a plain picture; each LoRA acts everywhere while it is on. The authors' code gives
the first LoRA one step more than the others, and all steps the first one's text encoder.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.loop import Stage, StepScheduler, guided
from ..layout.masks import strengths
from .base import Method, MethodSettings
from .shared import passes_of_each


class SwitchSettings(MethodSettings):
    """Settings of LoRA Switch.

    Attributes:
        every: steps until the next LoRA (tau).
        first_block_extra: the first LoRA has one step more, as the authors' code has it.
        text: whose text encoder reads the prompt: `own`, that of the LoRA that is on; `first`,
            the first one's in all steps, as the authors' code has it; `sum`, of all together.
    """

    every: int = Field(5, ge=1)
    first_block_extra: bool = False
    text: Literal["own", "first", "sum"] = "own"


class Switch(Method):
    """The LoRAs in turn."""

    name = "switch"
    summary = "one LoRA at a time, the next after a few steps"
    source = "Zhong et al., Multi-LoRA Composition, arXiv 2402.16843"
    passes = "1"
    Settings = SwitchSettings

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["SwitchStage"]:
        return [SwitchStage(composition, executor, scheduler, self.settings)]  # type: ignore[arg-type]


class SwitchStage(Stage):
    """One run with one pass a step."""

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: SwitchSettings,
    ):  # fmt: skip
        super().__init__(scheduler)
        self.executor, self.settings = executor, settings
        self.guidance = composition.scene.guidance_scale
        self.passes = passes_of_each(composition, settings.text, "shared")
        self.names = [concept.name for concept in composition.concepts]

    def on(self, i: int) -> int:
        """Which LoRA is on at step i."""
        late = i - 1 if self.settings.first_block_extra and i else i
        return late // self.settings.every % len(self.passes)

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        one = self.passes[self.on(i)]
        out = self.executor.evaluate([one], self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        assert out.maps is not None
        words = [one.words.of(name) for name in self.names]
        size = self.executor.backbone.map_size(latents)
        self.trace.maps.append(strengths(out.maps[:, 0, -1], words, size).float())
        return guided(out.noise[:, 0], self.guidance)
