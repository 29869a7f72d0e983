"""Running jobs; what is finished stays finished."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import SceneError
from ..evaluate.references import read_picture
from ..files import write_atomically
from ..progress import track
from .engines import AnyJob, finished_jobs
from .rates import current
from .result_files import picture_files, read_results, result_file, results_text


def run_jobs(
    jobs: Sequence[AnyJob], folder: Path, engine: str = "local", workers: int = 1,
    keep: bool = False, flops: bool = False, refresh: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Draw and judge every job that is not finished yet.

    A file is written after every job, complete or not at all, so that a run that is killed loses
    the jobs in flight. Several runs may write to one folder. A job that fails does not stop the
    others.

    Args:
        jobs: of any suites and methods, for one device.
        folder: where the files are.
        engine: `local` or `ray`, see `engines`.
        workers: how many jobs are in flight.
        keep: the pictures, too, as `SUITE/METHOD/KEY.png`; what is finished without is drawn again.
        flops: count them, too; every picture is then drawn twice, also those that are finished
            without.
        refresh: draw again what is finished, but has no scores by the encoders that ship now, or
            does not say which versions made it.

    Returns:
        How many were `run` and how many were `found`; `failed` has the others, each with its
        suite, method, scene and the `fault`.

    Raises:
        SceneError: a file of results or a picture among them is damaged, or the folder cannot be
            written.
        MethodError: no such engine, or no cluster for it.
    """
    paths = dict.fromkeys(result_file(folder, job.suite, job.method) for job in jobs)
    there = {path: read_results(path) for path in paths}
    unlike = {job.key: job for job in jobs}

    def lacks(job: AnyJob) -> bool:
        found = there[result_file(folder, job.suite, job.method)].get(job.key)
        uncounted = flops and found is not None and "tflops" not in found["cost"]
        stale = refresh and found is not None and not (current(found) and "made" in found)
        return found is None or uncounted or stale or (keep and not _kept(folder, job))

    todo = [job for job in unlike.values() if lacks(job)]
    failed = []
    if todo:
        with closing(finished_jobs(todo, engine, workers, keep, flops)) as finished:
            for job, result, fault, pictures in track(finished, "bench", total=len(todo)):
                if result is None:
                    failed.append({
                        "suite": job.suite, "method": job.method, "scene": job.label,
                        "fault": fault,
                    })  # fmt: skip
                else:
                    _keep(folder, job, result, pictures)
    return {"run": len(todo) - len(failed), "found": len(unlike) - len(todo), "failed": failed}


def _kept(folder: Path, job: AnyJob) -> bool:
    """Whether a job's pictures are there, and whole."""
    paths = [path for path in picture_files(folder, job) if path.exists()]
    for path in paths:
        read_picture(path)
    return len(paths) == len(picture_files(folder, job))


def _keep(folder: Path, job: AnyJob, result: dict[str, Any], pictures: Sequence[bytes]) -> None:
    """Add a result to its file, with what others have written there meanwhile; pictures first, so
    that no result says that they are there when they are not."""
    path = result_file(folder, job.suite, job.method)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, data in zip(picture_files(folder, job), pictures):
            place.parent.mkdir(exist_ok=True)
            write_atomically(place, data)
        with FileLock(path.with_name(f".{path.stem}.lock")):
            results = read_results(path)
            counted = results.get(job.key, {}).get("cost", {}).get("tflops")
            if counted is not None:
                result["cost"].setdefault("tflops", counted)
            results[job.key] = result
            write_atomically(path, results_text(job.suite, job.method, results).encode())
    except OSError as error:
        raise SceneError(f"cannot write {path}: {error.strerror}") from None
