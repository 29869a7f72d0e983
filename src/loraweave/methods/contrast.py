"""The contrast of attention maps (CLoRA, equation 2), for the methods that have it.

`E` embeddings, `L` positions.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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
    embeddings: Float[Tensor, "E L"], labels: Int[Tensor, " E"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over ordered positive pairs of -log(e^(s_ap/tau) / (e^(s_ap/tau) + sum_n e^(s_an/tau))).

    `s` is the cosine; negatives are all embeddings of other labels than the anchor's, and the
    other positives are not in the denominator. Zero if there is no positive or no negative pair.
    """
    unit = F.normalize(embeddings, dim=1)
    scores = unit @ unit.T / temperature  # (E, E)
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not positive.any() or same.all():
        return (scores * 0).sum()
    negatives = scores.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)  # (E, 1)
    terms = torch.logaddexp(scores, negatives) - scores
    return terms[positive].mean()
