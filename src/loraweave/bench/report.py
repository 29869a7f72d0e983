"""Rates of a suite's results, with intervals and paired differences."""

from collections.abc import Sequence
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
    concepts, and in right pictures) are over the scene-seeds that both methods have.

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
            both = rows.keys() & by_method[against].keys()
            if method != against and both:
                own, other = ([_right(r[k]) for k in sorted(both)]
                              for r in (rows, by_method[against]))  # fmt: skip
                concepts = [a - b for a, b in zip(own, other)]
                pictures = [float(a == 1) - float(b == 1) for a, b in zip(own, other)]
                table[method][f"minus_{against}"] = {
                    "concepts_right": bootstrap(concepts).as_dict(),
                    "pictures_right": bootstrap(pictures).as_dict(),
                }
    return table


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
    placed, overlap, likeness = [], [], []
    for row in rows.values():
        places, outcomes = row["places"], row["outcomes"]
        well = [places[n] >= LEAST_OVERLAP and outcomes[n] == "right" for n in places]
        placed.append(sum(well) / len(well))
        overlap.append(sum(places.values()) / len(places))
        likeness.append(sum(row["likeness"].values()) / len(row["likeness"]))
    return {
        "right_in_place": bootstrap(placed).as_dict(),
        "layout_iou": bootstrap(overlap).as_dict(),
        "likeness": bootstrap(likeness).as_dict(),
    }


def _right(row: dict[str, Any]) -> float:
    outcomes = row["outcomes"].values()
    return sum(outcome == "right" for outcome in outcomes) / len(outcomes)
