"""Running jobs; what is finished stays finished."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SceneError
from ..files import write_atomically
from ..miniature.judged import SceneDrawer
from ..progress import track
from .jobs import Job


def result_file(folder: Path, suite: str, method: str) -> Path:
    """Where the results of a method on a suite are."""
    return folder / suite / f"{method}.json"


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Results by the keys of their jobs; none if there is no file.

    Raises:
        SceneError: something else is in the file.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())["jobs"]
        assert all("outcomes" in result and "job" in result for result in found.values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise SceneError(f"{path} is no file of benchmark results; move it away") from None
    return found


def run_jobs(jobs: Sequence[Job], folder: Path) -> dict[str, int]:
    """Draw and judge every job that is not finished yet.

    A file is written after every job, complete or not at all.

    Args:
        jobs: of any suites and methods.
        folder: where the files are.

    Returns:
        How many were run and how many were found.

    Raises:
        SceneError: a file of results is damaged, or the folder cannot be written.
    """
    done: dict[Path, dict[str, dict[str, Any]]] = {}
    for job in jobs:
        path = result_file(folder, job.suite, job.method)
        if path not in done:
            done[path] = read_results(path)
    todo = [j for j in jobs if j.key not in done[result_file(folder, j.suite, j.method)]]
    drawer = SceneDrawer() if todo else None
    for job in track(todo, "bench", total=len(todo)):
        assert drawer is not None
        judged = drawer.draw(job.scene, job.method, job.settings, job.steps)
        path = result_file(folder, job.suite, job.method)
        done[path][job.key] = {
            "job": job.description(), "outcomes": judged.outcomes, "cost": judged.cost,
        }  # fmt: skip
        if judged.places is not None:
            done[path][job.key] |= {"places": judged.places, "likeness": judged.likeness}
        text = json.dumps({"suite": job.suite, "method": job.method, "jobs": done[path]}, indent=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, f"{text}\n".encode())
        except OSError as error:
            raise SceneError(f"cannot write {path}: {error.strerror}") from None
    return {"run": len(todo), "found": len(jobs) - len(todo)}
