"""A term that makes the base model look where it draws.

Stable Diffusion's noun maps lie on their subjects after billions of pictures; a small model
trained for an hour solves its task with diffuse maps, and every attention method then measures
noise. The renderer knows where each subject is, so the base's training rewards a noun's map for
lying inside its subject's mask (TokenCompose, arXiv 2312.03626, its token-level term) and for
standing out from the other tokens there.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer

from ..world import Caption

PRESENCE = 0.25  # a noun should take at least this share of the attention inside its subject


def noun_targets(
    tokenizer: CLIPTokenizer, captions: Sequence[Caption], masks: Float[Tensor, "B M h w"]
) -> tuple[Tensor, Tensor, Tensor]:
    """For every named noun of a batch: its sample (N,), tokens (N, T) and places (N, L).

    `tokens` averages over the noun's tokens; `places` is in [0, 1] and joins the masks of all
    subjects that the noun stands for ("two cats").
    """
    texts = [c.text for c in captions]
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_offsets_mapping=True)
    samples, tokens, places = [], [], []
    for b, caption in enumerate(captions):
        offsets = encoded["offset_mapping"][b]
        for span in sorted({s for s in caption.nouns if s is not None}):
            hits = [t for t, (a, z) in enumerate(offsets) if a < span[1] and z > span[0]]
            if not hits:
                continue
            row = torch.zeros(len(offsets))
            row[hits] = 1 / len(hits)
            members = [i for i, s in enumerate(caption.nouns) if s == span]
            samples.append(b)
            tokens.append(row)
            places.append(masks[b, members].sum(0).clamp(max=1).flatten())
    return torch.tensor(samples), torch.stack(tokens), torch.stack(places)


def grounding_loss(
    maps: Float[Tensor, "B L T"], samples: Tensor, tokens: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss, and the mean share of the nouns' attention that lies inside their subjects."""
    noun = torch.einsum("nlt,nt->nl", maps[samples], tokens)
    inside = (noun * places).sum(1)
    share = inside / noun.sum(1).clamp(min=1e-6)
    presence = inside / places.sum(1).clamp(min=1e-6)
    loss = (1 - share).square() + 2 * (PRESENCE - presence).clamp(min=0) / PRESENCE
    return loss.mean(), share.mean()
