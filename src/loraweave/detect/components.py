"""Instances from a mask of everything of one class."""

from typing import cast

import numpy as np
from jaxtyping import Bool
from scipy import ndimage


def components(where: Bool[np.ndarray, "h w"], least: float) -> list[Bool[np.ndarray, "h w"]]:
    """Connected parts of a mask that cover at least `least` places, from left to right."""
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(where))
    parts = [labels == number for number in range(1, count + 1)]
    return left_to_right([part for part in parts if part.sum() >= least])


def left_to_right(
    masks: list[Bool[np.ndarray, "h w"]],
) -> list[Bool[np.ndarray, "h w"]]:
    """Masks, none of them empty, by the middle of what they cover."""
    return sorted(masks, key=lambda mask: float(np.nonzero(mask)[1].mean()))
