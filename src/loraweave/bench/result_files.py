"""Files of results: one for a method on a suite, JSON with a line for each job.

What many jobs have in common, the method's settings and the versions that made them, is written
once, and the jobs name it by its number.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SceneError
from .engines import AnyJob

Results = dict[str, dict[str, Any]]


def result_file(folder: Path, suite: str, method: str) -> Path:
    """Where the results of a method on a suite are."""
    return folder / suite / f"{method}.json"


def picture_files(folder: Path, job: AnyJob) -> list[Path]:
    """Where the pictures of a job are, if they are kept."""
    return [folder / job.suite / job.method / name for name in job.pictures]


def read_results(path: Path) -> Results:
    """Results by the keys of their jobs; none if there is no file.

    Raises:
        SceneError: something else is in the file.
    """
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text())
        found = data["jobs"]
        assert all("outcomes" in result and "job" in result for result in found.values())
        for result in found.values():
            for holder, name in _shared(result):
                if isinstance(holder.get(name), int):  # files of former versions have it here
                    holder[name] = data[name][holder[name]]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError):
        raise SceneError(f"{path} is no file of benchmark results; move it away") from None
    return found


def results_text(suite: str, method: str, results: Mapping[str, dict[str, Any]]) -> str:
    """What a file of results holds: small and fit for diffs."""
    known: dict[str, list[Any]] = {"settings": [], "made": []}
    lines = []
    for key, result in results.items():
        row = {**result, "job": dict(result["job"])}
        for holder, name in _shared(row):
            if name in holder:
                if holder[name] not in known[name]:
                    known[name].append(holder[name])
                holder[name] = known[name].index(holder[name])
        lines.append(f"{json.dumps(key)}: {json.dumps(row)}")
    head = {"suite": suite, "method": method, **known}
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items())
    rows = ",\n".join(lines)
    return f'{{{text}, "jobs": {{\n{rows}\n}}}}\n'


def _shared(result: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """What a file says once: where in a result it is, and by which name."""
    return [(result["job"], "settings"), (result, "made")]
