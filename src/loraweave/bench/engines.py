"""Where jobs are drawn: in this process, in several, or over the machines of a Ray cluster.

Every engine hands each job back once, in the order in which they are done, with its result or with
what went wrong. A worker keeps one pipeline from job to job; one that dies is replaced and its job
begun again, once.
"""

import logging
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

import torch

from ..errors import MethodError
from ..evaluate.cost import machine
from ..evaluate.flops import teraflops
from ..miniature.judged import Judged
from ..output import versions
from ..progress import silence_libraries
from .jobs import Job
from .real import RealJob

AnyJob = Job | RealJob
TRIES = 2
"""A job that so many workers died of is given up."""


class Drawer(Protocol):
    """What draws jobs of one device and setting.

    Attributes:
        measures: what else results say, about how pictures are measured.
    """

    measures: dict[str, Any]

    def finish(self, job: Any) -> Judged:
        """One job, drawn and judged; what goes wrong is raised."""
        ...

    def draw(self, job: Any) -> Any:
        """Its pictures alone."""
        ...


class Finished(NamedTuple):
    """A job with its result, or with the reason why there is none; PNGs if they are kept."""

    job: AnyJob
    result: dict[str, Any] | None
    fault: str = ""
    pictures: Sequence[bytes] = ()


class Worker:
    """Draws jobs one after the other.

    Args:
        threads: of the processor, for this worker; torch's own number if None.
        keep: hand the pictures back, too.
        flops: draw everything a second time to count them.
    """

    def __init__(self, threads: int | None = None, keep: bool = False, flops: bool = False):
        silence_libraries()
        if threads is not None:
            torch.set_num_threads(threads)
        self.keep, self.flops = keep, flops
        self.drawers: dict[tuple[str, Any], Drawer] = {}

    def draw(self, job: AnyJob) -> Finished:
        """One job; an error is handed back, so that it does not stop the others."""
        try:
            place = job.device, job.setting
            if place not in self.drawers:
                self.drawers = {place: job.drawer()}  # one at a time has room
            drawer = self.drawers[place]
            judged = drawer.finish(job)
            if self.flops:  # apart: counting takes time, and moves some roundings
                judged.cost["tflops"] = teraflops(partial(drawer.draw, job))
        except Exception as error:
            return Finished(job, None, f"{type(error).__name__}: {error}")
        result: dict[str, Any] = {
            "job": job.description(), "cost": judged.cost, **drawer.measures,
            "made": made_by(job.device),
            **{key: value for key, value in asdict(judged.findings).items() if value is not None},
        }  # fmt: skip
        return Finished(job, result, pictures=judged.files() if self.keep else ())


@cache
def made_by(device: str) -> dict[str, str]:
    """Versions of the libraries, and what draws, in words."""
    return {**versions(), "machine": machine(device)}


def here(jobs: Sequence[AnyJob], *how: bool) -> Generator[Finished]:
    """One after the other, in this process; `how` is what `Worker` takes after its threads."""
    worker = Worker(None, *how)
    yield from map(worker.draw, jobs)


class _Process:
    """A process of this machine with a worker, which is given one job at a time.

    Args:
        given: to the worker.
    """

    def __init__(self, *given: Any):
        context = get_context("spawn")
        self.end, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, *given), daemon=True)
        self.process.start()
        other.close()
        self.job: AnyJob | None = None

    def give(self, job: AnyJob) -> None:
        self.job = job
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: its answer will say so
            self.end.send(job)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.end.close()


def _serve(end: Connection, *given: Any) -> None:
    """Draw what comes until nobody is at the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent stops the others
    worker = Worker(*given)
    try:
        while True:
            end.send(worker.draw(end.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def in_processes(jobs: Sequence[AnyJob], workers: int, *how: bool) -> Generator[Finished]:
    """In several processes of this machine, which share its processors out."""
    given = max(1, (os.cpu_count() or 1) // workers), *how
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


def over_ray(jobs: Sequence[AnyJob], workers: int, *how: bool) -> Generator[Finished]:
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
        address = os.environ.get("RAY_ADDRESS")
        own = workers if address is None else None  # a cluster has its own number
        if address is not None:
            _check_listens(address)
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
            worker, job = actor.remote(1, *how), left.popleft()
            flying[worker.draw.remote(job)] = worker, job
        while flying:
            (done, *_), _ = ray.wait(list(flying))
            worker, job = flying.pop(done)
            try:
                finished = Finished(*ray.get(done))
            except RayError as error:
                finished = Finished(job, None, f"its worker died: {str(error).splitlines()[0]}")
                worker = actor.remote(1, *how)
            if left:
                job = left.popleft()
                flying[worker.draw.remote(job)] = worker, job
            yield finished
    finally:
        if started:
            ray.shutdown()


def _check_listens(address: str) -> None:
    """Raise MethodError now if nobody listens there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):  # such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()  # IPv6 has them
    except (OSError, OverflowError) as error:
        raise MethodError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error}; start one there with `ray "
            "start --head`, or unset RAY_ADDRESS for one on this machine"
        ) from None


ENGINES = ("local", "ray")


def finished_jobs(
    jobs: Sequence[AnyJob], engine: str, workers: int, keep: bool = False, flops: bool = False
) -> Generator[Finished]:
    """All jobs, by the engine of that name; for `keep` and `flops` see `Worker`.

    Raises:
        MethodError: no such engine.
    """
    if engine not in ENGINES:
        raise MethodError(f"no engine {engine!r}; there are: {', '.join(ENGINES)}")
    if engine == "ray":
        return over_ray(jobs, workers, keep, flops)
    if workers == 1:
        return here(jobs, keep, flops)
    return in_processes(jobs, workers, keep, flops)
