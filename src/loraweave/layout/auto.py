"""Boxes from attention: a layout without a user.

`N` concepts, (h, w) positions.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from .boxes import Box, tight_box
from .instances import Instances
from .masks import exclusive

THRESHOLD = 0.3
"""Of a map's largest value, from which a position belongs to its concept."""
SHARE = 0.4
"""Of the steps, that are looked at. Both were chosen on tuning scenes of the miniature, by how much
the boxes overlap those of what the base then draws."""
LEAST_SIDE = 3 / 16
"""Of the picture; a smaller box is enlarged, for nothing fits in."""


def boxes_of(
    maps: Float[Tensor, "N h w"], nouns: Sequence[str], threshold: float = THRESHOLD
) -> list[Box]:
    """A box for each concept: around the strongest connected piece of what is its own.

    Positions that several concepts claim go to the strongest; concepts of one noun share out the
    places of that noun.

    Args:
        maps: of each concept's attention, the largest value 1.
        nouns: of each concept.
        threshold: from which a position belongs to a concept.
    """
    claimed = (maps >= threshold).to(maps.dtype)
    own = Instances(nouns).shared_out(0, exclusive_between(claimed, maps, nouns), maps)
    return [
        _grown(tight_box(strongest_piece(mask.numpy() > 0, strength.numpy())))
        for mask, strength in zip(own, maps)
    ]


def exclusive_between(
    claimed: Float[Tensor, "N h w"], maps: Float[Tensor, "N h w"], nouns: Sequence[str]
) -> Float[Tensor, "N h w"]:
    """The claims, each position with the strongest noun; concepts of one noun all keep it."""
    kinds = list(dict.fromkeys(nouns))
    members = torch.tensor([kinds.index(noun) for noun in nouns])
    by_kind = torch.stack([maps[members == k].amax(0) for k in range(len(kinds))])
    of_kind = torch.stack([claimed[members == k].amax(0) for k in range(len(kinds))])
    return claimed * exclusive(of_kind, by_kind)[members]


def strongest_piece(mask: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The connected piece with the most attention; the strongest position if nothing is left."""
    pieces, count = cast(tuple[np.ndarray, int], ndimage.label(mask))
    if not count:
        return strength == strength.max()
    sums = ndimage.sum_labels(strength, pieces, range(1, count + 1))
    return pieces == 1 + int(np.argmax(sums))


def _grown(box: Box) -> Box:
    """The box, enlarged about its centre to the least side and moved into the picture."""
    sides = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        half = max(high - low, LEAST_SIDE) / 2
        centre = min(max((low + high) / 2, half), 1 - half)
        sides.append((centre - half, centre + half))
    (x0, x1), (y0, y1) = sides
    return max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)
