"""Whether results that were made again are those that are committed, job by job.

On the versions that made them they are equal; on others a picture may differ by rounding, and with
it what the judge says.
"""

from pathlib import Path
from typing import Any

from .report import NothingFinished
from .run import read_results

MOST = 1
"""So many pictures of a method on a suite may come out differently on other versions."""


def verify(mine: Path, theirs: Path) -> dict[str, dict[str, Any]]:
    """By `suite/method` what is the same in two folders of results.

    Of the jobs that both have: `both` counts them, `same` those in which every outcome is the same,
    `others` has the scenes of the rest, and `score` is the largest difference of a score (None
    without scores by the same encoders). `versions` says whether the libraries were the same.

    Raises:
        NothingFinished: no job is in both.
        SceneError: a file of results is damaged.
    """
    found = {}
    for path in sorted(mine.glob("*/*.json")):
        name = path.relative_to(mine)
        own, known = read_results(path), read_results(theirs / name)
        if both := [(own[key], known[key]) for key in own if key in known]:
            found[str(name.with_suffix(""))] = _compared(both)
    if not found:
        raise NothingFinished(f"no job of {mine} is in {theirs}, too; draw it with `bench run`")
    return found


def _compared(both: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    others = [one["job"] for one, other in both if one["outcomes"] != other["outcomes"]]
    scores = [
        abs(a[key] - b[key])
        for one, other in both
        if one.get("scores") and one.get("scorer") == other.get("scorer")
        for a, b in [(_numbers(one["scores"]), _numbers(other["scores"]))]
        for key in a.keys() & b.keys()
    ]
    libraries = [
        {key: value for key, value in row.get("made", {}).items() if key != "machine"}
        for pair in both for row in pair
    ]  # fmt: skip
    return {
        "both": len(both),
        "same": len(both) - len(others),
        "others": [f"{', '.join(job['names'])}, seed {job.get('seed')}" for job in others],
        "score": max(scores, default=None),
        "versions": "the same" if all(one == libraries[0] for one in libraries) else "others",
    }


def _numbers(scores: Any, above: str = "") -> dict[str, float]:
    if not isinstance(scores, dict):
        return {above: float(scores)}
    return {k: v for key, own in scores.items() for k, v in _numbers(own, f"{above}/{key}").items()}
