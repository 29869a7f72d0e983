"""Rates and differences of rates with bootstrap intervals over scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Rounded plain data."""
        return {"mean": round(self.mean, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


def bootstrap(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean; for a paired difference give the differences.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    data = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = data[rng.integers(len(data), size=(resamples, len(data)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(data.mean()), float(low), float(high))
