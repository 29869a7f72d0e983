"""Rates of a suite's results, with intervals and paired differences."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MethodError, SceneError
from ..methods import METHODS
from ..miniature.judged import YARDSTICKS
from .jobs import Job
from .manifests import manifest_names
from .rates import Row, differences
from .rates import rates as rates_of
from .result_files import read_results, result_file
from .suites import read_suite, suite_names

ByScene = dict[Any, Row]


class NothingFinished(SceneError):
    """There is no result of these jobs yet."""


def report(jobs: Sequence[Job], folder: Path, against: str | None = None) -> dict[str, Row]:
    """By method how much succeeds, how the rest fails, what it costs, and differences.

    Shares are in [0, 1]; `..._ci` is a 95 % interval over scenes, see bench/rates.py. `success`
    is the share of pictures in which all that was asked for is right, `right` the share of it that
    is, and `missing` to `blended` those of the concepts that fail so. Of scenes with boxes
    `in_place` is the share of the concepts that are right and keep their box at an intersection
    over union of .5, `layout_iou` the mean of that overlap, `containment` the mean share of an
    instance's box in the given one, `likeness` the mean cosine of an instance and its concept.
    `extra` is the share of what comes on top of the concepts (a style, a relation) that is right.
    `clip_t`, and `clip_i_min` to `instance_dino_max`, are the papers' scores, the latter over the
    concepts of a picture, of instances over those that were found. `cost` is a mean over the
    pictures, of the seconds the median. Differences in the same shares are over the scene-seeds
    that both methods have.

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
    by_method = manifest_rows(folder, suite, methods)
    return _compared(by_method, Counter(), folder, against or next(iter(by_method), None))


def manifest_rows(
    folder: Path, suite: str, methods: Sequence[str] | None = None
) -> dict[str, ByScene]:
    """By method and scene all results of a manifest; see `report_all`."""
    by_method: dict[str, ByScene] = {}
    ways: dict[str, Any] = {}
    there = sorted(path.stem for path in (folder / suite).glob("*.json"))
    for method in there if methods is None else methods:
        path = result_file(folder, suite, method)
        if method not in there:
            raise NothingFinished(f"no results at {path}; use `loraweave bench run`")
        rows = by_method.setdefault(method, {})
        for row in read_results(path).values():
            job = row["job"]
            scene = f"{job['scene']['prompt']} {job['scene']['seed']}"
            told = {what: job[what] for what in ("base", "models", "package", "device")}
            told[f"settings of {method}"] = job["settings"]
            told[f"the scene {scene!r}"] = [job["loras"], *map(job["scene"].get, _SCENE)]
            for what, value in told.items():
                if scene in rows or ways.setdefault(what, value) != value:
                    raise SceneError(
                        f"{path} or a file beside it has results of several versions: {what}; "
                        "they cannot be compared, so give each a folder of its own with --results"
                    )
            rows[scene] = row
    if not by_method:
        raise NothingFinished(f"no results in {folder / suite}; use `loraweave bench run`")
    return by_method


_SCENE = ("width", "height", "num_inference_steps", "guidance_scale", "scheduler")
"""What methods share of a manifest's scene; some have no regions."""


def _compared(
    by_method: Mapping[str, ByScene], missing: Counter[str], folder: Path, against: str | None
) -> dict[str, Row]:
    if not any(by_method.values()):
        raise NothingFinished(f"nothing of this is finished in {folder}; use `loraweave bench run`")
    if against is not None and against not in by_method:
        raise MethodError(f"{against!r} is not among the methods compared: {', '.join(by_method)}")
    table = {
        method: rates_of(list(rows.values()), missing[method]) for method, rows in by_method.items()
    }
    if against is None:
        return table
    for method, rows in by_method.items():
        both = sorted(rows.keys() & by_method[against].keys())
        if method != against and both:
            pairs = [(rows[key], by_method[against][key]) for key in both]
            table[method][f"minus_{against}"] = differences(pairs)
    return table


def finished_rows(jobs: Sequence[Job], folder: Path) -> list[Row]:
    """The results of those jobs that are finished.

    Raises:
        SceneError: a file of results is damaged.
    """
    return [found for _, found in _found(jobs, folder)]


def finished_scenes(jobs: Sequence[Job], folder: Path) -> set[Any]:
    """Keys of the scenes of those jobs that are finished.

    Raises:
        SceneError: a file of results is damaged.
    """
    return {job.scene_key for job, _ in _found(jobs, folder)}


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
    found = {suite: methods_there(folder, suite) for suite in suite_names()}
    return {suite: own for suite, own in found.items() if own}


def manifests_there(folder: Path) -> list[str]:
    """The manifests that ship and have files of results."""
    return [name for name in manifest_names() if any((folder / name).glob("*.json"))]


def methods_there(folder: Path, suite: str) -> list[str]:
    """The methods with files of results of a suite, by its name or its own file."""
    name = read_suite(suite).name
    return [m for m in (*METHODS, *YARDSTICKS) if result_file(folder, name, m).is_file()]
