"""Recording cross-attention where it is wanted, and nowhere else.

Fused attention never returns probabilities, so the sites that are read get a processor that
computes them beside the library's own output; every other site keeps its processor. Sites are
found by type and place in the U-Net, never by the name of a class or parameter.

The gradient of the maps needs no layer after the last recorded one, so a forward pass can stop
there: the recorder raises `LastSiteReached`, which only `stopping_early` sees.

`B` batch, `H` heads, `L` = h*w positions, `T` tokens, `C` channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor

from .attention import replaced


class LastSiteReached(Exception):
    """Everything that is recorded has been computed; the rest of the forward pass is not needed."""


def attention_probabilities(
    attn: Attention, hidden_states: Float[Tensor, "B L C"], context: Float[Tensor, "B T D"]
) -> Float[Tensor, "B L T"]:
    """Softmax over tokens of queries against keys, averaged over heads; rows sum to 1."""
    if attn.norm_cross:
        context = attn.norm_encoder_hidden_states(context)
    query = attn.head_to_batch_dim(attn.to_q(hidden_states))
    assert attn.to_k is not None  # a cross-attention layer always has one
    key = attn.head_to_batch_dim(attn.to_k(context))
    scores = attn.get_attention_scores(query, key)
    return scores.unflatten(0, (-1, attn.heads)).mean(1)


class RecordingProcessor(AttnProcessor2_0):
    """The library's processor that also hands the attention probabilities (B, L, T) to `sink`."""

    def __init__(self, sink: Callable[[Tensor], None]):
        super().__init__()
        self.sink = sink

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None,
        *args, **kwargs,
    ):  # fmt: skip
        if encoder_hidden_states is not None:
            self.sink(attention_probabilities(attn, hidden_states, encoder_hidden_states))
        return super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
        )


class AttentionRecorder:
    """Collects the attention probabilities of one forward pass over the chosen sites."""

    def __init__(self, sites: int):
        self.sites, self.stop = sites, False
        self._records: list[Tensor] = []

    def put(self, record: Float[Tensor, "B L T"]) -> None:
        """Keep the map of one site."""
        self._records.append(record)
        if self.stop and len(self._records) == self.sites:
            raise LastSiteReached

    def take(self) -> Float[Tensor, "B L T"]:
        """Mean over the sites recorded since the last call (all of the same L and T)."""
        records, self._records = self._records, []
        total = records[0]
        for record in records[1:]:
            total = total + record
        return total / len(records)

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Within this context nothing is recorded, and no forward pass ends early."""
        former = self._records, self.stop
        self._records, self.stop = [], False
        try:
            yield
        finally:
            self._records, self.stop = former

    @contextmanager
    def stopping_early(self) -> Iterator[None]:
        """End the forward pass inside this context once the last site is recorded."""
        self.stop = True
        try:
            with suppress(LastSiteReached):
                yield
        finally:
            self.stop = False


@contextmanager
def recording(
    sites: Sequence[Attention],
    kind: Callable[[Callable[[Tensor], None]], Any] = RecordingProcessor,
) -> Iterator[AttentionRecorder]:
    """Record the given cross-attention sites; the former processors come back on exit.

    Args:
        sites: to be recorded.
        kind: makes the processor, given where it puts what it records.
    """
    recorder = AttentionRecorder(len(sites))
    with replaced(sites, kind(recorder.put)):
        yield recorder
