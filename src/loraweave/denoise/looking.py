"""Where the base model would put the concepts: its attention over the first steps of a run.

A layout is decided early, and by the nouns (CLoRA, section 3; Attend-and-Excite), so a few steps of
the base with the plain prompt tell where each concept is going to be, before any LoRA acts.

`B` pictures, `N` concepts, (h, w) positions of the maps.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..layout.masks import strengths
from .executor import Executor
from .loop import Stage, StepScheduler, denoise, guided


class LookingStage(Stage):
    """The base model's first steps with plain nouns; where each noun looks is noted down.

    Args:
        executor: of the run; its calls are counted.
        scheduler: of these steps alone, which is used up.
        share: of the steps, in (0, 1].
    """

    last: int

    def __init__(self, executor: Executor, scheduler: StepScheduler, share: float):
        super().__init__(scheduler)
        composition = executor.composition
        self.base = composition.make_pass((), background=True)
        self.nouns = [self.base.words.nouns[c.name] for c in composition.concepts]
        self.executor, self.guidance = executor, composition.scene.guidance_scale
        self.last = max(1, round(share * len(scheduler.timesteps)))

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C H W"]:
        out = self.executor.evaluate([self.base], self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        assert out.maps is not None
        size = self.executor.backbone.map_size(latents)
        self.trace.maps.append(strengths(out.maps[:, 0, -1].float(), self.nouns, size))
        return guided(out.noise[:, 0], self.guidance)

    def attention(self) -> Float[Tensor, "B N h w"]:
        """Sum over the second half of the steps."""
        return torch.stack(self.trace.maps[len(self.trace.maps) // 2 :]).sum(0)


def attention_of_nouns(
    executor: Executor, scheduler: StepScheduler, latents: Float[Tensor, "B C H W"], share: float
) -> Float[Tensor, "B N h w"]:
    """Attention of each concept's noun, the mean of the last steps looked at, largest value 1.

    Args:
        executor, scheduler, share: see `LookingStage`; the second half of the steps is averaged.
        latents: the noise of the run, as the scheduler wants it.
    """
    stage = LookingStage(executor, scheduler, share)
    denoise([stage], latents, starting=executor.at)
    total = stage.attention()
    return total / total.amax((2, 3), keepdim=True)
