"""Results that were made again, beside those that they should equal; what lacks something."""

import json

import pytest
from typer.testing import CliRunner

from loraweave import SceneError
from loraweave.bench import run_jobs, suite_jobs
from loraweave.bench.result_files import read_results, result_file, results_text
from loraweave.bench.verify import verify
from loraweave.cli import app

FEW = {"steps": 1, "first": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    run_jobs(suite_jobs("pairs", ["base"], **FEW), folder)
    return folder


def changed(drawn, folder, change):
    """The same results with something else in the first one."""
    path = result_file(folder, "pairs", "base")
    rows = read_results(result_file(drawn, "pairs", "base"))
    change(next(iter(rows.values())))
    path.parent.mkdir(parents=True)
    path.write_text(results_text("pairs", "base", rows))
    return folder


def other_outcome(row):
    name = row["job"]["names"][0]
    row["outcomes"][name] = "missing" if row["outcomes"][name] != "missing" else "right"
    row["scores"]["clip_t"] += 0.25


def other_figure(row):
    row["scores"]["dino"][row["job"]["names"][0]] += 0.125


def told(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def test_what_is_made_again_is_the_same(drawn):
    row = verify(drawn, drawn)["pairs/base"]
    assert row == {
        "both": 2, "mine_only": 0, "same": 2, "others": [], "largest": 0, "versions": "the same",
        "fine": True,
    }  # fmt: skip
    assert told("verify", drawn, "--against", drawn).exit_code == 0


def test_one_picture_may_differ_on_other_versions_only(drawn, tmp_path):
    def older(row):
        other_outcome(row)
        row["made"]["torch"] = "1.0"

    same = changed(drawn, tmp_path / "same", other_outcome)
    result = told("verify", same, "--against", drawn, "--json")
    assert result.exit_code == 1
    row = json.loads(result.stdout)["pairs/base"]
    assert (row["both"], row["same"], len(row["others"])) == (2, 1, 1)
    assert row["largest"] == pytest.approx(0.25)
    old = changed(drawn, tmp_path / "old", older)
    result = told("verify", old, "--against", drawn)
    assert result.exit_code == 0
    assert "others" in result.stdout
    unsaid = changed(drawn, tmp_path / "unsaid", lambda row: row.pop("made"))
    assert verify(unsaid, drawn)["pairs/base"]["versions"] == "unknown"


def test_on_the_same_versions_every_figure_counts(drawn, tmp_path):
    folder = changed(drawn, tmp_path / "r", other_figure)
    row = verify(folder, drawn)["pairs/base"]
    assert (row["same"], row["others"], row["fine"]) == (1, [], False)
    assert row["largest"] == pytest.approx(0.125)
    assert told("verify", folder, "--against", drawn).exit_code == 1


def test_jobs_without_a_counterpart_are_not_passed_over(drawn, tmp_path):
    """As after a change of a setting's default: other keys, so nothing to compare with."""
    rows = read_results(result_file(drawn, "pairs", "base"))
    known = dict(list(rows.items())[:1])
    path = result_file(tmp_path, "pairs", "base")
    path.parent.mkdir(parents=True)
    path.write_text(results_text("pairs", "base", known))
    row = verify(drawn, tmp_path)["pairs/base"]
    assert (row["both"], row["mine_only"], row["same"], row["fine"]) == (1, 1, 1, False)
    result = told("verify", drawn, "--against", tmp_path)
    assert result.exit_code == 1
    assert "in MINE only" in result.stdout
    more = result_file(drawn.parent / "more", "pairs", "omg")
    more.parent.mkdir(parents=True)
    more.write_text(results_text("pairs", "omg", rows))
    result_file(more.parent.parent, "pairs", "base").write_text(
        results_text("pairs", "base", rows)
    )  # fmt: skip
    whole = verify(more.parent.parent, drawn)["pairs/omg"]
    assert (whole["both"], whole["mine_only"], whole["fine"]) == (0, 2, False)


def test_nothing_in_common_is_an_error(drawn, tmp_path):
    with pytest.raises(SceneError, match="bench run"):
        verify(drawn, tmp_path)
    assert told("verify", tmp_path, "--against", drawn).exit_code == 2


@pytest.mark.parametrize("lacking", ["scorer", "made"])
def test_what_lacks_something_is_drawn_again_if_asked(drawn, tmp_path, lacking):
    folder = changed(drawn, tmp_path / "r", lambda row: row.pop(lacking))
    jobs = suite_jobs("pairs", ["base"], **FEW)
    assert run_jobs(jobs, folder)["run"] == 0
    assert run_jobs(jobs, folder, refresh=True)["run"] == 1
    assert verify(folder, drawn)["pairs/base"]["same"] == 2
    assert run_jobs(jobs, folder, refresh=True)["run"] == 0


def test_several_suites_in_one_run(tmp_path):
    few = ["--methods", "base", "--steps", 1, "--scenes", 1, "--results", tmp_path]
    result = told("run", "pairs", "three", *few)
    assert result.exit_code == 0, result.stderr
    assert "2 jobs run" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"pairs", "three"}
    mixed = told("run", "pairs", "clora", *few)
    assert mixed.exit_code == 2
    assert "in another command" in mixed.stderr


def test_that_the_picture_is_cut_into_strips_is_said(tmp_path):
    few = ["--methods", "masked,merge", "--steps", 1, "--scenes", 1, "--results", tmp_path]
    result = told("run", "pairs", *few)
    assert result.exit_code == 0, result.stderr
    assert "right for masked (layout=strips)" in " ".join(result.stderr.split())
    assert "note" not in told("run", "pairs", *few, "--set", "masked.layout=strips").stderr
    assert "note" not in told("run", "boxes2", *few).stderr


def test_files_of_results_say_once_what_rows_have_in_common(drawn, tmp_path):
    rows = read_results(result_file(drawn, "pairs", "base"))
    text, path = results_text("pairs", "base", rows), tmp_path / "base.json"
    data = json.loads(text)
    assert len(data["settings"]) == len(data["made"]) == 1
    assert {row["made"] for row in data["jobs"].values()} == {0}
    path.write_text(text)
    assert read_results(path) == rows
    path.write_text(json.dumps({"suite": "pairs", "method": "base", "jobs": rows}))
    assert read_results(path) == rows, "as former versions wrote them"
    path.write_text(text.replace('"made": 0', '"made": 7'))
    with pytest.raises(SceneError, match="no file of benchmark results"):
        read_results(path)
