"""Several concepts of one noun: to each of them an instance of its own.

The words of "a cat and a cat" look at both cats. Contrast alone parts such maps within each cat
(one word takes the bodies, the other the outlines), so that both cats become mixtures. Instances
are apart in space: the places that the words claim are clustered by position, weighted by
attention, and every concept gets the cluster that its own words prefer. Clusters are followed from
step to step, so that nobody changes places.

`N` concepts, `K` of them of one noun, `M` claimed places, (h, w) positions.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ROUNDS = 20


class Instances:
    """Who has which instance, in every picture of a run.

    Attributes:
        groups: indices of the concepts that share a noun.
    """

    def __init__(self, nouns: Sequence[str]):
        alike = [[k for k, noun in enumerate(nouns) if noun == one] for one in dict.fromkeys(nouns)]
        self.groups = [group for group in alike if len(group) > 1]
        self._centres: dict[tuple[int, int], Tensor] = {}

    def shared_out(
        self, picture: int, masks: Float[Tensor, "N h w"], strengths: Float[Tensor, "N h w"]
    ) -> Float[Tensor, "N h w"]:
        """The masks, 0 or 1, without overlap between concepts of one noun.

        Args:
            picture: its number in the batch; each has its own instances.
            masks: where each concept's words are strong enough.
            strengths: how strong they are, comparable between concepts.
        """
        masks = masks.clone()
        strengths = strengths.to(torch.promote_types(strengths.dtype, torch.float32))
        for number, group in enumerate(self.groups):
            claimed = masks[group].any(0)
            if not claimed.any():
                continue
            places = claimed.nonzero().to(strengths.dtype)  # (M, 2)
            own = strengths[group][:, claimed]  # (K, M)
            centres = self._centres.get((picture, number))
            if centres is None:
                centres = clustered(places, own.mean(0), len(group))
                centres = centres[_preferred(own, _nearest(places, centres))]
            else:
                centres = _settled(places, own.mean(0), centres)
            self._centres[picture, number] = centres
            owner = F.one_hot(_nearest(places, centres), len(group)).T.to(masks.dtype)
            masks[group] = torch.zeros_like(masks[group]).masked_scatter(
                claimed.expand(len(group), -1, -1), owner
            )
        return masks


def clustered(
    places: Float[Tensor, "M 2"], weights: Float[Tensor, " M"], count: int
) -> Float[Tensor, "K 2"]:
    """Centres of `count` clusters, the tightest of those that grow from several first seeds.

    First seeds are the heaviest place and the corners of the area; the next seeds are far from the
    former ones, so the result depends on nothing random.
    """
    corners = [
        int((places @ places.new_tensor(signs)).argmax())
        for signs in itertools.product((-1.0, 1.0), repeat=2)
    ]
    candidates = []
    for start in [int(weights.argmax()), *corners]:
        seeds = places[start][None]
        for _ in range(count - 1):
            away = torch.cdist(places, seeds).amin(1) ** 2
            seeds = torch.cat([seeds, places[(weights * away).argmax()][None]])
        candidates.append(_settled(places, weights, seeds))
    return min(
        candidates,
        key=lambda centres: float(weights @ torch.cdist(places, centres).amin(1) ** 2),
    )


def _settled(
    places: Float[Tensor, "M 2"], weights: Float[Tensor, " M"], centres: Float[Tensor, "K 2"]
) -> Float[Tensor, "K 2"]:
    """Lloyd's algorithm with weights; a cluster that lost all its places stays where it was."""
    for _ in range(ROUNDS):
        heavy = F.one_hot(_nearest(places, centres), len(centres)).T * weights  # (K, M)
        total = heavy.sum(1, keepdim=True)
        tiny = torch.finfo(total.dtype).tiny
        moved = torch.where(total > 0, heavy @ places / total.clamp(min=tiny), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _nearest(places: Float[Tensor, "M 2"], centres: Float[Tensor, "K 2"]) -> Tensor:
    return torch.cdist(places, centres).argmin(1)


def _preferred(own: Float[Tensor, "K M"], cluster: Tensor) -> list[int]:
    """The cluster of each concept: one to each, with the most attention of their words inside."""
    inside = own @ F.one_hot(cluster, len(own)).to(own.dtype)
    share = inside / own.sum(1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
    return linear_sum_assignment(share.double().cpu().numpy(), maximize=True)[1].tolist()
