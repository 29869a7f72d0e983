"""Rates of a suite's results, with intervals and paired differences."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..errors import SceneError
from ..evaluate.bootstrap import bootstrap
from ..miniature.judge.verdict import OUTCOMES
from ..miniature.judged import LEAST_OVERLAP
from .jobs import Job
from .run import read_results, result_file

Results = dict[tuple, dict[str, Any]]


def report(jobs: Sequence[Job], folder: Path, against: str | None = None) -> dict[str, Any]:
    """By method: success of concepts and pictures, classes of failure, cost, differences.

    Intervals are 95 % bootstrap intervals over scene-seeds; differences (in the share of right
    concepts, in right pictures, and in the share of concepts right and in place) are over the
    scene-seeds that both methods have.

    Args:
        jobs: what is reported; those that are not finished are counted as `open`.
        folder: where the files are.
        against: the method that the others are compared with; none if None.

    Raises:
        SceneError: nothing is finished.
    """
    by_method: dict[str, Results] = {}
    missing: dict[str, int] = {}
    files: dict[Path, dict[str, dict[str, Any]]] = {}
    for job in jobs:
        results = by_method.setdefault(job.method, {})
        path = result_file(folder, job.suite, job.method)
        if path not in files:
            files[path] = read_results(path)
        found = files[path].get(job.key)
        if found is None:
            missing[job.method] = missing.get(job.method, 0) + 1
        else:
            results[job.suite, job.names, job.background, job.seed, job.style or ""] = found
    if not any(by_method.values()):
        raise SceneError(f"nothing of this is finished in {folder}; use `loraweave bench run`")
    table = {method: _rates(rows, missing.get(method, 0)) for method, rows in by_method.items()}
    if against in by_method:
        for method, rows in by_method.items():
            both = sorted(rows.keys() & by_method[against].keys())
            if method != against and both:
                pairs = [(rows[key], by_method[against][key]) for key in both]
                table[method][f"minus_{against}"] = _differences(pairs)
    return table


def _differences(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Of one method minus another one, scene by scene."""
    kinds: dict[str, Callable[[dict[str, Any]], float]] = {
        "concepts_right": _right, "pictures_right": lambda row: float(_right(row) == 1),
    }  # fmt: skip
    if all("places" in row for pair in pairs for row in pair):
        kinds["right_in_place"] = _placed
    return {
        kind: bootstrap([of(own) - of(other) for own, other in pairs]).as_dict()
        for kind, of in kinds.items()
    }


def _rates(rows: Results, missing: int) -> dict[str, Any]:
    if not rows:
        return {"scenes": 0, "open": missing}
    right = [_right(row) for row in rows.values()]
    outcomes = [o for row in rows.values() for o in row["outcomes"].values()]
    costs = [row["cost"] for row in rows.values()]
    keys = dict.fromkeys(key for cost in costs for key in cost)
    return {
        **(_layout(rows) if "places" in next(iter(rows.values())) else {}),
        "scenes": len(rows),
        "open": missing,
        "concepts_right": bootstrap(right).as_dict(),
        "pictures_right": bootstrap([float(value == 1) for value in right]).as_dict(),
        "outcomes": {o: outcomes.count(o) for o in OUTCOMES},
        "cost": {key: mean(cost[key] for cost in costs if key in cost) for key in keys},
    }


def _layout(rows: Results) -> dict[str, Any]:
    """Of placed scenes: right and in its place, overlap with the box, likeness of instances."""
    overlap = [mean(row["places"].values()) for row in rows.values()]
    likeness = [mean(row["likeness"].values()) for row in rows.values()]
    return {
        "right_in_place": bootstrap([_placed(row) for row in rows.values()]).as_dict(),
        "layout_iou": bootstrap(overlap).as_dict(),
        "likeness": bootstrap(likeness).as_dict(),
    }


def _placed(row: dict[str, Any]) -> float:
    """Share of the concepts that are right and in their box."""
    places, outcomes = row["places"], row["outcomes"]
    return mean(places[n] >= LEAST_OVERLAP and outcomes[n] == "right" for n in places)


def _right(row: dict[str, Any]) -> float:
    outcomes = row["outcomes"].values()
    return sum(outcome == "right" for outcome in outcomes) / len(outcomes)
