"""How far a gradient moves the latent.

Step sizes of published methods are for Stable Diffusion 1.5; gradients of another model have
another length. `relative` measures the step at the latent itself (docs/decisions/0003).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..backbone.sd1 import StableDiffusion1
from .base import MethodSettings


class StepSettings(MethodSettings):
    """Settings of all methods that move the latent.

    Attributes:
        step_size: z <- z - step_size * gradient, on the scale of Stable Diffusion 1.5.
        step_rule: `literal` takes step_size as it is; `relative` calibrates it at the first
            update so that step_size 20 moves the latent by `relative_step` of its norm, and
            never moves it further than that at once; `auto` is literal on Stable Diffusion 1.x
            and relative elsewhere.
        relative_step: see step_rule, a fraction of the latent's norm.
    """

    step_size: float = Field(20.0, ge=0)
    step_rule: Literal["auto", "literal", "relative"] = "auto"
    relative_step: float = Field(0.004, gt=0, lt=1)


class Stepper:
    """The displacements of one run.

    Attributes:
        rule: `literal` or `relative`.
    """

    def __init__(self, settings: StepSettings, backbone: StableDiffusion1):
        self.settings, self.rule = settings, settings.step_rule
        if self.rule == "auto":
            self.rule = "literal" if backbone.published_scale else "relative"
        self._calibration: Tensor | None = None

    def __call__(
        self, latents: Float[Tensor, "B C h w"], gradient: Float[Tensor, "B C h w"],
        factor: float = 1.0,
    ) -> Float[Tensor, "B C h w"]:  # fmt: skip
        """What is taken from the latents; `factor` of the step size."""
        size = factor * self.settings.step_size
        if self.rule == "literal":
            return size * gradient
        norm = _norms(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
        reach = self.settings.relative_step * _norms(latents) / norm  # moves by relative_step
        if self._calibration is None:
            self._calibration = reach / 20
        most = reach * self.settings.step_size / 20
        return torch.minimum(size * self._calibration, most) * gradient


def falling(i: int, total: int) -> float:
    """From 1 at the first step to .5 at the last."""
    return 1 - 0.5 * i / max(1, total - 1)


def _norms(latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 1 1"]:
    return latents.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
