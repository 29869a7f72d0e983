"""Adding LoRAs to some rows of a batch, and to nothing else.

A pass is a list of (adapter, weight), and several passes share one denoiser call. PEFT's mixed
batch allows one adapter per row and has to be put into the model first; so the residuals are
added here, by forward hooks on the plain linear and convolution layers. The model is never
changed: taking the hooks away is all the undoing there is, and adapters that the user has loaded
through diffusers keep acting on all rows, as part of the base.

`R` rows of the batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import MethodError
from ..lora.adapter import Adapter
from ..lora.updates import Update

Component = Literal["unet", "text_encoder"]
Weighted = tuple[Adapter, float]


@dataclass(frozen=True)
class _Share:
    """Which rows get an adapter, and with which weight: (R',) and (R',)."""

    rows: Tensor
    weights: Tensor
    everywhere: bool


class AdapterHooks:
    """Hooks on one model; `rows` says which adapters the rows of the next calls get."""

    def __init__(self, model: nn.Module, component: Component, adapters: Sequence[Adapter]):
        parameter = next(model.parameters())
        self._device = parameter.device
        self._dtype = torch.promote_types(parameter.dtype, torch.float32)
        self._shares: dict[str, _Share] = {}
        self._count = 0
        self._handles = []
        self._known = {adapter.name for adapter in adapters}
        by_path: dict[str, dict[str, Update]] = {}
        for adapter in adapters:
            for path, update in getattr(adapter, component).items():
                by_path.setdefault(path, {})[adapter.name] = update
        try:
            for path, updates in by_path.items():
                self._handles.append(_hook(_layer(model, path), updates, self))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def rows(self, passes: Sequence[Sequence[Weighted]]) -> Iterator[None]:
        """Within this context row r of every call gets the sum of `passes[r]`.

        Raises:
            MethodError: an adapter that these hooks were not made for.
        """
        former = self._shares, self._count
        by_name: dict[str, dict[int, float]] = {}
        for row, adapters in enumerate(passes):
            for adapter, weight in adapters:
                if adapter.name not in self._known:
                    raise MethodError(f"the adapter {adapter.name!r} was not prepared for this run")
                weights = by_name.setdefault(adapter.name, {})
                weights[row] = weights.get(row, 0.0) + weight
        self._count = len(passes)
        self._shares = {
            name: _Share(
                torch.tensor(list(weights), device=self._device),
                torch.tensor(list(weights.values()), device=self._device, dtype=self._dtype),
                len(weights) == len(passes) and len(set(weights.values())) == 1,
            )
            for name, weights in by_name.items()
        }
        try:
            yield
        finally:
            self._shares, self._count = former

    def add(self, layer: nn.Module, updates: Mapping[str, Update], x: Tensor, out: Tensor):
        """The layer's output with the residuals of its rows added."""
        shares = [(updates[n], share) for n, share in self._shares.items() if n in updates]
        if not shares:
            return None  # leaves the output as it is
        if len(x) != self._count:
            raise MethodError(f"a batch of {len(x)} rows where {self._count} were announced")
        plain = out  # what DoRA scales: the layer's own output, without the other adapters
        for update, share in shares:
            update = update.to(x.device, x.dtype)  # PEFT may keep adapters in float32
            if share.everywhere:
                out = out + update.residual(x, plain, layer, share.weights[:1])
                continue
            own_x, own_plain = (t.index_select(0, share.rows) for t in (x, plain))
            out = out.index_add(
                0, share.rows, update.residual(own_x, own_plain, layer, share.weights)
            )
        return out


def _hook(layer: nn.Module, updates: dict[str, Update], owner: AdapterHooks):
    def add(module: nn.Module, args: tuple, out: Tensor):
        return owner.add(module, updates, args[0], out)

    return layer.register_forward_hook(add)


def _layer(model: nn.Module, path: str) -> nn.Module:
    """The layer itself, also under a PEFT wrapper that the user's own adapters need."""
    module = model.get_submodule(path)
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else module


@contextmanager
def adapter_hooks(
    model: nn.Module, component: Component, adapters: Sequence[Adapter]
) -> Iterator[AdapterHooks]:
    """Hooks for the duration of a run."""
    hooks = AdapterHooks(model, component, adapters)
    try:
        yield hooks
    finally:
        hooks.remove()
