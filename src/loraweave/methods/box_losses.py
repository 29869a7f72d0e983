"""What earlier methods with boxes ask of attention.

BoxDiff (Xie et al., ICCV 2023): the strongest places of a word are inside its box, few are outside,
and near the box's edges its map looks, from above and from the side, like the box.
Attention Refocusing (Phung et al., CVPR 2024): the peak of a word is inside its box, not in another
one and not in the background; places of a box do not look out of it.

`W` words of a region, (h, w) places, `L` = h*w, `M` regions.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SHARE = 0.2
"""Of the places inside and outside of a box, that BoxDiff asks (its P)."""
EDGE = 1
"""Places on either side of a box's edge, that BoxDiff compares (its L)."""


def boxdiff(maps: Float[Tensor, "W h w"], region: Bool[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Sum over the words of the inner-box, outer-box and corner terms (section 3.3)."""
    inside = 1 - _strongest(maps * region, region)
    outside = _strongest(maps * ~region, ~region)
    total = inside.clamp(min=0) + outside.clamp(min=0)
    for axis in (0, 1):
        line, box = maps.amax(1 + axis), region.any(axis)
        near = _edges(box).to(maps)
        total = total + ((line - box.to(maps)).abs() * near).mean(1)
    return total.sum()


def _strongest(maps: Float[Tensor, "W h w"], where: Bool[Tensor, "h w"]) -> Float[Tensor, " W"]:
    count = int(SHARE * int(where.sum()))
    if not count and not where.any():
        return maps.sum((1, 2)) * 0  # nothing is outside
    return maps.flatten(1).topk(max(1, count), dim=1).values.mean(1)


def _edges(box: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Places at most EDGE from the first of the box, or from the one behind its last."""
    places = torch.arange(len(box), device=box.device)
    inside = box.nonzero()[:, 0]
    first, behind = int(inside[0]), int(inside[-1]) + 1
    return ((places - first).abs() <= EDGE) | ((places - behind).abs() <= EDGE)


def refocused(
    maps: list[Float[Tensor, "W h w"]], regions: Bool[Tensor, "M h w"], early: bool
) -> Float[Tensor, ""]:
    """The cross-attention term, mean over the regions; weights are those of the authors' code.

    Args:
        maps: of each region's words.
        regions: where they belong.
        early: peaks that are good enough are still asked for more.
    """
    total = maps[0].new_zeros(())
    for k, own in enumerate(maps):
        within = own[:, regions[k]].amax(1)
        total = total + ((1 - within) * _weights(within, early, (0.1, 6.0), (0.2, 1.0))).sum()
        for j, other in enumerate(regions):
            alien = other & ~regions[k]
            if j != k and alien.any():
                peak = own[:, alien].amax(1)
                total = total + (peak * _weights(-peak, early, (-0.15, 4.0), (-0.1, 1.0))).sum()
        nobody = ~regions.any(0)
        if nobody.any():
            total = total + own[:, nobody].amax(1).sum() / 2
    return total / len(maps)


def _weights(
    peaks: Tensor, early: bool, far: tuple[float, float], near: tuple[float, float]
) -> Tensor:
    """The second of each pair below its first; beyond `near` 1 at early steps and 0 later."""
    rest = torch.full_like(peaks, float(early))
    rest = torch.where(peaks < near[0], torch.full_like(peaks, near[1]), rest)
    return torch.where(peaks < far[0], torch.full_like(peaks, far[1]), rest).detach()


def looking_out(looks: Float[Tensor, "L L"], regions: Bool[Tensor, "M h w"]) -> Float[Tensor, ""]:
    """The self-attention term: how much of a box's looks goes out of it, mean over the boxes."""
    total = looks.new_zeros(())
    for region in regions.flatten(1):
        total = total + looks[region][:, ~region].sum(1).mean()
    return total / len(regions)
