"""Pictures that a scene is drawn after, as what the denoiser adds to its down blocks.

The features of a picture do not change over the steps: they are weighted once, for every level by
a map of its size, and summed over the pictures that are followed at a time of the run.

`N` regions, (H, W) cells of the latent, (h, w) of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .isolated import level_regions


@dataclass(frozen=True)
class Followed:
    """One picture.

    Attributes:
        features: (1, C, h, w) for every level, weighted.
        until: fraction of the run at which they end.
    """

    features: tuple[Tensor, ...]
    until: float


class Conditions:
    """What is added to the denoiser at a time of the run."""

    def __init__(self, followed: Sequence[Followed] = ()):
        self._followed = tuple(followed)
        self._sums: dict[tuple[int, ...], tuple[Tensor, ...]] = {}

    def at(self, fraction: float) -> tuple[Float[Tensor, "1 C h w"], ...]:
        """One tensor for every down block; none where no picture is followed.

        Args:
            fraction: of the run that is over, in [0, 1).
        """
        acting = tuple(n for n, one in enumerate(self._followed) if fraction < one.until)
        if acting not in self._sums:
            levels = zip(*(self._followed[n].features for n in acting))
            self._sums[acting] = tuple(torch.stack(level).sum(0) for level in levels)
        return self._sums[acting]


def weighted(
    features: Sequence[Float[Tensor, "1 C h w"]], weight: float,
    inside: Sequence[float] = (), regions: Float[Tensor, "N H W"] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Features times a weight that may be another one inside regions.

    Args:
        features: of every level.
        weight: outside of the regions.
        inside: the weight in each region; the largest where they overlap.
        regions: in [0, 1]; a place of a level belongs to those that cover half of it.
    """
    if regions is None or not len(inside):
        return tuple(level * weight for level in features)
    made = []
    for level in features:
        own = level_regions(regions, (level.shape[-2], level.shape[-1]))
        made.append(level * weight_map(weight, inside, own).to(level))
    return tuple(made)


def weight_map(
    weight: float, inside: Sequence[float], regions: Bool[Tensor, "N h w"]
) -> Float[Tensor, "h w"]:
    """The weight of every place; the largest one where regions overlap."""
    values = torch.tensor(inside, dtype=torch.float64, device=regions.device).view(-1, 1, 1)
    largest = torch.where(regions, values, -torch.inf).amax(0)
    return torch.where(regions.any(0), largest, weight)
