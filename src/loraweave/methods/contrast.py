"""The contrast of attention maps (CLoRA, equation 2), for the methods that have it.

`E` embeddings, `L` positions.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..denoise.composition import Pass


def concept_groups(
    passes: list[Pass], names: list[str], first: int = 1
) -> list[tuple[int, int, int]]:
    """(pass, token, label) of every embedding of the loss.

    Group j: the noun of concept j in every pass, and its trigger in pass j + `first`
    (section 3.2).
    """
    groups = []
    for label, name in enumerate(names):
        for k, one in enumerate(passes):
            own = one.words.of(name) if k == label + first else one.words.nouns[name]
            groups += [(k, token, label) for token in own]
    return groups


def info_nce(
    embeddings: Float[Tensor, "E L"], labels: Sequence[int], temperature: float
) -> Float[Tensor, ""]:
    """Mean over ordered positive pairs of -log(e^(s_ap/tau) / (e^(s_ap/tau) + sum_n e^(s_an/tau))).

    `s` is the cosine; negatives are all embeddings of other labels than the anchor's, and the
    other positives are not in the denominator. Zero if there is no positive or no negative pair.
    """
    unit = F.normalize(embeddings, dim=1)
    scores = unit @ unit.T / temperature  # (E, E)
    same, anchors, positives = _pairs(tuple(labels), embeddings.device)
    if not len(anchors) or len(set(labels)) < 2:
        return (scores * 0).sum()
    negatives = scores.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)  # (E, 1)
    terms = torch.logaddexp(scores, negatives) - scores
    return terms[anchors, positives].mean()


@lru_cache(maxsize=8)
def _pairs(labels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Which embeddings share a label, (E, E), and the ordered pairs that do.

    Found once on the host: on a GPU every look at such a matrix would wait for all work before.
    """
    own = torch.tensor(labels)
    same = own[:, None] == own[None, :]
    anchors, positives = (same & ~torch.eye(len(own), dtype=torch.bool)).nonzero().T
    return same.to(device), anchors.to(device), positives.to(device)
