"""Instances from a mask of everything of one class."""

from typing import cast

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

NEAR, SMALL_PIECE = 3.0, 0.6  # cells between a piece and its whole, and how large it may be
LEAST_HALF = 0.4  # of the other half


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


def parted(
    masks: list[Bool[np.ndarray, "h w"]], wanted: int, least: float
) -> list[Bool[np.ndarray, "h w"]]:
    """Components, those that have a waist in two until there are `wanted`, from left to right.

    Args:
        masks: connected components.
        wanted: how many there should be; more are left as they are.
        least: places that a half covers at least.
    """
    whole, done = sorted(masks, key=np.sum), []
    while whole and len(whole) + len(done) < wanted:
        halves = _halves(largest := whole.pop(), least)
        if halves is None:
            done.append(largest)
        else:
            whole = sorted([*whole, *halves], key=np.sum)
    return left_to_right(whole + done)


def _halves(where: Bool[np.ndarray, "h w"], least: float) -> list[Bool[np.ndarray, "h w"]] | None:
    """Both sides of a component's waist, or None if it has none.

    Two that touch are joined where they are thinner than each of them is. The waist is thinned
    away until the rest falls apart, then every place goes to the nearer side.
    """
    depth = cast(np.ndarray, ndimage.distance_transform_edt(where))
    for thickness in np.unique(depth[where])[:-1]:
        labels, count = cast(tuple[np.ndarray, int], ndimage.label(depth > thickness))
        if count < 2:
            continue
        sizes = np.bincount(labels.ravel())[1:]
        largest = np.argsort(sizes)[-2:] + 1
        nearest = cast(np.ndarray, ndimage.distance_transform_edt(
            ~np.isin(labels, largest), return_distances=False, return_indices=True
        ))  # fmt: skip
        owner = labels[tuple(nearest)]
        halves = [where & (owner == label) for label in largest]
        smaller, larger = sorted(int(half.sum()) for half in halves)
        if smaller >= max(least, LEAST_HALF * larger):
            return halves
    return None


def left_to_right(
    masks: list[Bool[np.ndarray, "h w"]],
) -> list[Bool[np.ndarray, "h w"]]:
    """Masks, none of them empty, by the middle of what they cover."""
    return sorted(masks, key=lambda mask: float(np.nonzero(mask)[1].mean()))
