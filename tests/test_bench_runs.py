"""Runs of the benchmark that are interrupted, fail in part, or are shared out."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraweave import MethodError
from loraweave.bench import run_jobs, suite_jobs
from loraweave.bench.engines import finished_jobs
from loraweave.bench.run import read_results, result_file
from loraweave.cli import app
from loraweave.miniature.judged import SceneDrawer


@pytest.fixture(scope="module")
def jobs():
    return suite_jobs("boxes2", ["merge", "masked"], steps=1, first=3)


@pytest.fixture(scope="module")
def expected(jobs):
    """What one process finds, by key, without what depends on the machine."""
    return {f.job.key: known(f.result) for f in finished_jobs(jobs, "local", 1)}


def known(result):
    cost = {key: result["cost"][key] for key in ("calls", "rows", "backward_rows")}
    return {**result, "cost": cost}


def written(folder: Path, jobs) -> dict:
    found = {}
    for path in {result_file(folder, job.suite, job.method) for job in jobs}:
        found |= {key: known(result) for key, result in read_results(path).items()}
    return found


def test_a_job_that_fails_does_not_stop_the_others(jobs, expected, tmp_path):
    bad = replace(jobs[1], names=("nobody", "blackcat"))
    counts = run_jobs([jobs[0], bad, *jobs[2:4]], tmp_path)
    assert (counts["run"], counts["found"]) == (3, 0)
    (fault,) = counts["failed"]
    assert fault["names"] == ["nobody", "blackcat"]
    assert fault["fault"] == "KeyError: 'nobody'"
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
    assert f"failed: masked, {', '.join(job.names)}" in result.stderr
    assert f"seed {job.seed}: MemoryError: no room" in result.stderr
    monkeypatch.undo()
    again = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(again.stdout) == {"run": 1, "found": 1, "failed": []}


def test_two_runs_may_write_to_one_file(jobs, expected, tmp_path):
    """The second one begins before the first one has finished anything."""
    first, second = jobs[:2], jobs[2:]
    for finished in finished_jobs(first[:1], "local", 1):
        run_jobs(second, tmp_path)
        run_jobs([finished.job], tmp_path)
    run_jobs(first, tmp_path)
    assert written(tmp_path, jobs) == expected


KILLED = """
import os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from loraweave.bench import engines, run_jobs, suite_jobs
worker = engines.Worker("cpu")  # loaded once, for all the runs
engines.Worker = lambda device: worker
jobs = suite_jobs("boxes2", ["merge", "masked"], steps=1, first=3)
for line in sys.stdin:
    if not (child := os.fork()):
        run_jobs(jobs, Path(sys.argv[1]))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_moment_it_goes_on(jobs, expected, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    rng, done, killed = random.Random(0), 0, 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:

        def run(patience: float) -> int:
            """The status of a run that is killed after so many seconds."""
            p.stdin.write("\n")
            p.stdin.flush()
            child = int(p.stdout.readline())
            time.sleep(patience)
            os.kill(child, signal.SIGKILL)
            return int(p.stdout.readline())

        for _ in range(10):
            killed += run(rng.uniform(0, 0.6)) == signal.SIGKILL
            found = written(tmp_path, jobs)
            assert found.items() <= expected.items()
            assert len(found) >= done, "what was finished stays finished"
            done = len(found)
        assert killed >= 5
        p.stdin.close()
    run_jobs(jobs, tmp_path)
    assert written(tmp_path, jobs) == expected


def test_processes_find_what_one_finds(jobs, expected):
    found, killed = {}, []
    for finished in finished_jobs(jobs, "local", 2):
        found[finished.job.key] = known(finished.result)
        if not killed:  # one of them, in the middle of a job
            killed = [child.pid for child in multiprocessing.active_children()][:1]
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert found == expected


def ray_workers() -> list[int]:
    """Processes of the actors on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::Worker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_ray_cluster_finds_what_one_process_finds(jobs, expected):
    pytest.importorskip("ray")
    found, killed = {}, []
    for finished in finished_jobs(jobs, "ray", 2):
        found[finished.job.key] = known(finished.result)
        if not killed and (killed := ray_workers()[:1]):
            os.kill(killed[0], signal.SIGKILL)
    assert killed
    assert found == expected


def test_an_unknown_engine(jobs, tmp_path):
    with pytest.raises(MethodError, match="no engine 'steam'; there are: local, ray"):
        run_jobs(jobs, tmp_path, engine="steam")
