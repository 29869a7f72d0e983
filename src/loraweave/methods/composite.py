"""LoRA Composite: one pass per LoRA, noise predictions averaged (Zhong et al., TMLR 2024).

Every pass has all triggers in its text and one LoRA in the denoiser; the mean over the passes is
taken of both halves, then comes guidance. No place belongs to anybody, so concepts blend where
their LoRAs disagree.

With `dominance` the weights are CMLoRA's (Zou et al., ICLR 2025): one LoRA counts more and the role
goes round. CMLoRA's cache of features and its order by frequency are not part of this (the public
code's frequency test is never true at 512 pixels).

`B` pictures, `P` = N passes, `S` halves.
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.loop import Stage, StepScheduler, guided
from .base import Method, MethodSettings
from .shared import TextBy, own_strengths, passes_of_each


class CompositeSettings(MethodSettings):
    """Settings of LoRA Composite.

    Attributes:
        text: whose text encoder reads a pass's prompt: `own`, that of the pass's LoRA alone;
            `sum`, of all LoRAs together, as the authors' code has it.
        prompts: `shared`, all triggers in every pass; `own`, in each pass its own trigger only.
        dominance: weigh one LoRA more, in turn.
        key_interval: the role goes on at every key step: each `key_interval`-th one, or for 0
            CMLoRA's own plan (every 2nd step, in the middle of the run every 3rd).
    """

    text: Literal["own", "sum"] = "own"
    prompts: Literal["shared", "own"] = "shared"
    dominance: bool = False
    key_interval: int = Field(0, ge=0)


class Composite(Method):
    """The mean of all single-LoRA predictions."""

    name = "composite"
    summary = "noise predictions of all LoRAs averaged, everywhere"
    source = "Zhong et al., Multi-LoRA Composition, arXiv 2402.16843"
    passes = "N"
    Settings = CompositeSettings

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["CompositeStage"]:
        return [CompositeStage(composition, executor, scheduler, self.settings)]  # type: ignore[arg-type]


class CompositeStage(Stage):
    """One run with a pass for each LoRA."""

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: CompositeSettings,
    ):  # fmt: skip
        super().__init__(scheduler)
        self.executor, self.settings = executor, settings
        self.guidance = composition.scene.guidance_scale
        by: TextBy = settings.text
        self.passes = passes_of_each(composition, by, settings.prompts)
        self.names = [concept.name for concept in composition.concepts]

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        out = self.executor.evaluate(self.passes, self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        size = self.executor.backbone.map_size(latents)
        self.trace.maps.append(own_strengths(out, self.passes, self.names, size))
        weights = out.noise.new_tensor(self.weights(i)).view(1, -1, 1, 1, 1, 1)
        return guided((out.noise * weights).sum(1), self.guidance)

    def weights(self, i: int) -> list[float]:
        """Of the passes at step i; they sum to 1."""
        n = len(self.passes)
        if not self.settings.dominance or n == 1:
            return [1 / n] * n
        low, high = dominance_weights(n)
        steps = key_steps(len(self.scheduler.timesteps), self.settings.key_interval)
        dominant = (sum(step <= i for step in steps) - 1) % n
        return [(high if k == dominant else low) / n for k in range(n)]


def dominance_weights(n: int) -> tuple[float, float]:
    """CMLoRA's weights of the others and of the dominant one among n; all n sum to n."""
    ratio = n - 0.5
    low = n / (ratio + n - 1)
    return low, ratio * low


def key_steps(total: int, interval: int) -> list[int]:
    """Steps at which the role goes on (CMLoRA)."""
    if interval:
        return list(range(0, total, interval))
    first, last = int(0.375 * total), int(0.875 * total)
    return [*range(0, first, 2), *range(first, last, 3), *range(last, total, 2)]
