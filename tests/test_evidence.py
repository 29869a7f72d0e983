"""Agreement, the papers' tables, charts and the page, from made-up results with known figures."""

import base64
import csv
import io
import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from loraweave import SceneError
from loraweave.bench import agreement, read_suite, report, run_jobs, suite_jobs
from loraweave.bench.ablation import ablation_jobs, ablation_names, read_ablation
from loraweave.bench.papers import paper_tables, read_papers
from loraweave.bench.rates import estimate, rates, scene_and_seed
from loraweave.bench.result_files import picture_files, read_results, result_file
from loraweave.bench.tune import SEARCHES, read_search
from loraweave.cli import app
from loraweave.data_file import read_data
from loraweave.evaluate.bootstrap import LEAST_SCENES, draws
from loraweave.evaluate.charts import curves, intervals, matrix, outcomes
from loraweave.methods import METHODS
from loraweave.miniature.scoring import SCORES, scorer_version
from loraweave.output import read_png_record


def bench(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


def told(*words) -> str:
    out = bench(*words)
    assert out.exit_code == 0, out.stderr
    return out.stdout


@pytest.fixture
def results(tmp_path):
    """Four scene-seeds of pairs by merge; the score of DINO knows the judge, CLIP-T is blind."""
    jobs = suite_jobs("pairs", ["merge"], "full", first=4)
    seconds = ("right", "right", "missing", "swapped")
    found = {}
    for n, (job, second) in enumerate(zip(jobs, seconds)):
        one, other = job.scene.names
        likeness = {one: 0.9, other: 0.8 if second == "right" else 0.2}
        scores = {kind: dict(likeness) for kind in SCORES}
        if second == "missing":
            del scores["instance_dino"][other]
        found[job.key] = {
            "job": job.description(), "outcomes": {one: "right", other: second},
            "cost": {"seconds": 2.0, "calls": 50, "rows": 100, "backward_rows": 10 * n,
                     "peak_mib": 512},
            "scores": {"clip_t": (0.2, 0.3, 0.2, 0.3)[n], **scores}, "scorer": scorer_version(),
        }  # fmt: skip
    path = result_file(tmp_path, "pairs", "merge")
    path.parent.mkdir()
    path.write_text(json.dumps({"suite": "pairs", "method": "merge", "jobs": found}))
    return tmp_path


def test_agreement_by_hand(results):
    jobs = suite_jobs("pairs", ["merge"], "full", first=4)
    found = agreement(jobs, results)
    assert found["pictures"] == {
        "all": 4, "right": 2, "missing": 1, "duplicated": 0, "swapped": 1, "blended": 0,
    }  # fmt: skip
    for kind in SCORES:
        assert (found[kind]["missing"], found[kind]["swapped"]) == (1, 1), "it always sees it"
    assert found["dino"]["rank"] == pytest.approx(1)
    assert found["clip_t"]["rank"] == pytest.approx(0)
    # of two right ones with .2 and .3, against a missing one with .2 and a swapped one with .3
    assert (found["clip_t"]["missing"], found["clip_t"]["swapped"]) == (0.75, 0.25)
    assert found["clip_t"]["blended"] is None
    low, high = found["dino"]["rank_ci"]
    assert low <= found["dino"]["rank"] <= high
    assert json.loads(told("agreement", "--results", results, "--json")) == found
    assert "rank correlation" in told("agreement", "--results", results)


def test_scores_are_reported_over_the_concepts(results):
    (row,) = report(suite_jobs("pairs", ["merge"], "full", first=4), results).values()
    assert row["scored"] == 4
    assert row["clip_t"] == 0.25
    assert (row["dino_min"], row["dino_max"]) == (0.5, 0.9)
    assert row["dino_avg"] == pytest.approx((0.85 * 2 + 0.55 * 2) / 4)
    assert row["instance_dino_min"] == pytest.approx((0.8 * 2 + 0.9 + 0.2) / 4), "of those found"
    assert "extra" not in row


def test_what_comes_on_top_is_no_failure_of_a_concept():
    """A place that is lost, beside a concept that is missing and a right one."""
    row = {"job": {"names": ["a", "b"], "seed": 1}, "cost": {},
           "outcomes": {"a": "right", "b": "missing", "candyland": "swapped"}}  # fmt: skip
    found = rates([row], 0)
    assert (found["missing"], found["swapped"], found["extra"]) == (0.5, 0, 0)
    assert found["right"] == pytest.approx(1 / 3, abs=1e-4), "of all that the scene asks for"
    assert found["extra_ci"] == [0, 0.975], "of one draw"


def test_the_papers_tables_keep_theirs_and_ours_apart(results):
    found = json.loads(told("papers", "--results", results, "--json"))
    assert list(found) == list(paper_tables()) == ["clora 1a", "clora 1b", "clora 2", "clora 3"]
    table = found["clora 1a"]
    cells = {line[0]: dict(zip(table["head"], line)) for line in table["lines"]}
    assert cells["DINO min"]["Merge (here)"].startswith("0.500 [")
    assert cells["DINO min"]["Merge (paper)"] == "0.376 ± 0.041"
    assert cells["DINO min"]["ZipLoRA (here)"] == "", "there is none here yet"
    assert cells["DINO min"]["CLoRA (here)"] == "", "nothing measured"
    assert cells["CLIP-T (2.5 x cosine)"]["Merge (here)"].startswith("0.625 [")
    assert cells["user study (1 to 5)"]["Merge (here)"] == ""
    assert cells["swapped"]["Merge (here)"] == "0.125 [0.000, 0.375]"
    assert cells["swapped"]["CLoRA (paper)"] == ""
    assert "on the miniature" in table["title"]
    costs = {
        line[0]: dict(zip(found["clora 1b"]["head"], line)) for line in found["clora 1b"]["lines"]
    }
    memory = "GB (here: beyond the weights)"
    assert costs[memory]["Merge (here)"] == "0.50"
    assert costs[memory]["LoRA-Composer (paper)"] == "51"
    assert "CLoRA (paper)" in told("papers", "1a", "--results", results)
    (head, *_) = csv.reader(
        io.StringIO(told("papers", "3", "--format", "csv", "--results", results).split("\n", 1)[1])
    )
    assert head[1] == "Merge (here)"
    tex = told("papers", "2", "--format", "latex", "--results", results)
    assert r"0.688 $\pm$ 0.042" in tex
    assert "| 0.396 ± 0.034 |" in told("papers", "2", "--format", "markdown", "--results", results)
    out = bench("papers", "9z", "--results", results)
    assert out.exit_code == 2
    assert "no table 'clora 9z'" in out.stderr


def test_table_3_is_what_the_paper_states():
    """Row by row as the paper prints it, in percent."""
    labels = ("Merge", "Composite", "ZipLoRA", "Mix-of-Show", "CLoRA")
    printed = {
        "instance_clip_i_min": "76.0±8.7 76.2±7.2 73.4±8.1 75.2±9.5 83.3±5.5",
        "instance_clip_i_avg": "79.5±8.3 79.7±6.8 77.1±7.6 78.7±9.2 87.1±4.9",
        "instance_clip_i_max": "82.5±8.1 82.5±6.7 80.6±7.6 81.7±9.2 89.8±4.8",
        "instance_dino_min": "37.0±15 30.3±13 36.9±13 37.5±17 47.2±14",
        "instance_dino_avg": "43.7±17 38.5±13 49.6±15 48.0±22 57.3±14",
        "instance_dino_max": "50.5±17 49.5±14 53.3±16 55.6±23 69.1±14",
    }
    table = read_papers()["clora"].tables["3"]
    for key, row in printed.items():
        for label, cell in zip(labels, row.split()):
            stated = [100 * value for value in table.figures[label][key]]
            assert stated == pytest.approx([float(part) for part in cell.split("±")])


def test_scores_of_other_encoders_are_not_mixed_in(results):
    path = result_file(results, "pairs", "merge")
    data = json.loads(path.read_text())
    for row in list(data["jobs"].values())[:3]:
        row["scorer"] = "another"
    path.write_text(json.dumps(data))
    jobs = suite_jobs("pairs", ["merge"], "full", first=4)
    assert report(jobs, results)["merge"]["scored"] == 1
    assert agreement(jobs, results)["pictures"]["all"] == 1


def test_wordings_of_a_scene_are_one_draw_of_the_bootstrap():
    jobs = suite_jobs("phrasing", ["merge", "clora"], "quick")
    rows = [{"job": job.description()} for job in jobs]
    assert len(set(draws([*map(scene_and_seed, rows)]))) == 3
    told = estimate("x", rows, lambda row: float(row["job"]["seed"] == rows[0]["job"]["seed"]))
    assert told["x"] == pytest.approx(1 / 3, abs=1e-4)
    assert told["x_ci"] == [0, 1], "three draws, not thirty"


def test_noises_of_a_scene_are_one_draw_where_there_are_scenes_enough():
    for scenes, expected in ((LEAST_SCENES, LEAST_SCENES), (LEAST_SCENES - 1, 18)):
        jobs = suite_jobs("pairs", ["merge", "clora"], "full", first=2 * scenes)
        rows = [{"job": job.description()} for job in jobs]
        assert len(rows) == 4 * scenes
        assert len(set(draws([*map(scene_and_seed, rows)]))) == expected
    manifests = [
        {"job": {"models": {}, "suite": "x", "scene": {"prompt": f"a {n // 2}", "seed": n}}}
        for n in range(2 * LEAST_SCENES)
    ]
    assert len(set(draws([*map(scene_and_seed, manifests)]))) == LEAST_SCENES


def test_what_the_papers_tables_name_exists():
    for paper in read_papers().values():
        for table in paper.tables.values():
            assert set(table.ours) <= set(METHODS)
            for suite in table.suites:
                assert read_suite(suite).scenes["full"]
            keys = {key for figures in table.figures.values() for key in figures} - {"ours"}
            assert keys <= set(table.rows), "every figure has a row"


def test_one_page_with_everything(results, tmp_path):
    page = tmp_path / "page.html"
    told("page", page, "--results", results)
    text = page.read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) >= 3
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture))).verify()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert all("on the miniature" in caption for caption in captions)
    assert "0.376 ± 0.041" in text
    assert "http" not in text.replace("http-equiv", ""), "it needs no other file"
    for words, message in (
        (["page", tmp_path / "page.txt", "--results", results], "cannot write"),
        (["page", page, "--results", tmp_path / "none"], "no results"),
    ):
        out = bench(*words)
        assert out.exit_code == 2
        assert message in out.stderr


def test_charts_are_pictures():
    point = (0.5, 0.4, 0.6)
    for png in (
        curves({"a": {2: point, 3: point}, "b": {2: point}}, title="t", across="n", up="r"),
        curves({"a": {2: (9.0, 9.0, 9.0), 3: (90.0, 90.0, 90.0)}}, title="t", across="n", up="r",
               share=False, logarithmic=True),
        outcomes({"a_b": {"right": 0.5, "missing": 0.5}}, title="$t_1$"),
        intervals({"a": point, "b_$": point}, title="t", across="n", mark=0.5),
        matrix({"a": {"x": 0.2, "y": None}, "b": {"y": 0.9}}, title="t", middle=True),
    ):  # fmt: skip
        image = Image.open(io.BytesIO(png))
        assert min(image.size) > 100


def test_pictures_are_kept_and_checked(tmp_path):
    jobs = suite_jobs("pairs", ["merge", "alone"], steps=1, first=1)
    assert run_jobs(jobs, tmp_path)["run"] == 2
    assert not list(tmp_path.rglob("*.png"))
    assert run_jobs(jobs, tmp_path, keep=True)["run"] == 2, "what has no picture is drawn again"
    assert run_jobs(jobs, tmp_path, keep=True)["found"] == 2
    merge, alone = jobs
    (picture,) = picture_files(tmp_path, merge)
    assert read_png_record(picture)["scene"]["prompt"] == merge.scene.prompt
    (row,) = read_results(tmp_path / "pairs" / "merge.json").values()
    machine = {"machine": row["made"]["machine"]}
    assert read_png_record(picture)["cost"] == row["cost"] | machine
    assert len(picture_files(tmp_path, alone)) == 2
    assert all("cost" not in read_png_record(own) for own in picture_files(tmp_path, alone))
    assert all(path.is_file() for path in picture_files(tmp_path, alone))
    sheet = tmp_path / "grid.png"
    few = ["--size", "quick", "--steps", 1, "--scenes", 1, "--results", tmp_path]
    told("grid", "pairs", sheet, "--methods", "merge", *few)
    with Image.open(sheet) as image:
        assert image.width > 2 * 128
    out = bench("grid", "pairs", sheet, "--methods", "clora", *few)
    assert out.exit_code == 2
    assert "no picture at" in out.stderr
    picture.write_bytes(picture.read_bytes()[:200])
    assert "cannot read" in bench("grid", "pairs", sheet, "--methods", "merge", *few).stderr
    with pytest.raises(SceneError, match="cannot read the picture"):
        run_jobs(jobs, tmp_path, keep=True)
    assert run_jobs(jobs, tmp_path)["found"] == 2, "without pictures nobody asks"


def test_a_suite_of_ones_own(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("summary: x\nconcepts: 2\nadds: place\nscenes: {quick: [1, 1]}\n")
    command = [
        "run",
        own,
        "--methods",
        "merge",
        "--steps",
        1,
        "--results",
        tmp_path / "r",
        "--json",
    ]
    assert json.loads(told(*command)) == {"run": 1, "found": 0, "failed": []}
    (row,) = json.loads(
        told("report", own, "--methods", "merge", "--steps", 1, "--size", "quick", "--results",
             tmp_path / "r", "--json")
    ).values()  # fmt: skip
    assert set(row["merge"]) >= {"extra", "right", "dino_avg"}
    quick = ["--steps", 1, "--size", "quick", "--results", tmp_path / "r", "--json"]
    assert list(json.loads(told("report", own, *quick)).values()) == [row]
    (tmp_path / "pairs.yaml").write_text(own.read_text())
    taken = bench("run", tmp_path / "pairs.yaml")
    assert taken.exit_code == 2
    assert "call yours otherwise" in taken.stderr
    for text, message in (
        ("summary: x\nconcepts: 2\nscenes: {full: [1, 1]}\n", "has no size 'quick'"),
        ("concepts: 2\nscenes: {quick: [1, 1]}\n", "summary is missing"),
        ("summary: x\nconcepts: two\nscenes: {}\n", "concepts"),
        ("summary: x\nconcepts: 2\nadd: style\nscenes: {}\n", "unknown key 'add'"),
        ("- 1\n", "holds no suite"),
        ("a: [", "is not valid YAML"),
    ):
        own.write_text(text)
        out = bench(*command)
        assert out.exit_code == 2, text
        assert message in " ".join(out.stderr.split())


def test_suites_are_listed():
    found = json.loads(told("suites", "--json"))
    assert {"pairs", "scene", "accessory", "interaction", "phrasing", "heldout"} <= set(found)
    assert "phrasing" in told("suites")


ABLATION = """
method: merge
suite: pairs
variants:
  default: {}
  ties: {rule: ties}
  never drawn: {rule: dare}
"""


def test_an_ablation_is_drawn_and_compared_with_the_default(tmp_path):
    own, folder = tmp_path / "own.yaml", tmp_path / "r"
    own.write_text(ABLATION.replace("  never drawn: {rule: dare}\n", ""))
    few = ["--size", "quick", "--steps", 1, "--scenes", 2, "--results", folder]
    chart = tmp_path / "chart.png"
    found = json.loads(told("ablation", own, "--run", *few, "--chart", chart, "--json"))
    assert set(found) == {"default", "ties"}
    kinds = {"success", "right", "missing", "duplicated", "swapped", "blended"}
    assert set(found["ties"]["minus_default"]) == kinds | {f"{kind}_ci" for kind in kinds}
    with Image.open(chart) as image:
        assert image.width > 100
    own.write_text(ABLATION)
    assert set(json.loads(told("ablation", own, *few, "--json"))) == {"default", "ties"}
    assert "| `ties` | 2 |" in told("ablation", own, *few, "--format", "markdown")
    for text, message in (
        ("method: merge\nsuite: pairs\nvariants: {a: {}, b: {}}\n", "has a variant 'default'"),
        ("method: merge\nsuite: pairs\nvariants: {default: {}}\n", "variants"),
        (ABLATION.replace("rule: ties", "rules: ties"), "no setting 'rules'"),
        (ABLATION.replace("suite: pairs", "suite: pears"), "no suite 'pears'"),
        (ABLATION.replace("method: merge", "method: base"), "'base' has no settings"),
    ):
        own.write_text(text)
        out = bench("ablation", own, *few)
        assert out.exit_code == 2
        assert message in " ".join(out.stderr.split()), out.stderr
    assert bench("ablation", "merge", *few).exit_code == 2


def test_a_variant_may_say_how_else_it_is_drawn(tmp_path):
    own = tmp_path / "own.yaml"
    few = ["--size", "quick", "--steps", 3, "--scenes", 1, "--results", tmp_path / "r"]
    text = (
        "method: merge\nsuite: pairs\nvariants:\n  default: {}\n"
        "  fast: {run: {steps: 2, scheduler: UniPC, dtype: bfloat16}, rule: sum}\n"
    )
    own.write_text(text)
    found = json.loads(told("ablation", own, "--run", *few, "--json"))
    assert [found[name]["cost"]["calls"] for name in ("default", "fast")] == [3, 2]
    (job,) = ablation_jobs(read_ablation(str(own)), "quick", first=1)["fast"]
    assert (job.steps, job.scheduler, job.dtype) == (2, "unipc", "bfloat16")
    for wrong, message in (
        ("stepz: 2", "'fast', run: "), ("scheduler: quick", "no scheduler 'quick'"),
        ("dtype: int8", "'fast', run: "), ("steps: 0", "'fast', run: "),
    ):  # fmt: skip
        own.write_text(text.replace("steps: 2, scheduler: UniPC, dtype: bfloat16", wrong))
        out = bench("ablation", own, *few)
        assert out.exit_code == 2, out.stdout
        assert message in " ".join(out.stderr.split()), out.stderr


def test_every_ablation_that_ships_has_settings_that_exist():
    for name in ablation_names():
        ablation = read_ablation(name)
        jobs = ablation_jobs(ablation, first=1)
        assert len({job.key for own in jobs.values() for job in own}) == len(ablation.variants)


def test_a_search_is_on_tuning_scenes_and_reports_on_others(tmp_path):
    pytest.importorskip("optuna")
    few = ["--trials", 2, "--scenes", 1, "--steps", 1, "--results", tmp_path, "--json"]
    command = ["tune", "merge", "--search", "rule=sum,ties", "--search", "density=0.2:0.8", *few]
    found = json.loads(told(*command))
    assert set(found["settings"]) == {"rule", "density"}
    assert 0.2 <= found["settings"]["density"] <= 0.8
    low, high = found["heldout"]["difference_ci"]
    assert low <= found["heldout"]["difference"] <= high
    files = {path.parent.name: path for path in tmp_path.rglob("*.json")}
    assert set(files) == {"pairs", "heldout"}
    splits = [row["job"]["split"] for row in read_results(files["pairs"]).values()]
    assert splits.count("report") == 2, "the default and the best"
    before = files["pairs"].read_text()
    assert json.loads(told(*command)) == found
    assert files["pairs"].read_text() == before, "what was tried is not drawn again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["switch"], "say what to search with --search KEY=LOW:HIGH; switch has:"),
        (["merge", "--search", "speed=1:2"], "no setting 'speed'"),
        (["merge", "--search", "density=0.8:0.2"], "is no range"),
        (["merge", "--search", "density=0:0.2:log"], "density"),
        (["clora", "--search", "mask_smoothing=0:0.2:log"], "needs a range above 0"),
        (["merge", "--search", "rule=sum,sums"], "rule"),
        (["mergee", "--search", "rule=sum"], "no method 'mergee'"),
        (["merge", "--search", "rule=[a"], "'[a' is no value"),
        (["clora", "--search", "mask_until"], "--search 'mask_until' has no values"),
        (["merge", "--search", "rule=sum,ties", "--suite", "pears"], "no suite 'pears'"),
        (["merge", "--search", "rule=sum,ties", "--suite", "heldout"], "nothing is tuned on"),
    ],
)
def test_searches_that_cannot_be(words, message):
    out = bench("tune", *words)
    assert out.exit_code == 2
    assert message in " ".join(out.stderr.split()), out.stderr


def test_a_search_whose_jobs_fail_says_which(tmp_path, monkeypatch):
    failed = {"suite": "pairs", "method": "merge", "scene": "a cat", "fault": "no room"}
    monkeypatch.setattr(
        "loraweave.bench.tune.run_jobs", lambda *_, **__: {"failed": [failed, failed]}
    )
    out = bench("tune", "merge", "--search", "rule=sum,ties", "--results", tmp_path)
    assert out.exit_code == 1
    assert out.stderr.count("failed: pairs, merge, a cat: no room") == 2


@pytest.mark.parametrize("method", read_data(SEARCHES))
def test_what_is_searched_if_nothing_is_said_fits_the_method(method):
    found = read_search(method, {})
    assert set(found) <= set(type(METHODS[method]().settings).model_fields)
    assert len(found) >= 1
    usual = METHODS[method]().settings.model_dump()
    for key, one in found.items():
        if isinstance(usual[key], float):
            assert {type(one.low), type(one.high)} == {float}, key


def test_flops_are_counted_beside_the_result(tmp_path):
    plain, counted = tmp_path / "plain", tmp_path / "counted"
    jobs = suite_jobs("pairs", ["merge", "composite"], steps=2, first=1)
    run_jobs(jobs, plain)
    run_jobs(jobs, counted, flops=True)
    merge, composite = (
        [*read_results(result_file(plain, "pairs", m)).values(),
         *read_results(result_file(counted, "pairs", m)).values()]
        for m in ("merge", "composite")
    )  # fmt: skip
    assert merge[0]["outcomes"] == merge[1]["outcomes"]
    assert "tflops" not in merge[0]["cost"]
    one, two = (found[1]["cost"]["tflops"] for found in (merge, composite))
    assert 1.5 < two / one < 2, "twice the denoiser's rows, once the decoder"
