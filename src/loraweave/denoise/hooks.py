"""Adding LoRAs to some rows of a batch, and to nothing else.

A pass is a list of (adapter, weight), and several passes share one denoiser call. PEFT's mixed
batch allows one adapter per row and has to be put into the model first; so the residuals are
added here, by forward hooks on the plain linear and convolution layers. The model is never
changed: taking the hooks away is all the undoing there is, and adapters that the user has loaded
through diffusers keep acting on all rows, as part of the base.

A LoRA may be confined to a part of the picture: then its residual is multiplied by a mask, resized
to the layer's own resolution by area. Layers without a place of their own need more: the time
projection of a residual block is added before that block's second norm instead; keys and values of
cross-attention belong to the text and are left to `denoise/confined.py`; other layers without
places are an error.

`R` rows of the batch, (H, W) cells of the latent.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..errors import MethodError
from ..lora.adapter import Adapter
from ..lora.updates import LowRank, Update
from .stacked import Stack

Component = Literal["unet", "text_encoder"]
Weighted = tuple[Adapter, float]


@dataclass(frozen=True)
class _Share:
    """Which rows get an adapter, with which weight, and where: (R',), (R',), (R', H, W).

    Attributes:
        whole: all rows, in some places or with one weight.
    """

    rows: Tensor
    weights: Tensor
    whole: bool
    where: Tensor | None = None

    @property
    def everywhere(self) -> bool:
        """All rows with one weight, in all places."""
        return self.whole and self.where is None


@dataclass(frozen=True)
class _Acting:
    """What acts on the rows of a call, and what follows from it for layers.

    Attributes:
        count: of the rows.
        shares: by the adapters' names.
        confined: as it was given.
        covers: masks by adapter and resolution.
        gates: see `_gate`.
    """

    count: int
    shares: dict[str, _Share]
    confined: Mapping[str, Tensor] | None
    covers: dict[tuple, Tensor]
    gates: dict[tuple, Tensor]


MOST_KNOWN = 64
"""So many sets of rows are remembered; a run asks for a few again and again."""


class AdapterHooks:
    """Hooks on one model; `rows` says which adapters the rows of the next calls get."""

    def __init__(
        self, model: nn.Module, component: Component, adapters: Sequence[Adapter],
        device: torch.device | None = None,
    ):  # fmt: skip
        parameter = next(model.parameters())
        self._device = device or parameter.device
        self._dtype = torch.promote_types(parameter.dtype, torch.float32)
        self._acting = _Acting(0, {}, None, {}, {})
        self._known_rows: dict[tuple, _Acting] = {}
        self._stacks: dict[tuple, Stack] = {}
        self._handles = []
        self._known = {adapter.name for adapter in adapters}
        self._text_layers = {
            id(layer) for attn in _cross_attentions(model) for layer in (attn.to_k, attn.to_v)
        }
        self._apart: frozenset[int] = frozenset()
        self._updates: dict[int, dict[str, Update]] = {}
        self._late: dict[str, list[tuple[str, _Share, Tensor]]] = {}
        by_path: dict[str, dict[str, Update]] = {}
        for adapter in adapters:
            for path, update in getattr(adapter, component).items():
                by_path.setdefault(path, {})[adapter.name] = update
        try:
            for path, updates in by_path.items():
                layer = _layer(model, path)
                self._updates[id(layer)] = updates
                self._handles.append(_hook(layer, path, updates, self))
                if path.endswith(TIME_PROJECTION):
                    self._handles.append(_late_hook(model, path, self))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def rows(
        self, passes: Sequence[Sequence[Weighted]], confined: Mapping[str, Tensor] | None = None,
        apart: Collection[nn.Module] = (),
    ) -> Iterator[None]:  # fmt: skip
        """Within this context row r of every call gets the sum of `passes[r]`.

        Args:
            passes: adapters of each row.
            confined: by name of an adapter (R, H, W), what its residual is multiplied by at each
                cell of the latent; adapters that it does not name act everywhere.
            apart: layers in which the caller adds what confined adapters
                add, see `confined_deltas`.

        Raises:
            MethodError: an adapter that these hooks were not made for.
        """
        former = self._acting, self._late, self._apart
        self._acting, self._late = self._acting_on(passes, confined), {}
        self._apart = frozenset(id(layer) for layer in apart)
        try:
            yield
        finally:
            self._acting, self._late, self._apart = former

    def _acting_on(
        self, passes: Sequence[Sequence[Weighted]], confined: Mapping[str, Tensor] | None
    ) -> "_Acting":
        """What acts on the rows; found again if it was asked for before."""
        key = tuple(tuple((adapter.name, weight) for adapter, weight in own) for own in passes)
        known = self._known_rows.get(key)
        if known is not None and known.confined is confined:
            return known
        by_name: dict[str, dict[int, float]] = {}
        for row, adapters in enumerate(passes):
            for adapter, weight in adapters:
                if adapter.name not in self._known:
                    raise MethodError(f"the adapter {adapter.name!r} was not prepared for this run")
                weights = by_name.setdefault(adapter.name, {})
                weights[row] = weights.get(row, 0.0) + weight
        shares = {}
        for name, weights in by_name.items():
            where = confined.get(name) if confined else None
            whole, alike = len(weights) == len(passes), len(set(weights.values())) == 1
            shares[name] = _Share(
                torch.tensor(list(weights), device=self._device),
                torch.tensor(list(weights.values()), device=self._device, dtype=self._dtype),
                whole and (alike or where is not None),
                None if where is None else where[list(weights)],
            )
        if len(self._known_rows) >= MOST_KNOWN:
            self._known_rows.clear()
        if confined is not None:  # masks at every resolution are large: those of one set are kept
            self._known_rows = {
                key: one for key, one in self._known_rows.items()
                if one.confined is None or one.confined is confined
            }  # fmt: skip
        self._known_rows[key] = found = _Acting(len(passes), shares, confined, {}, {})
        return found

    def confined_deltas(self, layer: nn.Module, x: Tensor, plain: Tensor) -> dict[str, Tensor]:
        """By name what each confined adapter would add to `plain = layer(x)` at weight 1, if it
        acted on all of it."""
        layer = getattr(layer, "base_layer", layer)  # under a PEFT wrapper of the user's own
        updates = self._updates.get(id(layer), {})
        one = plain.new_ones(1, dtype=self._dtype)
        confined = [name for name, share in self._acting.shares.items() if share.where is not None]
        return {
            name: updates[name].to(x.device, x.dtype).residual(x, plain, layer, one)
            for name in confined if name in updates
        }  # fmt: skip

    def add(
        self, layer: nn.Module, path: str, updates: Mapping[str, Update], x: Tensor, out: Tensor
    ):
        """The layer's output with the residuals of its rows added."""
        shares = [
            (n, updates[n], share) for n, share in self._acting.shares.items() if n in updates
        ]
        if not shares:
            return None  # leaves the output as it is
        if len(x) != self._acting.count:
            raise MethodError(f"a batch of {len(x)} rows where {self._acting.count} were announced")
        plain = out  # what DoRA scales: the layer's own output, without the other adapters
        if id(layer) in self._text_layers or id(layer) in self._apart:  # see denoise/confined.py
            shares = [item for item in shares if item[2].where is None]
        if not path.endswith(TIME_PROJECTION):
            together = [item for item in shares if item[2].whole and isinstance(item[1], LowRank)]
            if together:
                shares = [item for item in shares if item not in together]
                out = self._add_together(layer, path, together, x, out)
        for name, update, share in shares:
            update = update.to(x.device, x.dtype)  # PEFT may keep adapters in float32
            if share.everywhere:
                out = out + update.residual(x, plain, layer, share.weights[:1])
                continue
            own_x, own_plain = (t.index_select(0, share.rows) for t in (x, plain))
            delta = update.residual(own_x, own_plain, layer, share.weights)
            if share.where is not None and path.endswith(TIME_PROJECTION):
                self._late.setdefault(path, []).append((name, share, delta))
                continue
            if share.where is not None:
                delta = delta * self._cover(name, path, share.where, out).to(out.dtype)
            out = out.index_add(0, share.rows, delta)
        return out

    def _add_together(
        self, layer: nn.Module, path: str, shares: Sequence[tuple[str, Update, _Share]],
        x: Tensor, out: Tensor,
    ) -> Tensor:  # fmt: skip
        """What LoRAs add that act on all rows, each where it may."""
        names = tuple(name for name, *_ in shares)
        key = path, names, x.dtype
        if key not in self._stacks:
            updates = [update for _, update, _ in shares]
            self._stacks[key] = Stack.of(updates, x.device, x.dtype)  # type: ignore[arg-type]
        stack = self._stacks[key]
        return stack.added(x, out, layer, self._gate(path, names, stack, out))

    def _gate(self, path: str, names: tuple[str, ...], stack: Stack, out: Tensor) -> Tensor:
        """(r,), (R, L, r) or (R, r, h, w): weights and places of some adapters' rank channels."""
        shares = [self._acting.shares[name] for name in names]
        confined = any(share.where is not None for share in shares)
        channel = 1 if out.ndim == 4 and confined else -1
        places = [size for k, size in enumerate(out.shape) if k != channel % out.ndim]
        key = names, stack.ranks, stack.scales, out.dtype, *(places if confined else ())
        if key not in self._acting.gates:
            parts = []
            for name, rank, scale, share in zip(names, stack.ranks, stack.scales, shares):
                part = (share.weights * scale).to(out.dtype)
                size = [rank]
                if confined:
                    size = [*places[: channel % out.ndim], rank, *places[channel % out.ndim :]]
                    part = part.view(-1, *(1,) * (out.ndim - 1))
                else:
                    part = part[:1]
                if share.where is not None:
                    part = part * self._cover(name, path, share.where, out).to(out.dtype)
                parts.append(part.expand(size))
            self._acting.gates[key] = torch.cat(parts, channel)
        return self._acting.gates[key]

    def add_late(self, path: str, x: Tensor) -> Tensor:
        """A residual block's features with what confined adapters add through its time layer."""
        for name, share, delta in self._late.pop(path, []):
            assert share.where is not None
            cover = self._cover(name, path, share.where, x).to(x.dtype)
            x = x.index_add(0, share.rows, delta[:, :, None, None] * cover)
        return x

    def _cover(self, name: str, path: str, where: Tensor, out: Tensor) -> Tensor:
        """(R', 1, h, w) or (R', h*w, 1): the adapter's mask at the resolution of a layer."""
        if out.ndim == 4:
            size = out.shape[-2], out.shape[-1]
        elif out.ndim == 3 and (found := level_size(where.shape[-2:], out.shape[1])):
            size = found
        else:
            raise no_place(name, path)
        key = (name, *size)
        if key not in self._acting.covers:
            self._acting.covers[key] = resized_by_area(where, size)
        cover = self._acting.covers[key]
        return cover[:, None] if out.ndim == 4 else cover.flatten(1)[..., None]


TIME_PROJECTION = "time_emb_proj"
PLACELESS = "time_embedding."
"""Layers that the whole picture shares."""


def no_place(name: str, path: str) -> MethodError:
    """For a LoRA that should act on a part of the picture, and changes what has none."""
    return MethodError(
        f"the LoRA {name!r} changes {path}, which has no place in the picture, so it cannot be "
        "confined to one; use merge, or clora with frozen=passes (its default), for it"
    )


def resized_by_area(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(R, H, W) -> (R, h, w), each cell the mean of what it covers."""
    return F.interpolate(masks[:, None], size, mode="area")[:, 0]


def level_size(size: Sequence[int], positions: int) -> tuple[int, int] | None:
    """The level of the denoiser that has so many positions; each halves the former, rounded up."""
    h, w = size
    while h * w > positions and max(h, w) > 1:
        h, w = -(-h // 2), -(-w // 2)
    return (h, w) if h * w == positions else None


def _cross_attentions(model: nn.Module) -> list[Attention]:
    found = (m for m in model.modules() if isinstance(m, Attention))
    return [attn for attn in found if attn.is_cross_attention]


def _hook(layer: nn.Module, path: str, updates: dict[str, Update], owner: AdapterHooks):
    def add(module: nn.Module, args: tuple, out: Tensor):
        return owner.add(module, path, updates, args[0], out)

    return layer.register_forward_hook(add)


def _late_hook(model: nn.Module, path: str, owner: AdapterHooks):
    def add(module: nn.Module, args: tuple):
        return (owner.add_late(path, args[0]), *args[1:])

    block = model.get_submodule(path.rpartition(".")[0])
    return block.get_submodule("norm2").register_forward_pre_hook(add)


def _layer(model: nn.Module, path: str) -> nn.Module:
    """The layer itself, also under a PEFT wrapper that the user's own adapters need."""
    module = model.get_submodule(path)
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else module


@contextmanager
def adapter_hooks(
    model: nn.Module, component: Component, adapters: Sequence[Adapter],
    device: torch.device | None = None,
) -> Iterator[AdapterHooks]:  # fmt: skip
    """Hooks for the duration of a run.

    Args:
        model: gets them.
        component: which part of the adapters it is.
        adapters: all that may act.
        device: where the model runs; its own if not given. Weights may be elsewhere until a layer
            is called.
    """
    hooks = AdapterHooks(model, component, adapters, device)
    try:
        yield hooks
    finally:
        hooks.remove()
