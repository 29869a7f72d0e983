"""Jobs, runs that resume, and reports."""

import csv
import io
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from loraweave import MethodError, SceneError
from loraweave.bench import report, run_jobs, suite_jobs
from loraweave.bench.jobs import miniature_version
from loraweave.bench.rates import FAILURES
from loraweave.bench.result_files import result_file
from loraweave.bench.suites import read_suite, suite_names
from loraweave.cli import app
from loraweave.layout.boxes import containment, intersection_over_union, tight_box
from loraweave.miniature.judge import load_judge
from loraweave.miniature.scenes import LEAST_COMMON, SceneRule, scenes
from loraweave.miniature.shipped import native_side
from loraweave.miniature.world import render

SHARES = ("success", "right", *FAILURES)
TOLD = {*SHARES, *(f"{kind}_ci" for kind in SHARES)}


@pytest.fixture(scope="module")
def jobs():
    return suite_jobs("pairs", ["merge", "base"], steps=1)


def test_settings_that_are_newer_than_results_count_where_they_are_not_as_before():
    (plain,) = suite_jobs("pairs", ["clora"], first=1)
    assert plain.settings["update_every"] == 1
    assert "update_every" not in plain.description()["settings"]
    (other,) = suite_jobs("pairs", ["clora"], first=1, settings={"clora": {"update_every": 2}})
    assert other.description()["settings"]["update_every"] == 2
    assert other.key != plain.key
    (grown,) = suite_jobs("pairs", ["weave"], first=1)
    assert grown.description()["settings"]["room"] == 0.08
    (fast,) = suite_jobs("pairs", ["weave"], first=1, scheduler="DPM++ 2M", dtype="bfloat16")
    assert (fast.scheduler, fast.setting) == ("dpm++_2m", "bfloat16")
    with pytest.raises(SceneError, match="no scheduler 'fast'"):
        suite_jobs("pairs", ["weave"], scheduler="fast")


def test_a_key_says_all_that_an_outcome_depends_on(jobs):
    assert len({job.key for job in jobs}) == len(jobs) == 12 * 2 * 2
    assert [j.key for j in suite_jobs("pairs", ["merge", "base"], steps=1)] == [j.key for j in jobs]
    first = jobs[0]
    for change in (
        {"steps": 2},
        {"method": "clora"}, {"settings": {"rank": 2}}, {"miniature": "x"}, {"package": "9"},
        {"split": "tuning"}, {"suite": "three"}, {"device": "cuda"},
        {"scheduler": "unipc"}, {"dtype": "bfloat16"},
    ):  # fmt: skip
        assert replace(first, **change).key != first.key
    for change in (
        {"seed": 1}, {"background": "moon"}, {"names": ("a", "b")}, {"style": "neon"},
        {"attribute": ("cat", "red")}, {"place": "candyland"}, {"worn": ("wizardhat", "a")},
        {"relation": "above"}, {"wording": 1},
    ):  # fmt: skip
        assert replace(first, scene=replace(first.scene, **change)).key != first.key
    wide = replace(first, scene=replace(first.scene, placed=True))
    assert wide.key == first.key, "the suites that ship say whether they have boxes"
    own = replace(first, suite="mine")
    assert replace(wide, suite="mine").key != own.key, "a suite of one's own may change"
    assert first.settings["rule"] == "sum", "defaults are written down too"
    tuning = suite_jobs("pairs", ["merge"], split="tuning", steps=1)
    assert not {j.scene for j in tuning} & {j.scene for j in jobs}


def test_the_version_of_the_miniature_is_that_of_what_a_scene_uses():
    versions = {miniature_version(names) for names in (("blackcat",), ("blackcat", "golddog"), ())}
    assert len(versions) == 3
    assert miniature_version(("golddog", "blackcat")) in versions
    assert all(len(version) == 12 for version in versions)


def test_what_is_finished_is_not_run_again(jobs, tmp_path):
    few = jobs[:4]
    assert run_jobs(few[:2], tmp_path) == {"run": 2, "found": 0, "failed": []}
    path = result_file(tmp_path, "pairs", "merge")
    before = path.read_text()
    assert run_jobs(few, tmp_path) == {"run": 2, "found": 2, "failed": []}
    found = json.loads(path.read_text())["jobs"]
    assert json.loads(before)["jobs"].items() <= found.items()
    again = run_jobs(few, tmp_path)
    assert again == {"run": 0, "found": 4, "failed": []}

    table = report(few, tmp_path, against="base")
    assert table["merge"]["scenes"] == table["base"]["scenes"] == 2
    assert set(table["merge"]["minus_base"]) == TOLD
    shares = [table["merge"][kind] for kind in ("right", *FAILURES)]
    assert sum(shares) == pytest.approx(1), "every concept has one outcome"
    assert table["merge"]["cost"]["rows"] == 2
    assert report(jobs[:6], tmp_path)["merge"]["open"] == 1


@pytest.fixture
def results(tmp_path):
    """Made-up results of four scene-seeds of `boxes2`, full, 50 steps."""
    outcomes = {"merge": ["missing", "right", "swapped", "blended"], "clora": ["right"] * 4}
    for method, second in outcomes.items():
        jobs = suite_jobs("boxes2", [method], "full", first=4)
        found = {
            job.key: {
                "job": job.description(),
                "outcomes": dict(zip(job.scene.names, ("right", own))),
                "cost": {"seconds": 2.0 + n * n, "calls": 50 + n * n},
                "places": dict(zip(job.scene.names, (0.5, 0.4))),
                "likeness": dict(zip(job.scene.names, (0.9, 0.7))),
            }
            for n, (job, own) in enumerate(zip(jobs, second))
        }
        path = result_file(tmp_path, "boxes2", method)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"suite": "boxes2", "method": method, "jobs": found}))
    return tmp_path


def reported(folder, *more: str) -> str:
    command = ["bench", "report", "--results", str(folder), "--scenes", "4", *more]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    return result.output


def test_rates_by_hand(results):
    found = json.loads(reported(results, "--json", "--against", "merge"))
    assert list(found) == ["boxes2"]
    assert list(found["boxes2"]) == ["clora", "merge"], "in the order of METHODS"
    row = found["boxes2"]["merge"]
    assert (row["scenes"], row["open"]) == (4, 0)
    assert (row["success"], row["right"], row["in_place"]) == (0.25, 0.625, 0.5)
    assert (row["missing"], row["swapped"], row["blended"], row["duplicated"]) == (
        0.125, 0.125, 0.125, 0,
    )  # fmt: skip
    assert (row["layout_iou"], row["likeness"]) == (0.45, 0.8)
    assert row["cost"] == {"seconds": 4.5, "calls": 53.5}, "median and mean"
    assert row["in_place_ci"] == [0.1988, 0.8012], "all alike, of four scenes"
    minus = found["boxes2"]["clora"]["minus_merge"]
    assert (minus["success"], minus["right"], minus["in_place"]) == (0.75, 0.375, 0)


def test_tables_in_three_forms(results):
    written = reported(results, "boxes2", "--format", "markdown")
    head, rule, *lines = written.split("\n\n")[1].strip().splitlines()
    assert head.startswith("| method | scenes | in place | right | pictures | missing |")
    assert set(rule) <= set("|- ")
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| `clora`", "4", "50 [20, 80]"], ["| `merge`", "4", "50 [20, 80]"],
    ]  # fmt: skip
    assert lines[1].endswith(" | +0 [-60, +60] |")
    (_, line) = csv.DictReader(io.StringIO(reported(results, "--format", "csv")))
    assert (line["suite"], line["method"], line["right"]) == ("boxes2", "merge", "0.625")
    assert line["cost.seconds"] == "4.5"
    assert line["in_place_ci_low"] == "0.1988"
    tex = reported(results, "--format", "latex")
    assert tex.count(r"\\") == 3
    assert "on the miniature" in tex
    assert r"percent with 95 \%" in tex
    assert "merge" in reported(results)


def test_what_is_not_finished_is_seen(results):
    assert "4 of 5" in reported(results, "--scenes", "5", "--format", "markdown")
    # another suite, of which nothing is finished with these settings, does not hide this one
    other = result_file(results, "pairs", "merge")
    other.parent.mkdir()
    other.write_text(json.dumps({"jobs": {}}))
    assert list(json.loads(reported(results, "--json", "--set", "clora.masks=true"))) == ["boxes2"]
    for more, message in (
        (["pairs"], "nothing of this is finished"),
        (["--against", "steam"], "'steam' is not among the methods compared: clora, merge"),
        (["--set", "steam.x=1"], "none of the methods"),
    ):
        command = ["bench", "report", *more, "--results", str(results)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())


def test_no_results_to_report(tmp_path):
    for more in ([], ["pairs"]):
        result = CliRunner().invoke(app, ["bench", "report", *more, "--results", str(tmp_path)])
        assert result.exit_code == 2
        assert "no results" in result.stderr


def test_damaged_results_are_not_overwritten(jobs, tmp_path):
    path = result_file(tmp_path, "pairs", "merge")
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(SceneError, match="no file of benchmark results"):
        run_jobs(jobs[:1], tmp_path)
    assert path.read_text() == "{}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("pears", ["merge"]), "no suite 'pears'.*there are: accessory"),
        (("pairs", ["merge"], "huge"), "no size 'huge'"),
        (("pairs", ["mergee"]), "no method 'mergee'"),
        (("pairs", ["no.yaml"]), "no method 'no.yaml'"),
    ],
)
def test_unknown_names(given, message):
    with pytest.raises(MethodError, match=message):
        suite_jobs(*given)


def test_boxes_that_scenes_do_not_have_are_missed_before_anything_is_drawn():
    regions = {"lora_composer": {"layout": "regions"}}
    with pytest.raises(MethodError, match="the scenes of pairs have no boxes, which lora_comp"):
        suite_jobs("pairs", ["lora_composer"], settings=regions)
    assert suite_jobs("boxes2", ["lora_composer"], settings=regions)


def test_boxes_of_crowded_scenes_overlap():
    suite = read_suite("overlap")
    assert all(scene.crowded for scene in suite.drawn("quick", "report"))
    for scene in suite.drawn("full", "report"):
        first, second = scene.boxes().values()
        assert containment(first, second) >= LEAST_COMMON
        assert intersection_over_union(first, second) < 0.5, "each is in its own box only"
        drawn = scene.drawing()
        behind = replace(drawn.drawing, subjects=drawn.drawing.subjects[:1])
        (whole,) = render(behind, scene.width, native_side()).masks
        assert first == tight_box(whole), "of the whole"
    (job,) = suite_jobs("overlap", ["merge"], "full", first=1)
    assert job.description()["crowded"] is True
    (other,) = suite_jobs("boxes2", ["merge"], "full", first=1)
    assert "crowded" not in other.description(), "keys of results before stay"
    with pytest.raises(SceneError, match="crowded: true is for placed: true with 2 concepts"):
        SceneRule(name="x", concepts=3, placed=True, crowded=True)


def test_nothing_to_report(jobs, tmp_path):
    with pytest.raises(SceneError, match="nothing of this is finished"):
        report(jobs, tmp_path)


def test_command_line(tmp_path):
    report_merge = ["bench", "report", "pairs", "--methods", "merge", "--results", str(tmp_path)]
    result = CliRunner().invoke(app, report_merge)
    assert result.exit_code == 2
    assert "loraweave bench run" in result.stderr
    bad = CliRunner().invoke(app, ["bench", "run", "pairs", "--set", "clora.speed=2"])
    assert bad.exit_code == 2
    assert "no setting 'speed'" in bad.stderr
    for command, message in (
        (["run", "pairs", "--methods", ","], "names no method"),
        (["grid", "pairs", tmp_path / "g.png", "--methods", ","], "names no method"),
        (["check", "composlora"], "and the manifests clora, composlora_anime"),
        (["papers", "1a", "--results", tmp_path / "none"], "no results in"),
        (
            ["run", "pairs", "--methods", "true_masks", "--set", "true_masks.x=1"],
            "none of the methods",
        ),
    ):
        bad = CliRunner().invoke(app, ["bench", *map(str, command)])
        assert bad.exit_code == 2, command
        assert message in " ".join(bad.stderr.split()), bad.stderr


def test_placed_scenes_have_tight_boxes_and_room_for_everybody():
    high = native_side()
    for suite in map(read_suite, suite_names()):
        for scene in scenes(suite, "report", 2):
            assert scene.placed == (suite.name.startswith(("boxes", "attributes", "overlap")))
            if not scene.placed:
                assert scene.width == high
                continue
            boxes, drawing = scene.boxes(), scene.drawing()
            assert len(boxes) == len(drawing.masks) == suite.concepts + (suite.name == "attributes")
            assert drawing.image.size == (scene.width, high)
            for box, mask in zip(boxes.values(), drawing.masks):
                x0, y0, x1, y1 = (
                    round(edge * side) for edge, side in zip(box, (scene.width, high) * 2)
                )
                assert mask[y0:y1, x0:x1].sum() == mask.sum()
                if scene.crowded:  # a part may be hidden
                    continue
                for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]):
                    assert edge.any(), "no room around the subject"
    assert [read_suite(f"boxes{n}").drawn("quick", "report")[0].width for n in (2, 3, 4, 5)] == [
        high * halves // 2 for halves in (2, 3, 4, 5)
    ]


def test_placed_scenes_are_reported_with_their_places(tmp_path):
    jobs = suite_jobs("boxes3", ["masked", "merge"], steps=1)[:2]
    assert [job.settings.get("layout") for job in jobs] == ["regions", None]
    run_jobs(jobs, tmp_path)
    table = report(jobs, tmp_path, against="merge")
    for rates in table.values():
        for key in ("in_place", "layout_iou", "containment", "likeness"):
            low, high = rates[f"{key}_ci"]
            assert 0 <= low <= rates[key] <= high <= 1
    assert set(table["masked"]["minus_merge"]) == TOLD | {"in_place", "in_place_ci"}
    found = json.loads(result_file(tmp_path, "boxes3", "masked").read_text())["jobs"]
    (row,) = found.values()
    assert set(row["places"]) == set(row["likeness"]) == set(jobs[0].scene.names)
    assert "attribute" not in row["job"]


def test_a_coloured_subject_without_a_lora_is_judged_by_its_colour(tmp_path):
    jobs = suite_jobs("attributes", ["lora_composer"], steps=1)[:1]
    (name,), (kind, colour) = jobs[0].scene.names, jobs[0].scene.attribute
    assert jobs[0].scene.prompt.count(f"and a [{colour} {kind}](other)") == 1
    run_jobs(jobs, tmp_path)
    (row,) = json.loads(result_file(tmp_path, "attributes", "lora_composer").read_text())[
        "jobs"
    ].values()
    assert set(row["outcomes"]) == set(row["places"]) == {name, "other"}
    assert set(row["likeness"]) == {name}
    judge = load_judge()
    drawn = jobs[0].scene.drawing().image
    assert judge.dominant_colour(drawn, kind) == colour
    assert judge.dominant_colour(drawn, "mushroom" if kind != "mushroom" else "boat") is None


def test_the_judge_looks_at_wide_pictures():
    """In the drawing of a wide scene everybody is right and in place."""
    right = []
    for n in (3, 5):
        for scene in scenes(read_suite(f"boxes{n}"), "tuning", 3):
            verdict = load_judge().examine(scene.drawing().image, scene.names)
            right += [outcome == "right" for outcome in verdict.outcomes.values()]
            for name, box in scene.boxes().items():
                if name in verdict.assigned:
                    assert intersection_over_union(verdict.assigned[name].box, box) > 0.6
    assert sum(right) / len(right) > 0.85
