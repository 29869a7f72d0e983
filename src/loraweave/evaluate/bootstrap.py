"""Means of rates and of their differences, with bootstrap intervals."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean

import numpy as np
from jaxtyping import Int

SHARES, DIFFERENCES = (0.0, 1.0), (-1.0, 1.0)
"""Between which shares are, and differences of two."""

EQUAL = 1e-9
"""Values that differ by less do so by rounding."""
LEAST_SCENES = 10
"""Of fewer scenes nothing can be said about others; see `draws`."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Rounded plain data."""
        return {"mean": round(self.mean, 4), "low": round(self.low, 4), "high": round(self.high, 4)}

    def named(self, kind: str) -> dict[str, float | list[float]]:
        """The same as `{kind: mean, kind_ci: [low, high]}`."""
        return {kind: round(self.mean, 4), f"{kind}_ci": [round(self.low, 4), round(self.high, 4)]}


def bootstrap(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0,
    bounds: tuple[float, float] | None = None, weights: Sequence[float] | None = None,
) -> Interval:  # fmt: skip
    """Percentile bootstrap of the mean; for a paired difference give the differences.

    Args:
        values: independent draws.
        resamples, seed: of the bootstrap.
        bounds: between which they are known to be: (0, 1) for shares, (-1, 1) for differences of
            shares. If all values are equal, no resample differs; then each end is what the mean
            would be if a share of 1 - .025^(1/n) of all values were at that bound. For shares that
            are all 0, or all 1, that is the interval of Clopper and Pearson.
        weights: of the values, such as how many pictures each is the mean of; alike if None.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("no values to average")
    data = np.asarray(values, dtype=float)
    own = np.ones(len(data)) if weights is None else np.asarray(weights, dtype=float)
    value = float((data * own).sum() / own.sum())
    if bounds is not None and np.ptp(data) < EQUAL:
        unseen = 1 - 0.025 ** (1 / len(data))
        low, high = (value + unseen * (bound - value) for bound in bounds)
        return Interval(value, low, high)
    drawn = _drawn(len(data), resamples, seed)
    means = (data * own)[drawn].sum(1) / own[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(value, float(low), float(high))


def draws(scenes: Sequence[tuple[Hashable, Hashable]]) -> list[Hashable]:
    """Of each picture which draw of the bootstrap it belongs to.

    Pictures of one scene with several noises are alike: intervals that took them for independent
    would be too narrow for scenes that nobody has drawn yet. So a scene is one draw with all its
    noises, unless there are fewer than `LEAST_SCENES`; then each scene with one noise is a draw.

    Args:
        scenes: by picture the scene and the noise.
    """
    enough = len({scene for scene, _ in scenes}) >= LEAST_SCENES
    return [scene if enough else (scene, noise) for scene, noise in scenes]


def over_scenes(
    scenes: Sequence[tuple[Hashable, Hashable]], values: Iterable[float],
    bounds: tuple[float, float] | None = None,
) -> Interval:  # fmt: skip
    """The mean of the pictures' values with an interval over `draws`."""
    own: dict[Hashable, list[float]] = {}
    for draw, value in zip(draws(scenes), values):
        own.setdefault(draw, []).append(value)
    counts = [len(each) for each in own.values()]
    return bootstrap([mean(each) for each in own.values()], bounds=bounds, weights=counts)


@lru_cache(maxsize=8)
def _drawn(count: int, resamples: int, seed: int) -> Int[np.ndarray, "S N"]:
    """Which values each resample has; a report asks for the same a hundred times."""
    return np.random.default_rng(seed).integers(count, size=(resamples, count))
