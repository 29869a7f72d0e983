"""Means of rates and of their differences, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

SHARES, DIFFERENCES = (0.0, 1.0), (-1.0, 1.0)
"""Between which shares are, and differences of two."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Rounded plain data."""
        return {"mean": round(self.mean, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def bootstrap(
    values: Sequence[float],
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Percentile bootstrap of the mean; for a paired difference give the differences.

    Args:
        values: independent draws.
        resamples, seed: of the bootstrap.
        bounds: between which they are known to be: (0, 1) for shares, (-1, 1) for differences of
            shares. If all values are equal, no resample differs; then each end is what the mean
            would be if a share of 1 - .025^(1/n) of all values were at that bound, which for shares
            is the interval of Clopper and Pearson.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    data = np.asarray(values, dtype=float)
    if bounds is not None and data.min() == data.max():
        value, unseen = float(data[0]), 1 - 0.025 ** (1 / len(data))
        low, high = (value + unseen * (bound - value) for bound in bounds)
        return Interval(value, low, high)
    means = data[_drawn(len(data), resamples, seed)].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(data.mean()), float(low), float(high))


@lru_cache(maxsize=8)
def _drawn(count: int, resamples: int, seed: int) -> Int[np.ndarray, "S N"]:
    """Which values each resample has; a report asks for the same a hundred times."""
    return np.random.default_rng(seed).integers(count, size=(resamples, count))
