"""Rates of a suite's results, with intervals and paired differences."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..errors import MethodError, SceneError
from ..evaluate.bootstrap import bootstrap
from ..methods import METHODS
from ..miniature.judged import LEAST_OVERLAP, YARDSTICKS
from ..miniature.scoring import SCORES
from .jobs import Job
from .run import read_results, result_file
from .suites import suite_names

FAILURES = ("missing", "duplicated", "swapped", "blended")
Row = dict[str, Any]
ByScene = dict[str, Row]


class NothingFinished(SceneError):
    """There is no result of these jobs yet."""


def report(jobs: Sequence[Job], folder: Path, against: str | None = None) -> dict[str, Row]:
    """By method how much succeeds, how the rest fails, what it costs, and differences.

    Shares are in [0, 1]; `..._ci` is a 95 % bootstrap interval over scene-seeds. `success` is the
    share of pictures in which every concept is right, `right` that of the concepts, and `missing`
    to `blended` those of the concepts that fail so. Of scenes with boxes `in_place` is the share
    of the concepts that are right and keep their box at an intersection over union of .5,
    `layout_iou` the mean of that overlap, `containment` the mean share of
    an instance's box in the given one, `likeness` the mean cosine of an instance and its
    concept. `extra` is the share of what comes on top of the concepts (a style, a relation) that
    is right. `clip_t`, and `clip_i_min` to `instance_dino_max`, are the papers' scores, the latter
    over the concepts of a picture, of instances over those that were found. `cost` is a mean over
    the pictures. Differences in the same shares are over the scene-seeds that both methods have.

    Args:
        jobs: of one suite; those that are not finished are counted as `open`.
        folder: where the files are.
        against: the method that the others are compared with; none if None.

    Raises:
        NothingFinished: of these jobs.
        SceneError: a file of results is damaged.
        MethodError: `against` is none of the methods.
    """
    by_method: dict[str, list[Job]] = {}
    for job in jobs:
        by_method.setdefault(job.method, []).append(job)
    return compared(by_method, folder, against)


def compared(
    jobs: Mapping[str, Sequence[Job]], folder: Path, against: str | None = None
) -> dict[str, Row]:
    """The same for jobs under any names, such as one method with several settings."""
    rows = {name: {job.scene_key: row for job, row in _found(own, folder)}
            for name, own in jobs.items()}  # fmt: skip
    missing = Counter({name: len(own) - len(rows[name]) for name, own in jobs.items()})
    return _compared(rows, missing, folder, against)


def report_all(
    folder: Path, suite: str, methods: Sequence[str] | None = None, against: str | None = None
) -> dict[str, Row]:
    """The same for all results of a suite, whatever base they are of; for manifests.

    Args:
        folder, suite: where the files are.
        methods: of which; all if None.
        against: the method that the others are compared with; the first if None.

    Raises:
        NothingFinished: there are none.
        SceneError: a file is damaged, or has results of several settings or bases.
        MethodError: `against` is none of the methods.
    """
    by_method: dict[str, ByScene] = {}
    there = sorted(path.stem for path in (folder / suite).glob("*.json"))
    for method in there if methods is None else methods:
        path = result_file(folder, suite, method)
        results = list(read_results(path).values())
        ways = {json.dumps([r["job"].get(k) for k in _WAY], sort_keys=True) for r in results}
        if len(ways) > 1:
            raise SceneError(
                f"{path} has results of {len(ways)} settings, bases or versions; give each a "
                "folder of its own with --results"
            )
        by_method[method] = {_scene_of(row): row for row in results}
    return _compared(by_method, Counter(), folder, against or next(iter(by_method), None))


_WAY = ("settings", "setting", "package", "device")


def _scene_of(row: Row) -> str:
    scene = row["job"]["scene"]
    return f"{scene['prompt']} {scene['seed']}"


def _compared(
    by_method: Mapping[str, ByScene], missing: Counter[str], folder: Path, against: str | None
) -> dict[str, Row]:
    if not any(by_method.values()):
        raise NothingFinished(f"nothing of this is finished in {folder}; use `loraweave bench run`")
    if against is not None and against not in by_method:
        raise MethodError(f"{against!r} is not among the methods compared: {', '.join(by_method)}")
    table = {method: _rates(rows, missing[method]) for method, rows in by_method.items()}
    if against is None:
        return table
    for method, rows in by_method.items():
        both = sorted(rows.keys() & by_method[against].keys())
        if method != against and both:
            pairs = [(rows[key], by_method[against][key]) for key in both]
            table[method][f"minus_{against}"] = _differences(pairs)
    return table


def finished_rows(jobs: Sequence[Job], folder: Path) -> list[Row]:
    """The results of those jobs that are finished.

    Raises:
        SceneError: a file of results is damaged.
    """
    return [found for _, found in _found(jobs, folder)]


def _found(jobs: Sequence[Job], folder: Path) -> Iterator[tuple[Job, Row]]:
    files: dict[Path, dict[str, Row]] = {}
    for job in jobs:
        path = result_file(folder, job.suite, job.method)
        if path not in files:
            files[path] = read_results(path)
        if (found := files[path].get(job.key)) is not None:
            yield job, found


def finished(folder: Path) -> dict[str, list[str]]:
    """The methods with files of results, by suite; both in the order in which we name them."""
    methods = [*METHODS, *YARDSTICKS]
    found = {s: [m for m in methods if result_file(folder, s, m).is_file()] for s in suite_names()}
    return {suite: own for suite, own in found.items() if own}


def _differences(pairs: Sequence[tuple[Row, Row]]) -> Row:
    """Of one method minus another one, scene by scene."""
    kinds: dict[str, Callable[[Row], float]] = {}
    if all(row["outcomes"] for pair in pairs for row in pair):
        kinds = {"success": _success, "right": share_right}
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
    costs = [row["cost"] for row in found]
    keys = dict.fromkeys(key for cost in costs for key in cost)
    rates: Row = {"scenes": len(found), "open": missing}
    # Without a segmenter nobody has looked for the concepts of a real base's pictures.
    if judged := [row for row in found if row["outcomes"]]:
        outcomes = [o for row in judged for o in row["outcomes"].values()]
        rates |= _with_interval("success", [_success(row) for row in judged])
        rates |= _with_interval("right", [share_right(row) for row in judged])
        rates |= {kind: round(outcomes.count(kind) / len(outcomes), 4) for kind in FAILURES}
    if all("places" in row for row in found):
        rates |= _with_interval("in_place", [_in_place(row) for row in found])
        for kind, what in (
            ("layout_iou", "places"), ("containment", "contained"), ("likeness", "likeness"),
        ):  # fmt: skip
            if all(what in row for row in found):  # results before containment go without
                rates |= _with_interval(kind, [mean(row[what].values()) for row in found])
    extras = [
        outcome == "right" for row in found
        for name, outcome in row["outcomes"].items() if name not in row["job"]["names"]
    ]  # fmt: skip
    if extras:
        rates["extra"] = round(mean(extras), 4)
    rates |= _scores([row["scores"] for row in found if "scores" in row])
    rates["cost"] = {key: mean(cost[key] for cost in costs if key in cost) for key in keys}
    return rates


def _scores(scores: Sequence[Row]) -> Row:
    """Of those pictures that have been scored."""
    if not scores:
        return {}
    rates: Row = {"scored": len(scores)}
    rates |= _with_interval("clip_t", [own["clip_t"] for own in scores])
    for kind in SCORES:
        values = [list(own[kind].values()) for own in scores if own[kind]]
        for name, of in (("min", min), ("avg", mean), ("max", max)):
            if values:
                rates |= _with_interval(f"{kind}_{name}", [of(own) for own in values])
    return rates


def _with_interval(kind: str, values: Sequence[float]) -> Row:
    interval = bootstrap(values).as_dict()
    return {kind: interval["mean"], f"{kind}_ci": [interval["low"], interval["high"]]}


def _in_place(row: Row) -> float:
    """Share of the concepts that are right and in their box."""
    places, outcomes = row["places"], row["outcomes"]
    return mean(places[n] >= LEAST_OVERLAP and outcomes[n] == "right" for n in places)


def share_right(row: Row) -> float:
    """Of what a picture's scene asks for."""
    outcomes = row["outcomes"].values()
    return sum(outcome == "right" for outcome in outcomes) / len(outcomes)


def _success(row: Row) -> float:
    return float(share_right(row) == 1)
