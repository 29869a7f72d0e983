"""Keys and values of texts, which do not change over the steps: each is computed once.

`R` rows of a call, `T` tokens, `C` channels.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..backbone.sites import cross_attention_sites

MOST_ROWS = 64
"""So many rows are kept; those of the oldest calls go first."""


class TextLayers:
    """The layers of a denoiser that read texts, which answer from memory where they can.

    Args:
        unet: the model; it is changed within `reading` only.
        keep: whether anything is kept.
    """

    def __init__(self, unet: nn.Module, keep: bool = True):
        self._sites = [site.module for site in cross_attention_sites(unet)] if keep else []  # type: ignore[arg-type]
        self._own = {
            (site, name): _Remembering(layer)
            for site in self._sites for name in ("to_k", "to_v")
            if isinstance(layer := getattr(site, name), nn.Module)
        }  # fmt: skip
        self._known: dict[tuple[Hashable, ...], dict[nn.Module, Tensor]] = {}

    def fresh(self, rows: Sequence[Hashable]) -> bool:
        """Whether the next call on such rows computes their keys and values."""
        return tuple(rows) not in self._known

    @contextmanager
    def reading(self, rows: Sequence[Hashable]) -> Iterator[None]:
        """Within this context the model is called on such rows.

        Args:
            rows: for each what its keys and values depend on: its text and the adapters on it.
        """
        key = tuple(rows)
        while key not in self._known and sum(map(len, [*self._known, key])) > MOST_ROWS:
            if not self._known:
                break
            del self._known[next(iter(self._known))]
        known = self._known.setdefault(key, {})
        for (site, name), layer in self._own.items():
            layer.known = known
            setattr(site, name, layer)
        try:
            yield
        finally:
            for (site, name), layer in self._own.items():
                setattr(site, name, layer.layer)


class _Remembering(nn.Module):
    """A layer that computes nothing twice."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.known: dict[nn.Module, Tensor] = {}

    def forward(self, states: Float[Tensor, "R T D"]) -> Float[Tensor, "R T C"]:
        if self.layer not in self.known:
            with torch.no_grad():  # neither texts nor weights are differentiated
                self.known[self.layer] = self.layer(states)
        return self.known[self.layer]
