"""Regions that the user gives, as masks over the cells of the latent.

A box owns the cells whose centre is in it, and at least the one nearest to its own centre. A mask
picture is resized by area. Where regions overlap they share: each gets its part of the sum. What no
region covers belongs to the base model.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..errors import RegionError
from ..scene import Region

LARGEST_MASK = 8192  # pixels a side


def region_masks(
    regions: Mapping[str, Region], names: Sequence[str], size: tuple[int, int]
) -> Float[Tensor, "N H W"]:
    """Masks of concepts in [0, 1]; at every cell they sum to 1 at most.

    Args:
        regions: by the names of concepts.
        names: of the concepts, in the order of the masks.
        size: (H, W) of the latent.

    Raises:
        RegionError: a concept without a region, or a picture that is no mask.
    """
    if lacking := [name for name in names if name not in regions]:
        raise RegionError(
            f"no region for {', '.join(lacking)}; give one for each concept, for example "
            f"--region {lacking[0]}=0,0,0.5,1 (left, top, right, bottom)"
        )
    return shared(torch.stack([_mask(name, regions[name], size) for name in names]))


def strip_masks(count: int, size: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """The picture cut into strips of one width, from left to right."""
    centres = (torch.arange(size[1]) + 0.5) / size[1]
    owner = (centres * count).long()
    return torch.stack([(owner == n).float().expand(size) for n in range(count)])


def shared(masks: Float[Tensor, "N H W"]) -> Float[Tensor, "N H W"]:
    """Masks of which no cell's sum is above 1: overlaps are shared out."""
    return masks / masks.sum(0, keepdim=True).clamp(min=1)


def _mask(name: str, region: Region, size: tuple[int, int]) -> Float[Tensor, "H W"]:
    if region.box is not None:
        x0, y0, x1, y1 = region.box
        rows, columns = _inside(y0, y1, size[0]), _inside(x0, x1, size[1])
        return rows[:, None] * columns
    assert region.image is not None
    try:
        with Image.open(region.image) as image:
            if max(image.size) > LARGEST_MASK:
                raise RegionError(
                    f"{region.image} has {image.width}x{image.height} pixels; a mask has at most "
                    f"{LARGEST_MASK} a side"
                )
            grey = image.convert("L").resize((size[1], size[0]), Image.Resampling.BOX)
    except (OSError, Image.DecompressionBombError) as error:
        raise RegionError(f"cannot read the mask {region.image} of {name!r}: {error}") from None
    mask = torch.from_numpy(np.array(grey, dtype=np.float32) / 255)
    if not mask.any():
        raise RegionError(f"the mask {region.image} of {name!r} is black everywhere")
    return mask


def _inside(low: float, high: float, cells: int) -> Float[Tensor, " cells"]:
    centres = (torch.arange(cells) + 0.5) / cells
    inside = ((centres >= low) & (centres < high)).float()
    if not inside.any():
        inside[int((centres - (low + high) / 2).abs().argmin())] = 1
    return inside
