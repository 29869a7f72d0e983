"""Rates of a suite's results, with intervals and paired differences."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..errors import MethodError, SceneError
from ..evaluate.bootstrap import bootstrap
from ..methods import METHODS
from ..miniature.judged import LEAST_OVERLAP, YARDSTICKS
from .jobs import SUITES, Job
from .run import read_results, result_file

FAILURES = ("missing", "duplicated", "swapped", "blended")
Row = dict[str, Any]
ByScene = dict[tuple, Row]


class NothingFinished(SceneError):
    """There is no result of these jobs yet."""


def report(jobs: Sequence[Job], folder: Path, against: str | None = None) -> dict[str, Row]:
    """By method how much succeeds, how the rest fails, what it costs, and differences.

    Shares are in [0, 1]; `..._ci` is a 95 % bootstrap interval over scene-seeds. `success` is the
    share of pictures in which every concept is right, `right` that of the concepts, and `missing`
    to `blended` those of the concepts that fail so. Of scenes with boxes `in_place` is the share
    of the concepts that are right and keep their box at an intersection over union of .5,
    `layout_iou` the mean of that overlap, `likeness` the mean cosine of an instance and its
    concept. `cost` is a mean over the pictures. Differences in the same shares are over the
    scene-seeds that both methods have.

    Args:
        jobs: of one suite; those that are not finished are counted as `open`.
        folder: where the files are.
        against: the method that the others are compared with; none if None.

    Raises:
        NothingFinished: of these jobs.
        SceneError: a file of results is damaged.
        MethodError: `against` is none of the methods.
    """
    by_method: dict[str, ByScene] = {}
    missing: dict[str, int] = {}
    files: dict[Path, dict[str, Row]] = {}
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
        raise NothingFinished(f"nothing of this is finished in {folder}; use `loraweave bench run`")
    if against is not None and against not in by_method:
        raise MethodError(f"{against!r} is not among the methods compared: {', '.join(by_method)}")
    table = {method: _rates(rows, missing.get(method, 0)) for method, rows in by_method.items()}
    if against is None:
        return table
    for method, rows in by_method.items():
        both = sorted(rows.keys() & by_method[against].keys())
        if method != against and both:
            pairs = [(rows[key], by_method[against][key]) for key in both]
            table[method][f"minus_{against}"] = _differences(pairs)
    return table


def finished(folder: Path) -> dict[str, list[str]]:
    """The methods with files of results, by suite; both in the order in which we name them."""
    methods = [*METHODS, *YARDSTICKS]
    found = {s: [m for m in methods if result_file(folder, s, m).is_file()] for s in SUITES}
    return {suite: own for suite, own in found.items() if own}


def _differences(pairs: Sequence[tuple[Row, Row]]) -> Row:
    """Of one method minus another one, scene by scene."""
    kinds: dict[str, Callable[[Row], float]] = {"success": _success, "right": _right}
    if all("places" in row for pair in pairs for row in pair):
        kinds["in_place"] = _in_place
    differences: Row = {}
    for kind, of in kinds.items():
        differences |= _with_interval(kind, [of(own) - of(other) for own, other in pairs])
    return differences


def _rates(rows: ByScene, missing: int) -> Row:
    if not rows:
        return {"scenes": 0, "open": missing}
    found = list(rows.values())
    outcomes = [o for row in found for o in row["outcomes"].values()]
    costs = [row["cost"] for row in found]
    keys = dict.fromkeys(key for cost in costs for key in cost)
    rates = {
        "scenes": len(found), "open": missing,
        **_with_interval("success", [_success(row) for row in found]),
        **_with_interval("right", [_right(row) for row in found]),
        **{kind: round(outcomes.count(kind) / len(outcomes), 4) for kind in FAILURES},
    }  # fmt: skip
    if all("places" in row for row in found):
        rates |= _with_interval("in_place", [_in_place(row) for row in found])
        for kind, what in (("layout_iou", "places"), ("likeness", "likeness")):
            rates |= _with_interval(kind, [mean(row[what].values()) for row in found])
    rates["cost"] = {key: mean(cost[key] for cost in costs if key in cost) for key in keys}
    return rates


def _with_interval(kind: str, values: Sequence[float]) -> Row:
    interval = bootstrap(values).as_dict()
    return {kind: interval["mean"], f"{kind}_ci": [interval["low"], interval["high"]]}


def _in_place(row: Row) -> float:
    """Share of the concepts that are right and in their box."""
    places, outcomes = row["places"], row["outcomes"]
    return mean(places[n] >= LEAST_OVERLAP and outcomes[n] == "right" for n in places)


def _right(row: Row) -> float:
    outcomes = row["outcomes"].values()
    return sum(outcome == "right" for outcome in outcomes) / len(outcomes)


def _success(row: Row) -> float:
    return float(_right(row) == 1)
