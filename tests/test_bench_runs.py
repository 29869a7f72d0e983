"""Runs of the benchmark that are interrupted, fail in part, or are shared out."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraweave import MethodError
from loraweave.bench import engines, run_jobs, suite_jobs
from loraweave.bench.engines import Finished, finished_jobs
from loraweave.bench.result_files import picture_files, read_results, result_file
from loraweave.cli import app
from loraweave.miniature.judged import SceneDrawer
from loraweave.output import read_png_record


@pytest.fixture(scope="module")
def jobs():
    return suite_jobs("boxes2", ["merge", "masked"], steps=1, first=3)


@pytest.fixture(scope="module")
def expected(jobs):
    """What one process finds, by key, without what depends on the machine."""
    return {f.job.key: known(f.result) for f in finished_jobs(jobs, "local", 1)}


def known(result):
    assert result["cost"]["threads"] >= 1
    cost = {key: result["cost"][key] for key in ("calls", "rows", "backward_rows")}
    return {**result, "cost": cost}


def written(folder: Path, jobs) -> dict:
    found = {}
    for path in {result_file(folder, job.suite, job.method) for job in jobs}:
        found |= {key: known(result) for key, result in read_results(path).items()}
    return found


def test_a_job_that_fails_does_not_stop_the_others(jobs, expected, tmp_path):
    bad = replace(jobs[1], scene=replace(jobs[1].scene, names=("nobody", "blackcat")))
    counts = run_jobs([jobs[0], bad, *jobs[2:4]], tmp_path)
    assert (counts["run"], counts["found"]) == (3, 0)
    (fault,) = counts["failed"]
    assert fault["scene"].startswith("nobody, blackcat in ")
    assert fault["fault"].startswith("LoraError: no LoRA 'nobody' ships")
    assert written(tmp_path, jobs) == {j.key: expected[j.key] for j in (jobs[0], *jobs[2:4])}


def test_failed_jobs_are_listed_and_the_status_is_1(tmp_path, monkeypatch):
    draw = SceneDrawer.draw

    def short_of_memory(drawer, scene, method, *rest):
        if method == "masked":
            raise MemoryError("no room")
        return draw(drawer, scene, method, *rest)

    monkeypatch.setattr(SceneDrawer, "draw", short_of_memory)
    command = [
        "bench", "run", "boxes2", "--methods", "merge,masked", "--steps", "1", "--scenes", "1",
        "--results", str(tmp_path),
    ]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "1 jobs run, 0 were finished before" in result.output
    (job,) = suite_jobs("boxes2", ["masked"], steps=1, first=1)
    assert f"failed: boxes2, masked, {', '.join(job.scene.names)}" in result.stderr
    assert f"seed {job.scene.seed}: MemoryError: no room" in result.stderr
    monkeypatch.undo()
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout) == {"run": 1, "found": 1, "failed": []}


FORKED = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from loraweave.bench import engines, run_jobs, suite_jobs
worker = engines.Worker()  # loaded once, for all the runs
drawn = {}
class Remembering:  # so that runs do nothing but write
    def __init__(self, *how): pass
    def draw(self, job):
        if job.key not in drawn:
            drawn[job.key] = worker.draw(job)
        return drawn[job.key]
engines.Worker = Remembering
jobs = suite_jobs("boxes2", ["merge"], steps=1, first=3)
for job in jobs:
    Remembering().draw(job)
for n in range(10):
    folder = Path(sys.argv[1]) / str(n)
    children = []
    for job in jobs:
        if not (child := os.fork()):
            run_jobs([job], folder)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_several_runs_may_write_to_one_file(jobs, expected, tmp_path):
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], check=True)
    merged = [job for job in jobs if job.method == "merge"]
    for n in range(10):
        assert written(tmp_path / str(n), merged) == {j.key: expected[j.key] for j in merged}


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from loraweave.bench import engines, run_jobs, suite_jobs
worker = engines.Worker(keep=True)  # loaded once, for all the runs
engines.Worker = lambda *how: worker
jobs = suite_jobs("boxes2", ["merge", "masked"], steps=1, first=3)
for line in sys.stdin:
    folder, patience = line.split()
    if not (child := os.fork()):
        run_jobs(jobs, Path(sys.argv[1]) / folder, keep=True)
        os._exit(0)
    time.sleep(float(patience))
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_moment_it_goes_on(jobs, expected, tmp_path):
    """Ten runs that die by SIGKILL; when everything is finished, it begins anew."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    rng, finished, killed, folder = random.Random(0), 0, 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        while killed < 10:
            p.stdin.write(f"{folder} {rng.uniform(0, 0.6)}\n")
            p.stdin.flush()
            killed += int(p.stdout.readline()) == signal.SIGKILL
            found = written(tmp_path / str(folder), jobs)
            for job in jobs:  # pictures come first, and whole
                (path,) = picture_files(tmp_path / str(folder), job)
                assert path.is_file() or job.key not in found
                assert not path.is_file() or read_png_record(path)
            assert found.items() <= expected.items()
            assert len(found) >= finished, "what was finished stays finished"
            finished = len(found)
            if finished == len(jobs):
                folder, finished = folder + 1, 0
        p.stdin.close()
    for n in range(folder + 1):
        run_jobs(jobs, tmp_path / str(n), keep=True)
        assert written(tmp_path / str(n), jobs) == expected


def test_processes_find_what_one_finds(jobs, expected):
    found, killed = {}, []
    for finished in finished_jobs(jobs, "local", 2):
        found[finished.job.key] = known(finished.result)
        if not killed:  # one of them, in the middle of a job
            killed = [child.pid for child in multiprocessing.active_children()][:1]
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert found == expected
    assert not multiprocessing.active_children()


def serve_or_die(end, threads, *how):
    """A worker's process that dies of a masked scene."""
    while True:
        job = end.recv()
        if job.method == "masked":
            os._exit(9)
        end.send(Finished(job, {"threads": threads}))


def test_a_job_that_kills_its_workers_does_not_stop_the_others(jobs, monkeypatch):
    monkeypatch.setattr(engines, "_serve", serve_or_die)
    some = jobs[:3]  # merge, masked, merge
    found = list(finished_jobs(some, "local", 2))
    assert sorted(f.job.key for f in found) == sorted(job.key for job in some)
    for finished in found:
        if finished.job.method == "masked":
            assert (finished.result, "died" in finished.fault) == (None, True)
        else:
            assert finished.result == {"threads": max(1, os.cpu_count() // 2)}


def test_what_is_asked_of_another_version_is_not_drawn(jobs):
    (finished,) = finished_jobs([replace(jobs[0], package="0.0.1")], "local", 1)
    assert finished.result is None
    assert "other weights" in finished.fault


def ray_workers() -> list[int]:
    """The processes of the actors that this process has started."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                actors.append(pid)
        except OSError:
            continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in actors if ours(pid)]


def test_a_ray_cluster_finds_what_one_process_finds(jobs, expected):
    pytest.importorskip("ray")
    found, killed = {}, []
    for finished in finished_jobs(jobs, "ray", 2):
        found[finished.job.key] = known(finished.result)
        if not killed and (killed := ray_workers()[:1]):
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert found == expected


def test_ray_picks_the_gpu_itself(jobs):
    pytest.importorskip("ray")
    with pytest.raises(MethodError, match="'cuda:1' over Ray; there it is cpu or cuda"):
        list(finished_jobs([replace(jobs[0], device="cuda:1")], "ray", 2))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1"])
def test_a_cluster_that_is_not_there(jobs, monkeypatch, address):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    said = re.escape(f"no Ray cluster answers at RAY_ADDRESS={address}: ")
    with pytest.raises(MethodError, match=rf"{said}\[Errno \d+\]"):  # reached, not misread
        list(finished_jobs(jobs, "ray", 2))


def test_an_unknown_engine(jobs, tmp_path):
    with pytest.raises(MethodError, match="no engine 'steam'; there are: local, ray"):
        run_jobs(jobs, tmp_path, engine="steam")
