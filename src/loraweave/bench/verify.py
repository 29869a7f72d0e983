"""Whether results that were made again are those that are committed, job by job.

On the versions that made them they are equal; on others a picture may differ by rounding, and with
it what the judge says.
"""

from pathlib import Path
from typing import Any

from .rates import current
from .report import NothingFinished
from .result_files import read_results

MOST = 1
"""So many pictures of a method on a suite may come out differently on other versions."""
ROUNDING = 2e-4
"""Figures are written with four digits, and with other numbers of threads the last one may turn."""
FIGURES = ("places", "contained", "likeness", "identity", "scores")


def verify(mine: Path, theirs: Path) -> dict[str, dict[str, Any]]:
    """By `suite/method` what is the same in two folders of results.

    Of the jobs that both have: `both` counts them; `same` those of which all that both measured is
    the same but for rounding; `others` has the scenes of those with other outcomes; `largest` is
    the largest difference of another figure. `mine_only` counts the jobs that only the first folder
    has: of other settings, weights or scenes. `versions` says whether the libraries were `the same`
    or `others`, or are `unknown`. `fine` is whether all jobs are in both, and nothing differs on
    the same versions, or on others no more than one outcome does.

    Raises:
        NothingFinished: no job is in both.
        SceneError: a file of results is damaged.
    """
    found = {}
    for path in sorted(mine.glob("*/*.json")):
        name = path.relative_to(mine)
        own, known = read_results(path), read_results(theirs / name)
        both = [(own[key], known[key]) for key in own if key in known]
        found[str(name.with_suffix(""))] = _compared(both, len(own) - len(both))
    if not any(row["both"] for row in found.values()):
        raise NothingFinished(f"no job of {mine} is in {theirs}, too; draw it with `bench run`")
    return found


def _compared(both: list[tuple[dict[str, Any], dict[str, Any]]], mine_only: int) -> dict[str, Any]:
    distances = [_distance(one, other) for one, other in both]
    others = [one["job"] for one, other in both if one["outcomes"] != other["outcomes"]]
    told = {
        "both": len(both),
        "mine_only": mine_only,
        "same": sum(
            one["outcomes"] == other["outcomes"] and distance < ROUNDING
            for (one, other), distance in zip(both, distances)
        ),
        "others": [_scene(job) for job in others],
        "largest": max(distances, default=0.0),
        "versions": _versions([row for pair in both for row in pair]),
    }
    alike = told["versions"] == "the same"
    close = told["same"] == len(both) if alike else len(others) <= MOST
    return told | {"fine": close and not mine_only}


def _versions(rows: list[dict[str, Any]]) -> str:
    if not rows or not all("made" in row for row in rows):
        return "unknown"
    libraries = [{k: v for k, v in row["made"].items() if k != "machine"} for row in rows]
    return "the same" if all(one == libraries[0] for one in libraries) else "others"


def _scene(job: dict[str, Any]) -> str:
    """In words: of a suite, or of a manifest."""
    scene = job.get("scene", job)
    return f"{', '.join(job['names'])}, seed {scene['seed']}"


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of a figure that both have, by the same encoders."""
    alike = current(one) and current(other)
    mine, theirs = (
        _numbers({k: row[k] for k in FIGURES if k in row and (alike or k != "scores")})
        for row in (one, other)
    )
    return max((abs(mine[key] - theirs[key]) for key in mine.keys() & theirs.keys()), default=0.0)


def _numbers(figures: Any, above: str = "") -> dict[str, float]:
    if not isinstance(figures, dict):
        return {above: float(figures)}
    return {
        k: v for key, own in figures.items() for k, v in _numbers(own, f"{above}/{key}").items()
    }
