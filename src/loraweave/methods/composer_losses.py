"""What LoRA-Composer's guidance asks of attention (Yang et al. 2024, sections 3.3 and 3.4).

Enhancement: the words of a region look into their region, strongly somewhere near its middle
(`concept_presence`) and over its whole width and height (`fill`). Isolation: places of a region do
not look out of it (`leak`). Each value is 0 where nothing is left to ask for.

`W` words of a region, (h, w) places, `L` = h*w.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TOP_SHARE = 0.2
"""Of a region's places: so many of the strongest are asked."""


def top_count(region: Bool[Tensor, "h w"]) -> int:
    """How many places are asked: a fifth of the region, at least one."""
    return max(1, int(TOP_SHARE * int(region.sum())))


def gaussian_weight(region: Bool[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """A Gaussian over the region's bounding box, 1 in the middle; 0 outside of the region.

    The box reaches from -1 to 1 both ways and sigma is 1, so that a corner has 1/e.
    """
    weight = torch.zeros(region.shape, device=region.device)
    rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    y, x = (_line(count).to(weight) for count in (height, width))
    box = torch.exp(-(y[:, None] ** 2 + x**2) / 2)
    weight[top : top + height, left : left + width] = box / box.max()
    return weight * region


def _line(count: int) -> Float[Tensor, " count"]:
    return torch.linspace(-1, 1, count) if count > 1 else torch.zeros(1)


def concept_presence(
    maps: Float[Tensor, "W h w"], region: Bool[Tensor, "h w"]
) -> Float[Tensor, " W"]:
    """1 minus the mean of the strongest places of each word, weighted towards the middle."""
    weighted = (maps * gaussian_weight(region).to(maps)).flatten(1)
    return (1 - weighted.topk(top_count(region), dim=1).values.mean(1)).clamp(min=0)


def fill(maps: Float[Tensor, "W h w"], region: Bool[Tensor, "h w"]) -> Float[Tensor, " W"]:
    """How far each word's map, looked at from above and from the side, is from the region's.

    As in the authors' code the mean is over the whole width and height; outside of the region both
    are 0.
    """
    inside = maps * region
    columns = (inside.amax(1) - region.any(0).to(maps)).abs().mean(1)
    rows = (inside.amax(2) - region.any(1).to(maps)).abs().mean(1)
    return columns + rows


def leak(attention: Float[Tensor, "L L"], region: Bool[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Mean of the strongest looks from a place of the region to one outside of it."""
    own = region.flatten()
    if bool(own.all()):
        return attention.sum() * 0  # nothing is outside
    out = attention[own][:, ~own].flatten()
    return out.topk(min(top_count(region), len(out))).values.mean()
