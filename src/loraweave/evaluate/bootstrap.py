"""Rates and differences of rates with bootstrap intervals over scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int


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
    values: Sequence[float], resamples: int = 10_000, seed: int = 0, share: bool = False
) -> Interval:
    """Percentile bootstrap of the mean; for a paired difference give the differences.

    Args:
        values: independent draws.
        resamples, seed: of the bootstrap.
        share: they are shares in [0, 1]. If all are 0, or all 1, no resample differs, and the other
            end is that of Clopper and Pearson: 1 - .025^(1/n) away.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    data = np.asarray(values, dtype=float)
    if share and data.min() == data.max() and data[0] in (0, 1):
        wide = 1 - 0.025 ** (1 / len(data))
        return Interval(float(data[0]), *((0.0, wide) if data[0] == 0 else (1 - wide, 1.0)))
    means = data[_drawn(len(data), resamples, seed)].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(data.mean()), float(low), float(high))


@lru_cache(maxsize=8)
def _drawn(count: int, resamples: int, seed: int) -> Int[np.ndarray, "S N"]:
    """Which values each resample has; a report asks for the same a hundred times."""
    return np.random.default_rng(seed).integers(count, size=(resamples, count))
