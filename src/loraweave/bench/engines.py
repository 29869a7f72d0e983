"""Where jobs are drawn: in this process, in several, or over the machines of a Ray cluster.

Every engine hands each job back once, in the order in which they are done, with its result or with
what went wrong. A worker keeps one pipeline from job to job; one that dies is replaced, and its job
is begun again.
"""

import os
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from ..errors import MethodError
from ..miniature.judged import SceneDrawer
from ..progress import silence_libraries
from .jobs import Job

DEATHS = 3
"""So many workers may die before a run ends."""


class Finished(NamedTuple):
    """A job with its result, or with the reason why there is none."""

    job: Job
    result: dict[str, Any] | None
    fault: str = ""


class Worker:
    """Draws jobs one after the other.

    Args:
        device: where the pipeline is.
        threads: of the processor, for this worker; torch's own number if None.
    """

    def __init__(self, device: str, threads: int | None = None):
        silence_libraries()
        if threads is not None:
            torch.set_num_threads(threads)
        self.drawer = SceneDrawer(device)

    def draw(self, job: Job) -> Finished:
        """One job; an error is handed back, so that it does not stop the others."""
        try:
            judged = self.drawer.draw(job.scene, job.method, job.settings, job.steps)
        except Exception as error:
            return Finished(job, None, f"{type(error).__name__}: {error}")
        result: dict[str, Any] = {
            "job": job.description(), "outcomes": judged.outcomes, "cost": judged.cost,
        }  # fmt: skip
        if judged.places is not None:
            result |= {"places": judged.places, "likeness": judged.likeness}
        return Finished(job, result)


def here(jobs: Sequence[Job]) -> Generator[Finished]:
    """One after the other, in this process."""
    worker = Worker(jobs[0].device)
    yield from map(worker.draw, jobs)


def in_processes(jobs: Sequence[Job], workers: int) -> Generator[Finished]:
    """In several processes of this machine, which share its processors out.

    Raises:
        MethodError: workers died too often.
    """
    todo = {job.key: job for job in jobs}
    given = jobs[0].device, max(1, (os.cpu_count() or 1) // workers), os.getpid()
    for _ in range(DEATHS + 1):
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, given)
        try:
            for future in as_completed([pool.submit(_draw, job) for job in todo.values()]):
                finished = future.result()
                del todo[finished.job.key]
                yield finished
            return
        except BrokenProcessPool:
            continue
        finally:
            pool.shutdown(cancel_futures=True)
    raise MethodError(
        f"worker processes died {DEATHS + 1} times, {len(todo)} jobs are left; if memory was "
        "short, use fewer --workers, and run it again to go on"
    )


_worker: Worker
"""Of a process that `in_processes` started."""


def _begin(device: str, threads: int, parent: int) -> None:
    global _worker
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _worker = Worker(device, threads)


def _end_with(parent: int) -> None:
    """A parent that is killed cannot end its workers, which would wait for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _draw(job: Job) -> Finished:
    return _worker.draw(job)


def over_ray(jobs: Sequence[Job], workers: int) -> Generator[Finished]:
    """By actors of a Ray cluster: the one that RAY_ADDRESS names, or a new one on this machine.

    An actor takes one processor, and one GPU if the jobs are for CUDA.

    Raises:
        MethodError: Ray is not there.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise MethodError(
            "Ray is not installed; use pip install 'loraweave[cluster]', or --engine local"
        ) from None
    device = jobs[0].device
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unless asked for
        own = None if "RAY_ADDRESS" in os.environ else workers  # a cluster has its own number
        ray.init(num_cpus=own, include_dashboard=False, log_to_driver=False)
    try:
        kind = ray.remote(
            num_cpus=1, num_gpus=int(device.startswith("cuda")), max_restarts=-1,
            max_task_retries=DEATHS,
        )(Worker)  # fmt: skip
        pool = ActorPool([kind.remote(device, 1) for _ in range(workers)])
        for finished in pool.map_unordered(lambda actor, job: actor.draw.remote(job), list(jobs)):
            yield Finished(*finished)
    finally:
        if started:
            ray.shutdown()


ENGINES = ("local", "ray")


def finished_jobs(jobs: Sequence[Job], engine: str, workers: int) -> Generator[Finished]:
    """All jobs, by the engine of that name.

    Raises:
        MethodError: no such engine.
    """
    if engine not in ENGINES:
        raise MethodError(f"no engine {engine!r}; there are: {', '.join(ENGINES)}")
    if engine == "ray":
        return over_ray(jobs, workers)
    return here(jobs) if workers == 1 else in_processes(jobs, workers)
