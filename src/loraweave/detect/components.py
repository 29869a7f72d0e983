"""Instances from a mask of everything of one class."""

from typing import cast

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

NEAR, SMALL_PIECE = 3.0, 0.6  # cells between a piece and its whole, and how large it may be


def components(where: Bool[np.ndarray, "h w"], least: float) -> list[Bool[np.ndarray, "h w"]]:
    """Connected parts of a mask that cover at least `least` places, from left to right."""
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(where))
    parts = [labels == number for number in range(1, count + 1)]
    return left_to_right([part for part in parts if part.sum() >= least])


def joined_components(
    where: Bool[np.ndarray, "h w"], least: float
) -> list[Bool[np.ndarray, "h w"]]:
    """The same, but a small piece close to a larger one is part of it.

    A subject whose neck or stripe the segmenter takes for something else is still one subject.
    """
    whole: list[np.ndarray] = []
    for piece in sorted(components(where, 1), key=np.sum, reverse=True):
        part = next((part for part in whole if _belongs(piece, part)), None)
        if part is None:
            whole.append(piece)
        else:
            part |= piece
    return left_to_right([part for part in whole if part.sum() >= least])


def _belongs(piece: Bool[np.ndarray, "h w"], part: Bool[np.ndarray, "h w"]) -> bool:
    """Whether a piece is small beside a part and close to it."""
    if piece.sum() >= SMALL_PIECE * part.sum():
        return False
    away = cast(np.ndarray, ndimage.distance_transform_edt(~piece))
    return bool((away[part] <= NEAR).any())


def left_to_right(
    masks: list[Bool[np.ndarray, "h w"]],
) -> list[Bool[np.ndarray, "h w"]]:
    """Masks, none of them empty, by the middle of what they cover."""
    return sorted(masks, key=lambda mask: float(np.nonzero(mask)[1].mean()))
