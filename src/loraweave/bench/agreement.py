"""How far the papers' scores say what the judge says, picture by picture."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

from ..evaluate.bootstrap import draws
from ..miniature.scoring import SCORES
from .jobs import Job
from .rates import FAILURES, current, scene_and_seed
from .report import NothingFinished, finished_rows

Row = Mapping[str, Any]
RESAMPLES = 2000


def agreement(jobs: Sequence[Job], folder: Path, ranks: bool = True) -> dict[str, dict[str, Any]]:
    """`agreement_of` the pictures of some jobs, without those by `alone`: they have one concept
    each, and are scored against that one's.

    Raises:
        NothingFinished: no job has been scored.
        SceneError: a file of results is damaged.
    """
    rows = finished_rows([job for job in jobs if job.method != "alone"], folder)
    return agreement_of(rows, f"{folder}; use `loraweave bench run`", ranks)


def agreement_of(
    every: Sequence[Row], where: str = "them", ranks: bool = True
) -> dict[str, dict[str, Any]]:
    """By score what it knows of the judge's findings, over some pictures' results together.

    Of scores over concepts the least is taken, as in the papers' "min"; a concept without an
    instance counts as 0 for scores of instances.

    `rank` is Spearman's correlation with the share of the concepts that are right, with a 95 %
    bootstrap interval over scenes, whose pictures by all methods stay together. (Pictures of
    several suites together say as much of the suites as of the scores.) `missing` to
    `blended` is the probability that a picture in which all is right has a higher score than one
    with such a failure: 1 if the score always sees it, .5 if it is blind; None without such
    pictures. `pictures` counts each kind.

    Args:
        every: results; those without outcomes, or without scores by today's encoders, do not count.
        where: they are, for the error.
        ranks: False leaves `rank` out, whose interval takes seconds.

    Raises:
        NothingFinished: none is left.
    """
    rows = [row for row in every if row["outcomes"] and row.get("scores") and current(row)]
    if not rows:
        raise NothingFinished(f"no picture of this is judged and scored in {where}")
    outcomes = [[row["outcomes"][name] for name in row["job"]["names"]] for row in rows]
    right = np.array([own.count("right") / len(own) for own in outcomes])
    number: dict[Hashable, int] = {}
    whose = np.array(
        [number.setdefault(draw, len(number)) for draw in draws([*map(scene_and_seed, rows)])]
    )
    found: dict[str, dict[str, Any]] = {}
    known = set.intersection(*(set(row["scores"]) for row in rows))
    for name, score in _scores().items():
        if name not in known:
            continue
        values = np.array([score(row) for row in rows])
        good = values[right == 1]
        found[name] = _rank(values, right, whose) if ranks else {}
        for failure in FAILURES:
            bad = values[[failure in own for own in outcomes]]
            found[name][failure] = _above(good, bad)
    kinds = {failure: sum(failure in own for own in outcomes) for failure in FAILURES}
    found["pictures"] = {"all": len(rows), "right": int((right == 1).sum()), **kinds}
    return found


def _scores() -> dict[str, Callable[[Row], float]]:
    def least(kind: str) -> Callable[[Row], float]:
        return lambda row: min(row["scores"][kind].get(n, 0.0) for n in row["job"]["names"])

    return {"clip_t": lambda row: row["scores"]["clip_t"], **{kind: least(kind) for kind in SCORES}}


def _rank(values: np.ndarray, right: np.ndarray, whose: np.ndarray) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(whose == n) for n in range(whose.max() + 1)]
    again = []
    for chosen in rng.integers(len(members), size=(RESAMPLES, len(members))):
        i = np.concatenate([members[n] for n in chosen])
        again.append(_spearman(values[i], right[i]))
    low, high = np.percentile(again, (2.5, 97.5))
    return {
        "rank": round(_spearman(values, right), 4),
        "rank_ci": [round(float(low), 4), round(float(high), 4)],
    }


def _spearman(values: np.ndarray, right: np.ndarray) -> float:
    if np.ptp(values) == 0 or np.ptp(right) == 0:
        return 0.0  # nothing to agree on
    return float(spearmanr(values, right)[0])  # type: ignore[arg-type]


def _above(good: np.ndarray, bad: np.ndarray) -> float | None:
    if not len(good) or not len(bad):
        return None
    return round(float(mannwhitneyu(good, bad)[0]) / (len(good) * len(bad)), 4)
