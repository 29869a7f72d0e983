"""Boxes in a picture: left, top, right, bottom as fractions of its width and height."""

import numpy as np
from jaxtyping import Bool

Box = tuple[float, float, float, float]


def tight_box(mask: Bool[np.ndarray, "h w"]) -> Box:
    """The smallest box with the whole mask in it.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        raise ValueError("an empty mask has no box")
    height, width = mask.shape
    edges = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    left, top, right, bottom = (float(edge) for edge in edges)
    return left, top, right, bottom


def intersection_over_union(one: Box, other: Box) -> float:
    """Of the areas of two boxes, in [0, 1]."""
    common = _common(one, other)
    return common / (_area(one) + _area(other) - common)


def containment(inner: Box, outer: Box) -> float:
    """Share of one box's area that lies in another, in [0, 1]."""
    return _common(inner, outer) / _area(inner)


def _common(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
