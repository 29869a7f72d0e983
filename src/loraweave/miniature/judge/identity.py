"""Who an instance is: its colours, where they sit, and how they alternate.

The descriptor of an instance is the square root of its colour histogram in the upper and in the
lower half of its mask, with soft bins, so that the scalar product of two descriptors is the
Bhattacharyya coefficient of the histograms, in [0, 1]. Stripes, spots and plain coats differ in
how often colours change along rows and columns, which two more entries hold.
"""

import numpy as np

BINS = 5  # per colour axis
EDGE_WEIGHT = 0.15  # share of the descriptor's length that the pattern gets


def describe(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Descriptor of unit length.

    Args:
        pixels: (H, W, 3) in [0, 1].
        mask: (H, W) booleans, at least one set.
    """
    rows = np.nonzero(mask.any(1))[0]
    middle = (rows[0] + rows[-1] + 1) // 2
    halves = []
    for part in (np.s_[:middle], np.s_[middle:]):
        colours = pixels[part][mask[part]]
        halves.append(_histogram(colours) if len(colours) else np.zeros(BINS**3))
    colour = np.sqrt(np.concatenate(halves) / 2)
    edges = np.sqrt(_edges(pixels, mask))
    edges = edges / max(float(np.linalg.norm(edges)), 1e-9)
    return np.concatenate([
        np.sqrt(1 - EDGE_WEIGHT) * colour / max(float(np.linalg.norm(colour)), 1e-9),
        np.sqrt(EDGE_WEIGHT) * edges,
    ])  # fmt: skip


def _histogram(colours: np.ndarray) -> np.ndarray:
    """Soft histogram over BINS^3 cells (triangular weights); sums to 1."""
    position = np.clip(colours, 0, 1) * (BINS - 1)
    low = np.minimum(position.astype(int), BINS - 2)
    high_share = position - low
    out = np.zeros((BINS,) * 3)
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, high_share, 1 - high_share), axis=1)
        index = low + np.array(corner)
        np.add.at(out, tuple(index.T), share)
    return out.ravel() / len(colours)


def _edges(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean change along rows, along columns, and a constant that stands for no change."""
    changes = []
    for axis in (0, 1):
        both = mask & np.roll(mask, 1, axis)
        change = np.abs(pixels - np.roll(pixels, 1, axis)).sum(2)
        changes.append(float(change[both].mean()) if both.any() else 0.0)
    return np.array([*changes, 0.1])


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Scalar product of two descriptors, in [0, 1]."""
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))
