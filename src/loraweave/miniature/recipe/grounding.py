"""A term that makes the base model look where it draws.

Stable Diffusion's noun maps lie on their subjects after billions of pictures; a small model
trained for an hour solves its task with diffuse maps, and every attention method then measures
noise. The renderer knows where each subject is, so the base's training rewards the map of a noun,
and of the words before it that belong to it, for lying inside its subject's mask (TokenCompose,
arXiv 2312.03626, its token-level term) and for standing out from the other tokens there. Words
without a meaning are among them, because a LoRA's trigger is such a word.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer

from ..world import Caption

PRESENCE = {"noun": 0.25, "modifier": 0.1}
"""The least share of the attention inside its subject that a word should take."""


class PlainRecordingProcessor(AttnProcessor):
    """Cross-attention that also hands its probabilities (B, L, T), mean over heads, to `sink`.

    The fused processor's backward pass is slow on processors, and beside it the probabilities
    are computed a second time; here the output comes from the very probabilities recorded.
    """

    def __init__(self, sink: Callable[[Tensor], None]):
        super().__init__()
        self.sink = sink

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, *_, **__):
        context = encoder_hidden_states
        assert attn.to_k is not None
        assert attn.to_v is not None
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        probabilities = attn.get_attention_scores(query, key)
        self.sink(probabilities.unflatten(0, (-1, attn.heads)).mean(1))
        values = torch.bmm(probabilities, attn.head_to_batch_dim(attn.to_v(context)))
        project, drop = attn.to_out  # type: ignore[misc]
        return drop(project(attn.batch_to_head_dim(values)))


class Words(NamedTuple):
    """Every noun and its modifiers in a batch of captions.

    Attributes:
        samples: (N,), the caption of each.
        tokens: (N, T), which average over the word's tokens.
        subjects: (N, M), 1 for those that the word stands for ("two cats").
        presence: (N,), see `PRESENCE`.
    """

    samples: Tensor
    tokens: Tensor
    subjects: Tensor
    presence: Tensor


def words_of(tokenizer: CLIPTokenizer, captions: Sequence[Caption], most: int) -> Words:
    """The words of some captions with at most so many subjects."""
    encoded = tokenizer(
        [c.text for c in captions], padding="max_length", truncation=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    samples, tokens, subjects, presence = [], [], [], []
    for b, caption in enumerate(captions):
        offsets = encoded["offset_mapping"][b]
        for span, members, kind in _words(caption):
            hits = [t for t, (a, z) in enumerate(offsets) if a < span[1] and z > span[0]]
            if not hits:
                continue
            row, meant = torch.zeros(len(offsets)), torch.zeros(most)
            row[hits], meant[members] = 1 / len(hits), 1
            samples.append(b)
            tokens.append(row)
            subjects.append(meant)
            presence.append(PRESENCE[kind])
    return Words(
        torch.tensor(samples), torch.stack(tokens), torch.stack(subjects), torch.tensor(presence)
    )


def places_of(words: Words, masks: Float[Tensor, "B M h w"]) -> Float[Tensor, "N L"]:
    """Where the subjects of each word are, in [0, 1]."""
    meant = words.subjects[:, :, None, None] * masks[words.samples]
    return meant.sum(1).clamp(max=1).flatten(1)


def _words(caption: Caption) -> Iterator[tuple[tuple[int, int], list[int], str]]:
    """(span, subjects, kind) of every word that stands for subjects."""
    for span in sorted({s for s in caption.nouns if s is not None}):
        yield span, [i for i, s in enumerate(caption.nouns) if s == span], "noun"
    for i, spans in enumerate(caption.modifiers):
        for span in spans:
            yield span, [i], "modifier"


def grounding_loss(
    maps: Float[Tensor, "B L T"], samples: Tensor, tokens: Tensor, places: Tensor, presence: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss, and the mean share of the words' attention that lies inside their subjects."""
    word = torch.einsum("nlt,nt->nl", maps[samples], tokens)
    inside = (word * places).sum(1)
    share = inside / word.sum(1).clamp(min=1e-6)
    present = inside / places.sum(1).clamp(min=1e-6)
    loss = (1 - share).square() + 2 * (presence - present).clamp(min=0) / presence
    return loss.mean(), share.mean()
