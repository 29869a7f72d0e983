"""Keys and values of texts, which do not change over the steps: each is computed once.

`R` rows of a call, `T` tokens, `C` channels.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
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

    def __init__(self, unet: UNet2DConditionModel, keep: bool = True):
        sites = cross_attention_sites(unet) if keep else ()
        self._own = {
            (site.module, name): _Remembering(getattr(site.module, name))
            for site in sites for name in ("to_k", "to_v")
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
        known = self._known.setdefault(tuple(rows), {})
        while len(self._known) > 1 and sum(map(len, self._known)) > MOST_ROWS:
            del self._known[next(iter(self._known))]  # never this one: a new one is the last
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
