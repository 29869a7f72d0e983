"""Evaluated pictures: what the miniature's judge says of them, methods beside one another."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from loraweave import SceneError
from loraweave.cli import app
from loraweave.evaluate.cost import told_cost
from loraweave.evaluate.summary import by_method, means
from loraweave.lora.file import file_sha256
from loraweave.miniature.concepts import KNOWN, draw_subjects
from loraweave.miniature.scene_judge import LoraJudge
from loraweave.miniature.shipped import lora_file, native_side


def run(*words):
    return CliRunner().invoke(app, [*map(str, words)])


def test_of_the_miniatures_pictures_its_judge_says_what_becomes_of_them(tmp_path):
    """By one mean for each concept nobody could say what is blended."""
    both = [KNOWN[name].subject for name in ("blackcat", "tigercat")]
    picture = draw_subjects(both, "meadow", 3, native_side()).image
    hashes = {name: file_sha256(lora_file(name)) for name in ("blackcat", "tigercat", "golddog")}
    judge = LoraJudge()
    cats = {"one": hashes["blackcat"], "two": hashes["tigercat"]}
    assert judge.outcomes(picture, ["one", "two"], cats) == {"one": "right", "two": "right"}
    mixed = {"one": hashes["blackcat"], "two": hashes["golddog"]}
    found = judge.outcomes(picture, ["one", "two"], mixed)
    assert found == {"one": "duplicated", "two": "missing"}
    assert judge.outcomes(picture, ["one"], {"one": "of nobody"}) is None
    assert (
        judge.outcomes(picture, ["one"], cats | {"ink": file_sha256(lora_file("pencil"))}) is None
    )
    twice = {"one": hashes["blackcat"], "two": hashes["blackcat"]}
    assert judge.outcomes(picture, ["one", "two"], twice) is None
    scene = "a [sks cat](blackcat) and a [zwx dog](golddog)"
    how = "--steps", 2, "--method", "merge", "--cost", "-o", tmp_path / "merge.png"
    drawn = run("generate", scene, *how)
    assert drawn.exit_code == 0, drawn.stderr
    models = [
        w for o in ("clip", "dino", "references", "segmenter") for w in (f"--{o}", "miniature")
    ]
    out = run("evaluate", tmp_path / "merge.png", *models, "--json")
    assert out.exit_code == 0, out.stderr
    told = json.loads(out.stdout)
    (entry,) = told["pictures"]
    cost = entry["cost"]
    assert (cost["calls"], cost["rows"], cost["backward_rows"]) == (2, 4, 0)
    assert min(cost["seconds"], cost["tflops"], cost["peak_mib"]) > 0
    assert entry["versions"]["torch"] == torch.__version__
    assert told["mean"]["cost"] == {k: v for k, v in cost.items() if k != "machine"}
    expected = judge.outcomes(
        Image.open(tmp_path / "merge.png"), ["blackcat", "golddog"], hashes
    )  # fmt: skip
    assert entry["outcomes"] == expected
    assert "not_told" not in entry


def entry(method, scene, seed, *outcomes, **more):
    own = dict(zip("ab", outcomes))
    return {"method": method, "scene": scene, "seed": seed, "outcomes": own, **more}


def test_costs_of_several_machines_by_hand():
    here, there = ({"machine": name, "threads": 2} for name in ("here", "there"))
    one = {"seconds": 1.0, "calls": 50, "peak_mib": 8.0}
    two = {"seconds": 3.0, "calls": 60, "tflops": 2.0}
    same = entry("merge", "s", 1, cost=one | here), entry("merge", "s", 2, cost=two | here)
    expected = {"seconds": 2, "calls": 55, "tflops": 2, "peak_mib": 8, "threads": 2}
    without = entry("merge", "s", 3)
    assert means([*same, without])["cost"] == expected
    assert by_method([*same, without])["merge"]["cost"] == expected
    mixed = means([same[0], entry("merge", "s", 2, cost=two | there)])
    assert mixed["cost"] == {"calls": 55, "tflops": 2}
    assert "cost" not in means([without])


def test_a_record_tells_no_cost_that_is_no_number():
    cost = {"seconds": "1", "calls": True, "rows": 4, "machine": 3, "threads": None, "other": 1}
    assert told_cost({"cost": cost}) == {"rows": 4}
    assert told_cost({}) == {}


def test_methods_beside_one_another_by_hand():
    entries = [
        entry("merge", "x", 1, "right", "missing", iou={"a": 0.5, "b": 0.0}),
        entry("merge", "x", 2, "swapped", "swapped"),
        entry("weave", "x", 1, "right", "right"), entry("weave", "x", 2, "right", "swapped"),
        entry("weave", "x", 3, "right", "right", clip_t={"cosine": 0.25, "score": 0.625}),
    ]  # fmt: skip
    found = by_method(entries)
    assert [found[m]["pictures"] for m in ("merge", "weave")] == [2, 3]
    assert (found["merge"]["right"], found["merge"]["swapped"]) == (0.25, 0.5)
    assert found["merge"]["right_ci"] == [0, 0.5]
    assert (found["merge"]["iou"], found["weave"]["clip_t"]) == (0.25, 0.25)
    minus = found["weave"]["minus_merge"]
    assert minus["right"] == 0.5, "of the two pictures that both have"
    assert minus["right_ci"] == [-0.7628, 0.9209], "both differ alike, and they are only two"
    assert "clip_t" not in minus
    again = entry("weave", "x", 1, "missing", "missing")
    with pytest.raises(SceneError, match="two pictures by weave are of one prompt and seed, 1"):
        by_method([*entries, again])
    untold = [{**one, "not_told": ["blended"]} for one in entries]
    assert "blended" not in by_method(untold)["merge"]
    told = means(untold)
    assert "blended" not in told["outcomes"]
    assert told["not_told"] == ["blended"]
    assert means(entries)["outcomes"]["blended"] == 0
