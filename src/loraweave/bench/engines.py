"""Where jobs are drawn: in this process, in several, or over the machines of a Ray cluster.

Every engine hands each job back once, in the order in which they are done, with its result or with
what went wrong. A worker keeps one pipeline from job to job; one that dies is replaced and its job
begun again, once.
"""

import logging
import os
import signal
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

from .. import __version__
from ..errors import MethodError
from ..miniature.judged import SceneDrawer
from ..progress import silence_libraries
from .jobs import Job, miniature_version

TRIES = 2
"""A job that so many workers died of is given up."""


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
            here = __version__, miniature_version(job.scene.loras)
            if here != (job.package, job.miniature):
                return Finished(job, None, f"its worker has loraweave {here[0]} or other weights")
            judged = self.drawer.draw(job.scene, job.method, job.settings, job.steps)
        except Exception as error:
            return Finished(job, None, f"{type(error).__name__}: {error}")
        cost = {**judged.cost, "threads": torch.get_num_threads()}
        result: dict[str, Any] = {
            "job": job.description(), "outcomes": judged.outcomes, "cost": cost,
        }  # fmt: skip
        if judged.places is not None:
            result |= {"places": judged.places, "likeness": judged.likeness}
        return Finished(job, result)


def here(jobs: Sequence[Job]) -> Generator[Finished]:
    """One after the other, in this process."""
    worker = Worker(jobs[0].device)
    yield from map(worker.draw, jobs)


class _Process:
    """A process of this machine with a worker, which is given one job at a time."""

    def __init__(self, device: str, threads: int):
        context = get_context("spawn")
        self.end, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, device, threads), daemon=True)
        self.process.start()
        other.close()
        self.job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: its answer will say so
            self.end.send(job)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.end.close()


def _serve(end: Connection, device: str, threads: int) -> None:
    """Draw what comes until nobody is at the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent stops the others
    worker, fault = None, ""
    try:
        worker = Worker(device, threads)
    except Exception as error:
        fault = f"no worker: {type(error).__name__}: {error}"
    try:
        while True:
            job = end.recv()
            end.send(Finished(job, None, fault) if worker is None else worker.draw(job))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def in_processes(jobs: Sequence[Job], workers: int) -> Generator[Finished]:
    """In several processes of this machine, which share its processors out."""
    given = jobs[0].device, max(1, (os.cpu_count() or 1) // workers)
    left, deaths = deque(jobs), Counter[str]()
    processes = [_Process(*given) for _ in range(min(workers, len(jobs)))]
    try:
        for process in processes:
            process.give(left.popleft())
        while busy := {process.end: n for n, process in enumerate(processes) if process.job}:
            for end in wait(list(busy)):
                n = busy[end]  # type: ignore[index]
                job = processes[n].job
                assert job is not None
                try:
                    finished = processes[n].end.recv()
                except (EOFError, ConnectionResetError):
                    processes[n].stop()
                    processes[n] = _Process(*given)
                    deaths[job.key] += 1
                    if deaths[job.key] < TRIES:
                        left.appendleft(job)
                        finished = None
                    else:
                        finished = Finished(job, None, "its worker died, and the next one too")
                processes[n].job = None
                if left:
                    processes[n].give(left.popleft())
                if finished is not None:
                    yield finished
    finally:
        for process in processes:
            process.stop()


def over_ray(jobs: Sequence[Job], workers: int) -> Generator[Finished]:
    """By actors of a Ray cluster: the one that RAY_ADDRESS names, or a new one on this machine.

    An actor takes one processor, and one GPU if the jobs are for CUDA.

    Raises:
        MethodError: no Ray, no cluster, or one without room.
    """
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise MethodError(
            "Ray is not installed; use pip install 'loraweave[cluster]', or --engine local"
        ) from None
    device = jobs[0].device
    if device not in ("cpu", "cuda"):
        raise MethodError(f"device {device!r} over Ray; there it is cpu or cuda, Ray picks which")
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unless asked for
        own = None if "RAY_ADDRESS" in os.environ else workers  # a cluster has its own number
        try:
            ray.init(
                num_cpus=own, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, RayError) as error:
            reason = str(error).splitlines()[0]
            raise MethodError(f"no Ray cluster could be reached or started: {reason}") from None
    try:
        kind = "GPU" if device == "cuda" else "CPU"
        room = int(ray.cluster_resources().get(kind, 0))
        if not room:
            raise MethodError(f"the Ray cluster has no {kind}; use another device or cluster")
        actor = ray.remote(
            num_cpus=1, num_gpus=int(device == "cuda"), max_restarts=-1, max_task_retries=TRIES - 1
        )(Worker)
        left, flying = deque(jobs), {}
        for _ in range(min(workers, room, len(jobs))):
            worker, job = actor.remote(device, 1), left.popleft()
            flying[worker.draw.remote(job)] = worker, job
        while flying:
            (done, *_), _ = ray.wait(list(flying))
            worker, job = flying.pop(done)
            try:
                finished = Finished(*ray.get(done))
            except RayError as error:
                finished = Finished(job, None, f"its worker died: {str(error).splitlines()[0]}")
                worker = actor.remote(device, 1)
            if left:
                job = left.popleft()
                flying[worker.draw.remote(job)] = worker, job
            yield finished
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
