"""The loop that every method runs in.

A method gives stages; most have one. In each step a stage may first change the latent (`refine`),
then predicts the noise (`predict`), and the scheduler takes the step.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import MethodError, SceneError
from ..progress import progress_bar

OnStep = Callable[[int, Tensor, Tensor], Tensor]
"""(step, timestep, latents) -> latents, called after each step."""


@dataclass
class Trace:
    """What a stage noted down while it drew B pictures, for figures and reports.

    Tensors stay on the device that they were made on: a copy to the host in every step would
    wait for the step.

    Attributes:
        maps: per step (B, N, h, w), each concept's attention, or nothing.
        masks: per step (B, N, h, w), each concept's mask, or nothing.
        losses: (step, losses (B,)) for every update of the latents.
        notes: what the user should know, in words; per picture None or a text.
    """

    maps: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    losses: list[tuple[int, Tensor]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Stage:
    """One run over the timesteps, or over a part of them.

    Attributes:
        scheduler: its own, never shared with another stage.
        first, last: the steps at which it begins, and before which it ends; None for the last.
        trace: what it noted down.
    """

    last: int | None

    def __init__(self, scheduler: "StepScheduler"):
        self.scheduler, self.trace = scheduler, Trace()
        self.first, self.last = 0, None

    def start(self, latents: Tensor) -> Float[Tensor, "B C h w"]:
        """The latents that this stage begins with; `latents` are the last stage's."""
        return latents

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        """Change the latents before step i, or return them as they are."""
        return latents

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        """The guided noise prediction of step i."""
        raise NotImplementedError

    def shown(self, i: int) -> bool:
        """Whether step i is one of the picture's, which callbacks see."""
        return True


class StepScheduler:
    """A scheduler of its own for one run: the pipeline's is never touched.

    Args:
        scheduler: of diffusers; a copy is used.
        steps, device: of the run.
        generator: of what it draws.
        moved: the latents are moved between its steps, so it must go on from those that it gets.

    Raises:
        SceneError: it cannot take so many steps.
        MethodError: latents that are moved would be lost in it.
    """

    def __init__(self, scheduler, steps: int, device: torch.device, generator, moved: bool = False):
        self.inner: Any = copy.deepcopy(scheduler)
        self.inner.set_timesteps(steps, device=device)
        if moved:
            _keep_moves(self.inner)
        known, highest = self.inner.config.num_train_timesteps, float(self.inner.timesteps.max())
        if highest >= known:  # diffusers' own error is an index out of bounds
            raise SceneError(
                f"{steps} steps are too many for this scheduler: it would begin at timestep "
                f"{highest:.0f} and knows 0 to {known - 1}; take fewer steps"
            )
        accepted = inspect.signature(self.inner.step).parameters
        self._extra = {"generator": generator} if "generator" in accepted else {}

    def copy(self) -> "StepScheduler":
        """Another one in the same state; both draw their noise from the same generator."""
        other = copy.copy(self)
        other.inner = copy.deepcopy(self.inner)
        return other

    @property
    def timesteps(self) -> Tensor:
        """Timesteps in the order of the run."""
        return self.inner.timesteps

    def initial(self, noise: Tensor) -> Tensor:
        """The first latents of the run from standard normal noise."""
        return noise * self.inner.init_noise_sigma

    def scale(self, latents: Tensor, t: Tensor) -> Tensor:
        """The latents as the denoiser wants them at this step."""
        return self.inner.scale_model_input(latents, t)

    def step(self, noise: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """The latents after this step."""
        return self.inner.step(noise, t, latents, **self._extra, return_dict=False)[0]


@torch.no_grad()
def denoise(
    stages: Sequence[Stage],
    latents: Float[Tensor, "B C h w"],
    *,
    on_step: OnStep | None = None,
    starting: Callable[[float], None] = lambda fraction: None,
    interrupted: Callable[[], bool] = lambda: False,
    progress: bool = False,
    description: str = "",
) -> Float[Tensor, "B C h w"]:
    """Run the stages one after the other; returns the latents of the pictures.

    Args:
        stages: what the method does.
        latents: the first ones, already scaled (`StepScheduler.initial`).
        on_step: called after each step that is shown.
        starting: told before each step which fraction of the run is over.
        interrupted: asked after each step; if true, the latents are returned as they are.
        progress: show a progress bar on a terminal.
        description: what the bar says.
    """
    for stage in stages:
        starting(0.0)  # a stage may evaluate the model before its first step
        latents = stage.start(latents)
        scheduler = stage.scheduler
        steps = list(enumerate(scheduler.timesteps))[stage.first : stage.last]
        with progress_bar(progress) as bar:
            task = bar.add_task(description, total=len(steps), figures="")
            for i, t in steps:
                starting(i / len(scheduler.timesteps))
                latents = stage.refine(latents, i, t)
                noise = stage.predict(latents, i, t)
                latents = scheduler.step(noise, t, latents)
                if on_step is not None and stage.shown(i):
                    latents = on_step(i, t, latents)
                bar.update(task, advance=1, figures=_figures(stage.trace) if progress else "")
                if interrupted():
                    return latents
    return latents


def _keep_moves(scheduler: Any) -> None:
    """Some schedulers step from latents that they have kept, so what moved them would be lost."""
    kind, config = type(scheduler).__name__, scheduler.config
    if kind in _FROM_KEPT or (kind == "PNDMScheduler" and not config["skip_prk_steps"]):
        raise MethodError(
            f"{kind} takes its second evaluations from latents of its own, so what the method "
            "does to the latents would be lost; take another scheduler, such as dpm++_2m or "
            "ddim, or settings of the method that leave the latents alone"
        )
    if "disable_corrector" in config:  # UniPC's corrector goes back to the latents of before
        scheduler.disable_corrector = list(range(len(scheduler.timesteps)))


_FROM_KEPT = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")


def guided(noise: Float[Tensor, "B S C h w"], scale: float) -> Float[Tensor, "B C h w"]:
    """Classifier-free guidance from the (unconditional, conditional) halves.

    As in diffusers there is none at a scale of 1 or less.
    """
    unconditional, conditional = noise[:, 0], noise[:, -1]
    if scale <= 1:
        return conditional
    return unconditional + scale * (conditional - unconditional)


def _figures(trace: Trace) -> str:
    return f"loss {trace.losses[-1][1].mean():.3f}" if trace.losses else ""
