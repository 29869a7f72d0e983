"""Passes in few denoiser calls, their attention maps, and gradients of those maps.

All passes of a picture see the same latent, so a step costs pictures x passes x halves rows, in
one call or in calls of at most `pass_batch` rows. The gradient of a loss over the maps is taken in
one graph, or pass by pass in memory that does not grow with the number of passes: the loss needs
all maps, but its gradient does not need all graphs. First all maps without a graph, then dL/dmap,
then one vector-Jacobian product per pass.

`B` pictures, `P` passes, `S` halves (unconditional, conditional), `L` positions, `T` tokens.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import MethodError
from .checkpointing import Again, checkpointing
from .composition import Composition, Pass
from .conditions import Conditions
from .hooks import Weighted
from .recorder import recording
from .texts import TextLayers

Halves = Literal["both", "conditional"]
GradientMode = Literal["auto", "together", "one_by_one"]

LARGEST_JOINT_GRAPH = 8192
"""Rows times latent cells up to which one graph for all passes is cheaper than recomputing."""
Loss = Callable[[Tensor], Tensor]
"""From maps (B, P, S, L, T) to one loss a picture (B,), which sees that picture's maps only."""


class Evaluation(NamedTuple):
    """Noise (B, P, S, C, h, w) and maps (B, P, S, L, T); None where not asked for."""

    noise: Tensor | None
    maps: Tensor | None

    def detached(self) -> "Evaluation":
        """The same without a graph."""
        return Evaluation(*(None if x is None else x.detach() for x in self))


class Gradient(NamedTuple):
    """Losses (B,), their gradients (B, C, h, w), and the evaluation that they come from if it was
    asked for."""

    losses: Tensor
    gradient: Tensor
    evaluation: Evaluation | None


@dataclass
class Calls:
    """How much work was done.

    Attributes:
        forward, rows: denoiser calls, and rows in them.
        backward_rows: rows that were differentiated.
        work: what the calls were.
    """

    forward: int = 0
    rows: int = 0
    backward_rows: int = 0
    work: Counter["Work"] = field(default_factory=Counter)

    def add(self, rows: int, work: "Work") -> None:
        """One more call with so many rows."""
        self.forward, self.rows = self.forward + 1, self.rows + rows
        self.work[work] += 1


class Work(NamedTuple):
    """What one denoiser call computes, by which its operations can be counted on any base.

    Attributes:
        adapters: names of what acts, for each pass of a picture, or for each owner.
        pictures, halves: rows of each pass.
        confined: the passes are owners, which share the rows.
        stopped: after the last layer that is read.
        differentiated: the maps' gradient with respect to the latents is taken.
        owners: of a position, on average, rounded; where the passes are owners.
        recorded: maps of every owner's text are made.
        fresh: keys and values of the texts are made, which later calls use.
        by_query: see `Confined`.
    """

    adapters: tuple[tuple[str, ...], ...]
    pictures: int
    halves: int
    confined: bool
    stopped: bool
    differentiated: bool
    owners: int = 1
    recorded: bool = False
    fresh: bool = False
    by_query: bool = False


@dataclass(frozen=True)
class MemoryMode:
    """How much is in memory at once; what is computed stays the same.

    Attributes:
        pass_batch: most rows of one denoiser call; all at once if None.
        graph_rows: most rows of one graph; if all are more, each has one pass of one picture.
        checkpointing: a graph keeps the edges of the denoiser's blocks only; what is between them
            is computed again for the gradient.
        limited: there is a limit that all of this was chosen for, so no graph may be larger than
            that of the maps.
    """

    pass_batch: int | None = None
    graph_rows: int | None = None
    checkpointing: bool = False
    limited: bool = False


class Executor:
    """Evaluates passes of a composition; use inside `executing`.

    Attributes:
        calls: how much work was done so far.
        mode: how much is in memory at once.
        fraction: of the run that is over, in [0, 1); decides which scheduled LoRAs act, and which
            pictures are followed.
    """

    def __init__(
        self, composition: Composition, recorder, mode: "MemoryMode",
        conditions: Conditions | None = None,
    ):  # fmt: skip
        self.composition, self._recorder = composition, recorder
        self._conditions = conditions or Conditions()
        self.backbone, self.mode = composition.backbone, mode
        self.calls, self.fraction = Calls(), 0.0
        self._texts = TextLayers(self.backbone.unet, keep=not mode.limited)
        self._numbers: dict[tuple[int, int], tuple[Tensor, int]] = {}

    @property
    def halves(self) -> Halves:
        """What a guided prediction needs: without guidance no unconditional half."""
        return "both" if self.composition.scene.guidance_scale > 1 else "conditional"

    def evaluate(
        self,
        passes: Sequence[Pass],
        latents: Float[Tensor, "B C h w"],
        t: Tensor,
        *,
        halves: Halves | Literal["shared"] | None = None,
        maps_only: bool = False,
    ) -> Evaluation:
        """All passes on the latents of each picture; equal rows are computed once.

        Args:
            passes: what to evaluate.
            latents: already scaled for the model (`scheduler.scale_model_input`).
            t: timestep.
            halves: with or without the unconditional rows, or (`shared`) with the first pass's
                for all; as guidance needs it if None.
            maps_only: stop after the last recorded layer; no noise then.
        """
        own, order = rows_of(len(passes), halves or self.halves)
        acting = [self.acting(one) for one in passes]
        same: dict[_Row, int] = {}  # rows that differ, in the order of the first of each
        places = [
            same.setdefault(_row(acting[k], self._number(passes[k], half)), len(same))
            for k, half in own
        ]
        if len(same) < len(own):
            own = [own[places.index(n)] for n in range(len(same))]
            order = places if isinstance(order, slice) else [places[n] for n in order]
        adapters = [acting[k] for k, _ in own] * len(latents)
        keys = [*same] * len(latents)
        texts = torch.stack([passes[k].states[half] for k, half in own]).repeat(len(latents), 1, 1)
        rows = latents.repeat_interleave(len(own), 0)
        size = self.mode.pass_batch or len(rows)
        noises, maps = [], []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            self.calls.add(len(rows[part]), Work(
                tuple(_names(own) for own in adapters[part]), 1, 1, False, maps_only,
                differentiated(latents), fresh=self._texts.fresh(keys[part]),
            ))  # fmt: skip
            active = partial(
                both, partial(self.composition.unet_hooks.rows, adapters[part]),
                partial(self._texts.reading, keys[part]),
            )  # fmt: skip
            again = partial(both, active, self._recorder.deaf)
            with active():
                if maps_only:
                    with self._recorder.stopping_early():
                        self.denoise(rows[part], t, texts[part], again)
                else:
                    noises.append(self.denoise(rows[part], t, texts[part], again))
            maps.append(self._recorder.take())
        found = (None if maps_only else torch.cat(noises)), torch.cat(maps)
        noise, maps = (
            None if x is None else x.unflatten(0, (len(latents), len(own)))[:, order].unflatten(
                1, (len(passes), -1)
            ) for x in found
        )  # fmt: skip
        return Evaluation(noise, maps)

    def denoise(
        self, rows: Float[Tensor, "R C h w"], t: Tensor, text: Float[Tensor, "R T D"],
        again: Again, following: Bool[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R C h w"]:  # fmt: skip
        """One call of the denoiser, with the pictures that are followed at this time of the run.

        Args:
            rows, t, text: of the call.
            again: what is active around it, and keeps no records.
            following: which rows follow them; all if not given.
        """
        features = self._conditions.at(self.fraction)
        if following is not None:
            features = tuple(f * following.view(-1, 1, 1, 1).to(f) for f in features)
        spare = self.mode.checkpointing and differentiated(rows)
        with checkpointing(self.backbone.unet, again) if spare else nullcontext():
            return self.backbone.denoise(rows, t, text, features)

    def at(self, fraction: float) -> None:
        """Say which fraction of the run is over, for what acts only for a while."""
        self.fraction = fraction

    def acting(self, one: Pass) -> list[Weighted]:
        """The pass's adapters with their weights at this time of the run."""
        schedules, found = self.composition.schedules, []
        for adapter, weight in one.adapters:
            if adapter.name in schedules:
                factor = schedules[adapter.name](self.fraction)
                if not factor:
                    continue  # it does not act now; a DoRA at weight 0 would
                weight = weight * factor
            found.append((adapter, weight))
        return found

    def _number(self, one: Pass, half: int) -> int:
        """The same for equal texts."""
        key = id(one.states), half
        if key not in self._numbers:
            text = one.states[half]
            alike = (
                number for (_, other), (states, number) in self._numbers.items()
                if not text.is_meta and states[other].shape == text.shape
                and torch.equal(states[other], text)
            )  # fmt: skip
            # The states are kept, so that no others can have their id.
            self._numbers[key] = one.states, next(alike, len(self._numbers))
        return self._numbers[key][1]

    def gradient(
        self,
        passes: Sequence[Pass],
        latents: Float[Tensor, "B C h w"],
        scale: Callable[[Tensor], Tensor],
        t: Tensor,
        loss: Loss,
        *,
        halves: Halves = "conditional",
        mode: GradientMode = "auto",
        noise: bool = False,
    ) -> Gradient:
        """The loss of each picture's maps, and its gradient with respect to its latents.

        Args:
            passes: whose maps the loss sees.
            latents: where the gradient is taken.
            scale: the scheduler's `scale_model_input` at this step.
            t: timestep.
            loss: of the maps.
            halves: which rows the maps come from.
            mode: one graph for everything, one pass of one picture at a time, or whichever suits
                the size.
            noise: also give what `evaluate` gives; the forward passes are then not cut short.
        """
        count = len(latents) * len(passes) * (2 if halves == "both" else 1)
        most = self.mode.graph_rows or math.inf
        if mode == "auto":
            cells = latents.shape[-1] * latents.shape[-2]
            small = count * cells <= LARGEST_JOINT_GRAPH and count <= most
            mode = "together" if small else "one_by_one"
        if mode == "together" and count > most:
            raise MethodError(
                f"gradient=together needs a graph of {count} rows, and memory is for {most:g}; "
                "leave it at auto"
            )
        self.calls.backward_rows += count
        latents = latents.detach()

        def seen(some: Sequence[Pass], z: Tensor, whole: bool) -> Evaluation:
            return self.evaluate(some, scale(z), t, halves=halves, maps_only=not whole)

        if mode == "together":
            with torch.enable_grad():
                leaf = latents.clone().requires_grad_()
                out = seen(passes, leaf, noise)
                values = loss(_maps(out))
                gradient = torch.autograd.grad(values.sum(), leaf)[0]
            return Gradient(values.detach(), gradient, out.detached() if noise else None)
        with torch.no_grad():
            parts = [[seen([p], z, noise) for p in passes] for z in latents.split(1)]
            maps = torch.stack([torch.cat([_maps(one)[0] for one in own]) for own in parts])
            out = None
            if noise:
                found = [torch.cat([_noise(one)[0] for one in own]) for own in parts]
                out = Evaluation(torch.stack(found), maps)
        with torch.enable_grad():
            values = loss(maps.requires_grad_())
            pull = torch.autograd.grad(values.sum(), maps)[0]
        total = torch.zeros_like(latents)
        for b, own in enumerate(latents.split(1)):
            for k, one in enumerate(passes):
                with torch.enable_grad():
                    leaf = own.clone().requires_grad_()
                    found = _maps(seen([one], leaf, False))[0, 0]
                total[b] += torch.autograd.grad(found, leaf, pull[b, k])[0][0]
        return Gradient(values.detach(), total, out.detached() if out else None)


def rows_of(
    passes: int, halves: Halves | Literal["shared"]
) -> tuple[list[tuple[int, int]], list[int] | slice]:
    """(pass, half) of each row of a picture, and the rows in the order pass by pass."""
    if halves == "shared":
        rows = [(0, 0), *((k, 1) for k in range(passes))]
        return rows, [row for k in range(passes) for row in (0, 1 + k)]
    return [(k, half) for k in range(passes) for half in _HALVES[halves]], slice(None)


_HALVES = {"both": (0, 1), "conditional": (1,)}


def differentiated(latents: Tensor) -> bool:
    """Whether a graph is being made from these latents."""
    return torch.is_grad_enabled() and latents.requires_grad


@contextmanager
def both(*contexts: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """Some contexts in one."""
    with ExitStack() as stack:
        for one in contexts:
            stack.enter_context(one())
        yield


_Row = tuple[tuple[tuple[str, float], ...], int]
"""What a row depends on beside the latents: adapters with their weights, and a text."""


def _row(adapters: Sequence[Weighted], text: int) -> _Row:
    return tuple((adapter.name, weight) for adapter, weight in adapters), text


def _names(adapters: Sequence[Weighted]) -> tuple[str, ...]:
    return tuple(adapter.name for adapter, _ in adapters)


def _maps(evaluation: Evaluation) -> Tensor:
    assert evaluation.maps is not None
    return evaluation.maps


def _noise(evaluation: Evaluation) -> Tensor:
    assert evaluation.noise is not None
    return evaluation.noise


@contextmanager
def executing(
    composition: Composition, mode: MemoryMode | None = None, conditions: Conditions | None = None
) -> Iterator[Executor]:
    """An executor that records the backbone's reading sites; processors come back on exit.

    Args:
        composition: what is evaluated.
        mode: all at once if not given.
        conditions: pictures that every call follows.
    """
    with recording(composition.backbone.sites) as recorder:
        yield Executor(composition, recorder, mode or MemoryMode(), conditions)
