"""Moving the latents of a merged pass down a loss of its attention maps.

What Attend-and-Excite began and its descendants share: one pass, one gradient at each early step,
more of them at a few steps, a step size that falls with the square root. Only the loss differs.

`B` pictures, `L` positions, `T` tokens, `W` words.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor, GradientMode
from ..denoise.loop import StepScheduler
from .merge import MergeStage
from .stepping import Stepper, StepSettings, falling


class GuidanceSettings(StepSettings):
    """Settings of all of them; the defaults are those of the authors of Attend-and-Excite.

    Attributes:
        max_update_step: the latent is updated at steps before this one.
        sharpen: take the softmax of 100 times the probabilities over the tokens, without the first
            and the last of the text encoder's positions.
        normalize_eot: leave out the end token and the padding there, too, as the authors do for
            Stable Diffusion 2.1.
        smoothing: sigma of the 3x3 Gaussian over the maps as the authors' code gives it, 0 for
            none. That code divides by (2 sigma)^2 instead of 2 sigma^2, and so does this.
        gradient: one graph for all rows, one row at a time, or whichever suits the size.
    """

    max_update_step: int = Field(25, ge=0)
    sharpen: bool = True
    normalize_eot: bool = False
    smoothing: float = Field(0.5, ge=0)
    gradient: GradientMode = "auto"

    @property
    def takes_gradients(self) -> bool:
        return self.max_update_step > 0


class GuidedMergeStage(MergeStage):
    """A merged pass whose latents follow a loss.

    Subclasses give `loss` and say how often they refine.
    """

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: GuidanceSettings,
    ):  # fmt: skip
        super().__init__(composition, executor, scheduler)
        self.settings = settings
        words = self.passes[0].words
        names = [concept.name for concept in composition.concepts]
        self.nouns = [words.nouns[name] for name in names]
        self.triggers = [words.triggers.get(name, []) for name in names]
        self.end = executor.backbone.end_position(self.passes[0].text)
        self.stepper = Stepper(settings, composition.backbone)

    def loss(self, maps: Float[Tensor, "B L T"]) -> Float[Tensor, " B"]:
        """Of each picture, from maps as `words_of` makes them."""
        raise NotImplementedError

    def unfinished(self, i: int, n: int, losses: Float[Tensor, " B"]) -> Tensor | None:
        """Which pictures are refined once more at step i after n refinements, (B,) booleans; None
        for none of them, whatever their losses are.

        `losses` are those that the refinement before looked at, as in the authors' code, which so
        moves once more after the goal is reached.
        """
        raise NotImplementedError

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        if i >= self.settings.max_update_step:
            return latents
        n, moving = 0, torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        former = None
        while True:
            losses, gradient = self._gradient(latents, t)
            self.trace.losses.append((i, losses))
            more = self.unfinished(i, n, losses if former is None else former)
            former = losses
            if more is None or not (moving := moving & more).any():
                return latents - self._step(latents, gradient, i)  # the step's own update
            latents = torch.where(
                moving.view(-1, 1, 1, 1), latents - self._step(latents, gradient, i), latents
            )
            n += 1

    def prepared(self, maps: Float[Tensor, "B L T"]) -> Float[Tensor, "B L T"]:
        """Maps as the loss sees them; tokens keep their positions."""
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        settings = self.settings
        if settings.sharpen:
            end = self.end if settings.normalize_eot else maps.shape[-1] - 1
            maps = sharpened(maps, end)
        if settings.smoothing:
            maps = smoothed_3x3(maps, self._size, settings.smoothing)
        return maps

    def _gradient(self, latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        self._size = self.executor.backbone.map_size(latents)
        return self.executor.gradient(
            self.passes, latents, lambda z: self.scheduler.scale(z, t), t,
            lambda maps: self.loss(self.prepared(maps[:, 0, -1])), mode=self.settings.gradient,
        )[:2]  # fmt: skip

    def _step(self, latents: Tensor, gradient: Tensor, i: int) -> Float[Tensor, "B C h w"]:
        """The displacement; it falls to .7 over the run."""
        return self.stepper(latents, gradient, falling(i, len(self.scheduler.timesteps)) ** 0.5)


def sharpened(maps: Float[Tensor, "*B L T"], end: int) -> Float[Tensor, "*B L T"]:
    """Softmax of 100 times the probabilities over the tokens from 1 to before `end`; others 0."""
    return F.pad((100 * maps[..., 1:end]).softmax(-1), (1, maps.shape[-1] - end))


def smoothed_3x3(
    maps: Float[Tensor, "B L T"], size: tuple[int, int], sigma: float
) -> Float[Tensor, "B L T"]:
    """3x3 Gaussian with reflected edges."""
    line = torch.exp(-((torch.tensor([-1.0, 0, 1]) / (2 * sigma)) ** 2)).to(maps)
    kernel = (line[:, None] * line / line.sum() ** 2).expand(maps.shape[-1], 1, 3, 3)
    grid = maps.transpose(1, 2).unflatten(2, size)  # (B, T, h, w)
    padded = F.pad(grid, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, kernel, groups=maps.shape[-1]).flatten(2).transpose(1, 2)
