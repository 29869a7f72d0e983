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
from .loop import StepScheduler, guided


@torch.no_grad()
def attention_of_nouns(
    executor: Executor, scheduler: StepScheduler, latents: Float[Tensor, "B C H W"], share: float
) -> Float[Tensor, "B N h w"]:
    """Attention of each concept's noun, the mean of the last steps looked at, largest value 1.

    Args:
        executor: of the run; its calls are counted.
        scheduler: a copy of the run's, which is used up.
        latents: the noise of the run, as the scheduler wants it.
        share: of the steps, in (0, 1]; the second half of them is averaged.
    """
    composition = executor.composition
    base = composition.make_pass((), background=True)
    nouns = [base.words.nouns[concept.name] for concept in composition.concepts]
    steps = max(1, round(share * len(scheduler.timesteps)))
    total = None
    for i, t in enumerate(scheduler.timesteps[:steps]):
        executor.at(i / len(scheduler.timesteps))
        out = executor.evaluate([base], scheduler.scale(latents, t), t)
        assert out.noise is not None
        assert out.maps is not None
        if i >= steps // 2:
            size = executor.backbone.map_size(latents)
            own = strengths(out.maps[:, 0, -1].float(), nouns, size)
            total = own if total is None else total + own
        noise = guided(out.noise[:, 0], composition.scene.guidance_scale)
        latents = scheduler.step(noise, t, latents)
    assert total is not None
    return total / total.amax((2, 3), keepdim=True)
