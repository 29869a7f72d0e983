"""What every attention processor of this package needs.

`R` rows, `L` positions, `C` channels, `d` channels of a head.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor

from ..errors import MethodError


@contextmanager
def replaced(sites: Sequence[Attention], processor: Any) -> Iterator[None]:
    """All sites with one processor; the former ones come back on exit."""
    former = [site.processor for site in sites]
    try:
        for site in sites:
            site.processor = processor
        yield
    finally:
        for site, old in zip(sites, former):
            site.processor = old


class HandOver:
    """A processor that asks somebody else: `attend(layer, states)`, whatever else is given."""

    def __init__(self, attend: Callable[[Attention, Tensor], Tensor]):
        self.attend = attend

    def __call__(self, attn, hidden_states, *_args, **_kwargs) -> Tensor:
        return self.attend(attn, hidden_states)


def check_plain(attn: Attention, kind: str) -> None:
    """Raise MethodError for a layer with norms that the plain computation leaves out."""
    if any((attn.norm_q, attn.norm_k, attn.spatial_norm, attn.group_norm)):
        raise MethodError(f"this model's {kind} has norms that are not supported")


def in_heads(attn: Attention, x: Float[Tensor, "R L C"]) -> Float[Tensor, "R heads L d"]:
    """Queries, keys or values of every head."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def put_together(
    attn: Attention, out: Float[Tensor, "R heads L d"], states: Float[Tensor, "R L C"]
) -> Float[Tensor, "R L C"]:
    """What the layer gives: the heads' results through its output projection."""
    assert attn.to_out is not None
    mixed = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
    if attn.residual_connection:
        mixed = mixed + states
    return mixed / attn.rescale_output_factor
