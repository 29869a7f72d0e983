"""Regions that the user gives, as masks over the cells of the latent.

A box owns the cells whose centre is in it, and at least the one nearest to its own centre. A mask
picture is resized by area. Where regions overlap they share: each gets its part of the sum. What no
region covers belongs to the base model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..brightness import DEEP, brightness
from ..errors import RegionError
from ..region import Region

LARGEST_MASK = 8192  # pixels a side


Mask = Region | Float[Tensor, "h w"]
"""A region of a scene, or a mask that a program has at hand, values in [0, 1]."""


def as_masks(name: str, given: Any) -> tuple[Mask, ...]:
    """What a program may give as the regions of a concept: one of `as_mask`, or a list of them.

    Four numbers are a box.

    Raises:
        RegionError: see `as_mask`, or an empty list.
    """
    several = isinstance(given, list | tuple) and not (
        len(given) == 4 and all(isinstance(side, int | float) for side in given)
    )
    if not several:
        return (as_mask(name, given),)
    if not given:
        raise RegionError(f"no region for {name!r} in its list; give one, or leave it out")
    return tuple(as_mask(name, one) for one in given)


def as_mask(name: str, given: Any) -> Mask:
    """What a program may give as a region: a `Region`, a box, a picture, an array or a tensor.

    Args:
        name: of the concept, for errors.
        given: a `Region` or its data; a box (left, top, right, bottom) as fractions or pixels; a
            mask picture (path or PIL); or values in [0, 1] (or booleans, or 8-bit from 0 to 255,
            which may be 0 and 1, too) of shape (h, w), white where the concept may be.

    Raises:
        RegionError: nothing of these, not two-dimensional, out of range or black everywhere.
    """
    if isinstance(given, Region):
        return given
    if isinstance(given, Mapping):  # a scene file's
        return Region.model_validate(given)
    if isinstance(given, tuple | list) and len(given) == 4:
        return Region(box=tuple(given))
    if isinstance(given, str | Path):
        return Region(image=Path(given))
    if isinstance(given, Image.Image):
        return as_mask(name, torch.from_numpy(_grey(given)))
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given.copy())
    if not isinstance(given, Tensor):
        raise RegionError(
            f"the region of {name!r} is a {type(given).__name__}; give a box of four fractions, a "
            "mask picture, or an array of shape (h, w)"
        )
    mask = given.detach().float().cpu()
    if given.dtype == torch.uint8 and mask.numel() and mask.max() > 1:  # else it is 0 and 1
        mask = mask / 255
    if mask.ndim != 2 or not mask.numel():
        raise RegionError(f"the mask of {name!r} has the shape {tuple(mask.shape)}, not (h, w)")
    if not (mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1):
        raise RegionError(f"the mask of {name!r} has values outside [0, 1]")
    if not mask.any():
        raise RegionError(f"the mask of {name!r} is 0 everywhere")
    return mask


def region_masks(
    regions: Mapping[str, Sequence[Mask]], names: Sequence[str], size: tuple[int, int],
    picture: tuple[int, int],
) -> tuple[Float[Tensor, "M H W"], list[int]]:  # fmt: skip
    """Masks of all regions in [0, 1], as they are given: they may overlap, see `shared`.

    Args:
        regions: of each concept, by name.
        names: of the concepts; their regions follow each other in this order.
        size: (H, W) of the latent.
        picture: (width, height) in pixels.

    Returns:
        The masks, and for each the number of its concept.

    Raises:
        RegionError: a concept without a region, a box beyond the picture, or a picture that is no
            mask.
    """
    if lacking := [name for name in names if not regions.get(name)]:
        raise RegionError(
            f"no region for {', '.join(lacking)}; give one for each concept, for example "
            f"--region {lacking[0]}=0,0,0.5,1 (left, top, right, bottom)"
        )
    masks, owners = [], []
    for n, name in enumerate(names):
        for region in regions[name]:
            masks.append(_mask(name, region, size, picture))
            owners.append(n)
    return torch.stack(masks), owners


def joined(masks: Float[Tensor, "M H W"], owners: Sequence[int]) -> Float[Tensor, "N H W"]:
    """One mask for each concept: where any of its regions is."""
    return torch.stack([
        masks[[owner == n for owner in owners]].amax(0) for n in range(max(owners) + 1)
    ])  # fmt: skip


def strip_masks(count: int, size: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """The picture cut into strips of one width, from left to right."""
    centres = (torch.arange(size[1]) + 0.5) / size[1]
    owner = (centres * count).long()
    return torch.stack([(owner == n).float().expand(size) for n in range(count)])


def shared(masks: Float[Tensor, "N H W"]) -> Float[Tensor, "N H W"]:
    """Masks of which no cell's sum is above 1: overlaps are shared out."""
    return masks / masks.sum(0, keepdim=True).clamp(min=1)


def _mask(
    name: str, region: Mask, size: tuple[int, int], picture: tuple[int, int]
) -> Float[Tensor, "H W"]:
    if isinstance(region, Tensor):
        return F.interpolate(region[None, None], size, mode="area")[0, 0]
    if region.box is not None:
        try:
            x0, y0, x1, y1 = region.fractions(*picture)
        except RegionError as error:
            raise RegionError(f"the region of {name!r}: {error}") from None
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
            grey = Image.fromarray(_grey(image)).resize((size[1], size[0]), Image.Resampling.BOX)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RegionError(f"cannot read the mask {region.image} of {name!r}: {error}") from None
    mask = torch.from_numpy(np.array(grey))
    if not mask.any():
        raise RegionError(f"the mask {region.image} of {name!r} is black everywhere")
    return mask


def _grey(image: Image.Image) -> Float[np.ndarray, "h w"]:
    """Brightness in [0, 1]."""
    if image.mode.startswith(DEEP):
        return brightness(image, (1, 255, 65535)).astype(np.float32)
    return np.asarray(image.convert("L"), dtype=np.float32) / 255


def _inside(low: float, high: float, cells: int) -> Float[Tensor, " cells"]:
    centres = (torch.arange(cells) + 0.5) / cells
    inside = ((centres >= low) & (centres < high)).float()
    if not inside.any():
        inside[int((centres - (low + high) / 2).abs().argmin())] = 1
    return inside
