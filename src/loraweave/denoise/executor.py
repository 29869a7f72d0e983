"""Passes in one denoiser call, their attention maps, and gradients of those maps.

All passes see the same latent, so a step costs one call of (passes x halves) rows. The gradient
of a loss over the maps is taken in one graph, or pass by pass in memory that does not grow with
the number of passes: the loss needs all maps, but its gradient does not need all graphs. First
all maps without a graph, then dL/dmap, then one vector-Jacobian product per pass.

`P` passes, `S` halves (unconditional, conditional), `L` positions, `T` tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .composition import Composition, Pass
from .recorder import recording

Halves = Literal["both", "conditional"]
GradientMode = Literal["auto", "together", "one_by_one"]

LARGEST_JOINT_GRAPH = 8192
"""Rows times latent cells up to which one graph for all passes is cheaper than recomputing."""


class Evaluation(NamedTuple):
    """Noise (P, S, C, h, w) and maps (P, S, L, T) of some passes; None where not asked for."""

    noise: Tensor | None
    maps: Tensor | None


@dataclass
class Calls:
    """How much work was done: denoiser calls, rows in them, and rows differentiated."""

    forward: int = 0
    rows: int = 0
    backward_rows: int = 0


class Executor:
    """Evaluates passes of a composition; use inside `executing`."""

    def __init__(self, composition: Composition, recorder):
        self.composition, self._recorder = composition, recorder
        self.backbone = composition.backbone
        self.calls = Calls()

    def evaluate(
        self,
        passes: Sequence[Pass],
        latents: Float[Tensor, "1 C h w"],
        t: Tensor,
        *,
        halves: Halves = "both",
        maps_only: bool = False,
    ) -> Evaluation:
        """All passes on one latent, in one call.

        Args:
            passes: what to evaluate.
            latents: already scaled for the model (`scheduler.scale_model_input`).
            t: timestep.
            halves: with or without the unconditional rows.
            maps_only: stop after the last recorded layer; no noise then.
        """
        states = torch.stack([p.states if halves == "both" else p.states[1:] for p in passes])
        count = states.shape[1]  # S
        adapters = [p.adapters for p in passes for _ in range(count)]
        rows = latents.expand(len(adapters), -1, -1, -1)
        self.calls.forward += 1
        self.calls.rows += len(adapters)
        noise = None
        with self.composition.unet_hooks.rows(adapters):
            if maps_only:
                with self._recorder.stopping_early():
                    self.backbone.denoise(rows, t, states.flatten(0, 1))
            else:
                noise = self.backbone.denoise(rows, t, states.flatten(0, 1))
                noise = noise.unflatten(0, (len(passes), count))
        maps = self._recorder.take().unflatten(0, (len(passes), count))
        return Evaluation(noise, maps)

    def gradient(
        self,
        passes: Sequence[Pass],
        latents: Float[Tensor, "1 C h w"],
        scale: Callable[[Tensor], Tensor],
        t: Tensor,
        loss: Callable[[Tensor], Tensor],
        *,
        halves: Halves = "conditional",
        mode: GradientMode = "auto",
    ) -> tuple[float, Tensor]:
        """Loss of the maps, and its gradient with respect to the latents.

        Args:
            passes: whose maps the loss sees.
            latents: where the gradient is taken.
            scale: the scheduler's `scale_model_input` at this step.
            t: timestep.
            loss: from maps (P, S, L, T) to a scalar.
            halves: which rows the maps come from.
            mode: one graph for all passes, one at a time, or whichever suits the size.
        """
        if mode == "auto":
            cells = latents.shape[-1] * latents.shape[-2]
            count = len(passes) * (2 if halves == "both" else 1)
            mode = "together" if count * cells <= LARGEST_JOINT_GRAPH else "one_by_one"
        self.calls.backward_rows += len(passes) * (2 if halves == "both" else 1)
        latents = latents.detach()
        if mode == "together":
            return self._joint_gradient(passes, latents, scale, t, loss, halves)
        with torch.no_grad():
            maps = torch.cat([
                _maps(self.evaluate([p], scale(latents), t, halves=halves, maps_only=True))
                for p in passes
            ])  # fmt: skip
        with torch.enable_grad():
            value = loss(maps.requires_grad_())
        pull = torch.autograd.grad(value, maps)[0]
        total = torch.zeros_like(latents)
        for one, own_pull in zip(passes, pull.split(1)):
            with torch.enable_grad():
                leaf = latents.clone().requires_grad_()
                own = _maps(self.evaluate([one], scale(leaf), t, halves=halves, maps_only=True))
            total += torch.autograd.grad(own, leaf, own_pull)[0]
        return value.item(), total

    def _joint_gradient(self, passes, latents, scale, t, loss, halves) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaf = latents.clone().requires_grad_()
            maps = self.evaluate(passes, scale(leaf), t, halves=halves, maps_only=True).maps
            value = loss(maps)
        return value.item(), torch.autograd.grad(value, leaf)[0]


def _maps(evaluation: Evaluation) -> Tensor:
    assert evaluation.maps is not None
    return evaluation.maps


@contextmanager
def executing(composition: Composition) -> Iterator[Executor]:
    """An executor that records the backbone's reading sites; processors come back on exit."""
    with recording(composition.backbone.sites) as recorder:
        yield Executor(composition, recorder)
