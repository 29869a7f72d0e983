"""The papers' benchmarks for real bases: what they draw, what is missing, a run on a tiny one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loraweave import SceneError
from loraweave.bench.manifests import check, manifest_names, read_manifest
from loraweave.cli import app
from loraweave.detect.registry import SEGMENTERS, Entry
from loraweave.evaluate.references import NOTE, read_references
from loraweave.evaluate.verdicts import least_likeness, verdicts
from loraweave.output import read_png_record

OURS = """
summary: a cat and a dog
source: this test
needs: ["two LoRAs"]
width: 32
height: 32
steps: 1
seeds: 2
concepts:
  cat: {noun: cat, trigger: sks}
  dog: {noun: dog, trigger: zwx}
together:
  - concepts: [cat, dog]
    prompts: ["a {0} and a {1} in the meadow", "{all} on the beach"]
"""


def bench(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.fixture
def data(tmp_path) -> Path:
    """Data files as users have them, in the formats of their authors."""
    names = ("one", "two", "three", "four", "five")
    (tmp_path / "concepts.yaml").write_text(
        "\n".join(f"{name}: {{noun: cat, trigger: sks}}" for name in names)
    )
    counts = {"character": 3, "clothing": 2, "style": 2, "background": 2, "object": 2}
    loras = {
        group: [{"id": f"{group}_{i}", "trigger": [f"{group} {i}", "red"]} for i in range(count)]
        for group, count in counts.items()
    }
    for style in ("reality", "anime"):
        (tmp_path / f"{style}_lora_info.json").write_text(json.dumps(loras))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "pets.txt").write_text("the {0} and {1} at sea. \n\n{1} alone\n")
    pair = [{"instance_data_dir": f"./data/pet_{k}1", "class_prompt": k} for k in ("dog", "cat")]
    (tmp_path / "dataset_multiconcept.json").write_text(
        json.dumps([[*pair, {"prompt_filename_compose": "prompts/pets.txt"}]])
    )
    return tmp_path


@pytest.mark.parametrize(
    ("name", "pictures", "loras"),
    [("clora", 2000, 5), ("composlora_reality", 240, 11),
     ("composlora_anime", 240, 11), ("customconcept101", 2, 2),
     ("lora_composer", 200, 5), ("lora_composer_real", 300, 4)],
)  # fmt: skip
def test_what_ships_has_as_many_pictures_as_the_papers(name, pictures, loras, data):
    scenes, faults = check(read_manifest(name)[1], data, data)
    assert (len(scenes), len(faults)) == (pictures, loras)
    assert all("no LoRA" in fault for fault in faults.values())


def test_every_manifest_is_named_in_the_docs():
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text()
    for name in manifest_names():
        assert f"`{name}`" in page


def test_a_character_with_what_it_wears(data):
    scenes, _ = check(read_manifest("composlora_anime")[1], data, data)
    assert [len(scene.loras) for scene in (scenes[0], scenes[-1])] == [2, 5]
    loras = scenes[-1].loras
    assert loras["anime_clothing_1"].on == "anime_character_2"
    assert loras["anime_background_1"].on == "background"
    assert loras["anime_object_1"].on == "everywhere"
    assert [concept.name for concept in scenes[-1].concepts] == ["anime_character_2"]


def test_customconcept101_as_its_authors_write_it(data):
    scenes, _ = check(read_manifest("customconcept101")[1], data, data)
    assert scenes[0].prompt == r"the [\<new1\>|dog](pet_dog1) and [\<new1\>|cat](pet_cat1) at sea."
    assert list(scenes[1].loras) == ["pet_cat1"], "only what the prompt names is loaded"


def test_boxes_of_lora_composer_are_the_authors(data):
    scenes, _ = check(read_manifest("lora_composer")[1], data, data)
    region = scenes[0].regions["one"]
    assert region.fractions(1024, 512) == pytest.approx((300 / 1024, 20 / 512, 500 / 1024, 1))
    assert scenes[0].prompts["two"] == "a [sks|cat](two), near a lake"
    scenes, _ = check(read_manifest("lora_composer_real")[1], data, data)
    assert scenes[50].regions["two"].fractions(1024, 768)[0] == pytest.approx(600 / 1024)
    assert len({(scene.prompt, scene.seed) for scene in scenes}) == len(scenes), "as reports need"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"concepts: [cat, dog]": "concepts: [cat, dgo]"},
            "no concept 'dgo' (did you mean 'dog'?)",
        ),
        ({"{1} in": "{7} in"}, "the prompt 'a {0} and a {7} in the meadow'"),
        ({"summary:": "sumary:"}, "unknown key 'sumary'"),
        ({"steps: 1": "data: {concepts: my.yaml}"}, "the manifest needs my.yaml; put it into"),
        ({"seeds: 2": "seeds: many"}, "seeds"),
        ({"    prompts": "    boxes: [[0, 0, 1, 1]]\n    prompts"}, "1 boxes for 2 concepts"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_drawn(wrong, message, tmp_path):
    text = OURS
    for old, new in wrong.items():
        text = text.replace(old, new)
    (tmp_path / "own.yaml").write_text(text)
    out = bench("check", tmp_path / "own.yaml", "--lora-dir", tmp_path)
    assert out.exit_code == 2
    assert message in " ".join(out.stderr.split()), out.stderr


def test_check_lists_what_is_missing(tmp_path, lora_files):
    (tmp_path / "own.yaml").write_text(OURS)
    out = bench("check", tmp_path / "own.yaml", "--lora-dir", tmp_path, "--json")
    assert out.exit_code == 2
    found = json.loads(out.stdout)
    assert (found["pictures"], set(found["missing"])) == (4, {"cat", "dog"})
    out = bench("check", tmp_path / "own.yaml", "--lora-dir", lora_files["cat"].parent, "--json")
    assert out.exit_code == 0, out.stderr
    assert json.loads(bench("check", "pairs", "--json").stdout)["scenes"] == {
        "quick": 24, "full": 40,
    }  # fmt: skip


class Halves:
    """A cat in the left half and a dog in the right one, of any picture."""

    def find(self, image: Image.Image, noun: str) -> list[np.ndarray]:
        mask = np.zeros((32, 32), bool)
        mask[:, :16] = noun == "cat"
        mask[:, 16:] = noun == "dog"
        return [mask]


def test_a_run_on_a_base_of_ones_own(
    tmp_path, base_folder, lora_files, clip_folder, dino_folder, monkeypatch
):
    monkeypatch.setitem(SEGMENTERS, "halves", Entry(Halves))
    (tmp_path / "own.yaml").write_text(OURS)
    results, own = tmp_path / "results", tmp_path / "own"
    scene = ["a [sks cat](cat) and a [zwx dog](dog)", "--base", base_folder, "--steps", 1,
             *(w for n in lora_files for w in ("--lora", f"{n}={lora_files[n]}"))]  # fmt: skip
    made = CliRunner().invoke(app, [*map(str, ["references", *scene, "--count", 2, "-o", own])])
    assert made.exit_code == 0, made.stderr
    given = ["--base", base_folder, "--lora-dir", lora_files["cat"].parent, "--results", results]
    command = ["run", tmp_path / "own.yaml", "--methods", "merge,switch", *given]
    measured = ["--clip", clip_folder, "--dino", dino_folder, "--references", own,
                "--segmenter", "halves", "--json"]  # fmt: skip
    out = bench(*command, *measured)
    assert out.exit_code == 0, out.stderr
    assert json.loads(out.stdout) == {"run": 8, "found": 0, "failed": []}
    assert json.loads(bench(*command, *measured).stdout)["found"] == 8
    pictures = sorted((results / "own" / "merge").glob("*.png"))
    assert len(pictures) == 4
    assert read_png_record(pictures[0])["method"] == "merge"
    pictures[0].unlink()
    assert json.loads(bench(*command, *measured).stdout)["run"] == 1, "a picture is part of it"
    told = bench("report", tmp_path / "own.yaml", "--results", results, "--json")
    assert told.exit_code == 0, told.stderr
    rows = json.loads(told.stdout)["own"]
    assert set(rows) == {"merge", "switch"}
    row = rows["merge"]
    assert (row["scenes"], row["scored"]) == (4, 4)
    assert row["missing"] == row["duplicated"] == 0, "halves finds one of each"
    assert sum(row[k] for k in ("right", "swapped", "blended")) == pytest.approx(1)
    assert row["dino_min"] <= row["dino_avg"] <= row["dino_max"]
    assert "minus_merge" in rows["switch"]
    for models, scores in (
        ([], set()), (["--clip", clip_folder], {"clip_t"}),
        (["--dino", dino_folder, "--references", own], {"dino_avg"}),
    ):  # fmt: skip
        folder = tmp_path / f"partly{len(models)}"
        out = bench(*command[:-1], folder, *models)
        assert out.exit_code == 0, out.stderr
        told = bench("report", tmp_path / "own.yaml", "--results", folder, "--json")
        assert told.exit_code == 0, told.stderr
        row = json.loads(told.stdout)["own"]["merge"]
        assert {"clip_t", "dino_avg"} & set(row) == scores
        assert "right" not in row, "nobody has looked"
    other = base_folder.parent / "other-base"
    if not other.exists():
        shutil.copytree(base_folder, other)
        (other / "notes.txt").write_text("another one")
    assert bench(*command[:5], other, *command[6:-1], folder, *models).exit_code == 0
    mixed = bench("report", tmp_path / "own.yaml", "--results", folder)
    assert mixed.exit_code == 2
    assert "several versions: base" in " ".join(mixed.stderr.split())
    pictures[1].write_bytes(b"no picture")
    broken = bench(*command, *measured)
    assert broken.exit_code == 2
    assert "cannot read the picture" in broken.stderr


def test_what_a_run_needs(tmp_path, base_folder, lora_files, clip_folder, dino_folder):
    (tmp_path / "own.yaml").write_text(OURS)
    own = ["run", tmp_path / "own.yaml", "--lora-dir", lora_files["cat"].parent, "--base"]
    for words, message in (
        (["run", tmp_path / "own.yaml"], "needs --base and --lora-dir"),
        (["run", "pairs", "--base", "x"], "is drawn on the miniature; leave --base out"),
        (["run", "pairs", "--allow-partial"], "leave --allow-partial out"),
        (["run", "pairs", "--dino", "x"], "is drawn on the miniature; leave --dino out"),
        ([*own, base_folder, "--steps", "3"], "says itself what is drawn; leave --steps out"),
        (["report", tmp_path / "own.yaml", "--scenes", "3"], "leave --scenes out"),
        ([*own, base_folder, "--segmenter", "eyes"], "no segmenter 'eyes'"),
        ([*own, base_folder, "--segmenter-model", "x"], "no segmenter's model at /"),
        (["run", tmp_path / "own.yaml", "--base", "x", "--lora-dir", tmp_path],
         "no LoRA 'cat' in"),
        ([*own, "x"], "no base model at /"),
        ([*own, tmp_path], "is no diffusers folder"),
        ([*own, lora_files["cat"]], "needs its configuration"),
        ([*own, base_folder, "--methods", "merge,masked"],
         "has scenes without boxes, which masked needs; leave it out, or cut the picture into "
         "strips with --set masked.layout=strips"),
        ([*own, base_folder, "--segmenter", "clipseg", "--segmenter-model", tmp_path],
         "no CLIPSeg model in"),
        ([*own, base_folder, "--methods", ","], "names no method"),
        ([*own, base_folder, "--clip", "nowhere"], "no CLIP model at /"),
        ([*own, base_folder, "--dino", dino_folder], "measured against --references"),
        ([*own, base_folder, "--references", tmp_path], "by --clip or --dino; give one"),
        ([*own, base_folder, "--clip", clip_folder, "--references", tmp_path],
         "no reference picture of 'cat'"),
        (["run", "clora", "--base", "x", "--lora-dir", tmp_path], "needs concepts.yaml"),
    ):  # fmt: skip
        out = bench(*words)
        assert out.exit_code == 2
        assert message in " ".join(out.stderr.split()), out.stderr


def test_a_lora_with_a_part_that_has_no_place(tmp_path, base_folder, lora_files):
    (tmp_path / "own.yaml").write_text(OURS)
    loras = shutil.copytree(lora_files["cat"].parent, tmp_path / "loras")
    path = loras / "cat.safetensors"
    save_file({**load_file(path), "optimizer.step": torch.ones(1)}, path)
    command = ["run", tmp_path / "own.yaml", "--lora-dir", loras, "--base", base_folder,
               "--methods", "merge", "--scenes", 1, "--results", tmp_path / "results"]  # fmt: skip
    out = bench(*command)
    assert out.exit_code == 1
    assert "optimizer.step" in out.stderr
    assert bench(*command, "--allow-partial").exit_code == 0
    assert bench(*command).exit_code == 0, "what is finished is found"


def test_one_reference_is_too_few_to_tell_what_is_blended(
    tmp_path, base_folder, lora_files, dino_folder, monkeypatch
):
    monkeypatch.setitem(SEGMENTERS, "halves", Entry(Halves))
    (tmp_path / "own.yaml").write_text(OURS)
    for name in lora_files:
        (tmp_path / "refs" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "refs" / name / "a.png")
    out = bench(
        "run", tmp_path / "own.yaml", "--lora-dir", lora_files["cat"].parent, "--base", base_folder,
        "--dino", dino_folder, "--references", tmp_path / "refs", "--segmenter", "halves",
    )  # fmt: skip
    assert out.exit_code == 2
    assert "'cat' has one reference picture" in out.stderr
    # Of those that were drawn, one that is gone is missed.
    for n in (0, 2):
        Image.new("RGB", (8, 8)).save(tmp_path / "refs" / "cat" / f"{n:03d}.png")
    (tmp_path / "refs" / "cat" / "a.png").unlink()
    (tmp_path / "refs" / "cat" / NOTE).write_text("{}")
    with pytest.raises(SceneError, match=r"001\.png is missing"):
        read_references(tmp_path / "refs", ["cat"])


def test_boxes_are_measured_also_where_a_method_is_not_told(
    tmp_path, base_folder, lora_files, dino_folder, monkeypatch
):
    monkeypatch.setitem(SEGMENTERS, "halves", Entry(Halves))
    boxes = "    boxes: [[0, 0, 16, 32], [16, 0, 32, 16]]\n"
    (tmp_path / "own.yaml").write_text(OURS.replace("seeds: 2", "seeds: 1") + boxes)
    results, own = tmp_path / "results", tmp_path / "own"
    scene = ["a [sks cat](cat) and a [zwx dog](dog)", "--base", base_folder, "--steps", 1,
             *(w for n in lora_files for w in ("--lora", f"{n}={lora_files[n]}"))]  # fmt: skip
    CliRunner().invoke(app, [*map(str, ["references", *scene, "--count", 2, "-o", own])])
    out = bench(
        "run", tmp_path / "own.yaml", "--methods", "merge,masked", "--base", base_folder,
        "--lora-dir", lora_files["cat"].parent, "--results", results, "--dino", dino_folder,
        "--references", own, "--segmenter", "halves",
    )  # fmt: skip
    assert out.exit_code == 0, out.stderr
    rows = json.loads(bench("report", tmp_path / "own.yaml", "--results", results, "--json").stdout)
    for row in rows["own"].values():  # the cat fills its box, the dog has half of its own in it
        assert row["layout_iou"] == pytest.approx((1 + 0.5) / 2)
        assert row["containment"] == pytest.approx((1 + 0.5) / 2)
        assert 0 <= row["in_place"] <= 1
    seen = bench("agreement", tmp_path / "own.yaml", "--results", results, "--json")
    assert set(json.loads(seen.stdout)) == {"dino", "instance_dino", "pictures"}
    tables = bench("papers", "1a", "--manifest", tmp_path / "own.yaml", "--results", results)
    assert tables.exit_code == 0, tables.stderr
    assert "on a base of one's own" in tables.stdout
    head = bench("papers", "1a", "--manifest", tmp_path / "own.yaml", "--results", results,
                 "--format", "csv").stdout.splitlines()  # fmt: skip
    (line,) = (line for line in head if line.startswith("DINO avg"))
    merged = rows["own"]["merge"]["dino_avg"]
    assert f"{merged:.3f} [" in line
    mixed = bench("agreement", tmp_path / "own.yaml", "pairs", "--results", results)
    assert mixed.exit_code == 2


# ---------------------------------------------------------------- outcomes by any segmenter

EAST, NORTH = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
NOUNS = {"rex": "dog", "tom": "cat"}
OWN = {
    "rex": torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]])),
    "tom": torch.nn.functional.normalize(torch.tensor([[0.0, 1.0], [0.1, 1.0], [-0.1, 1.0]])),
}


@pytest.mark.parametrize(
    ("dogs", "cats", "expected"),
    [
        ([EAST], [NORTH], ("right", "right")),
        ([], [NORTH], ("missing", "right")),
        ([EAST, EAST], [NORTH], ("duplicated", "right")),
        ([NORTH], [EAST], ("swapped", "swapped")),
        ([torch.tensor([0.8, 0.6])], [NORTH], ("blended", "right")),
    ],
)
def test_verdicts_by_hand(dogs, cats, expected):
    found = {n: torch.stack(own) for n, own in (("dog", dogs), ("cat", cats)) if own}
    assert tuple(verdicts(found, NOUNS, OWN).values()) == expected


def test_two_of_a_noun_are_assigned_together():
    nouns = {"rex": "dog", "tom": "dog"}
    assert set(verdicts({"dog": torch.stack([NORTH, EAST])}, nouns, OWN).values()) == {"right"}


def test_least_likeness_by_hand():
    one = torch.stack([EAST, EAST, NORTH])
    # each one's mean cosine with the two others: .5, .5, 0; their 5th percentile
    assert least_likeness(one) == pytest.approx(0.05, abs=1e-6)
    assert least_likeness(EAST[None]) == -1


def test_manifests_are_listed():
    found = json.loads(bench("manifests", "--json").stdout)
    assert set(found) == {
        "clora", "composlora_anime", "composlora_reality", "customconcept101", "lora_composer",
        "lora_composer_real",
    }  # fmt: skip
    assert all(entry["needs"] for entry in found.values())


def test_data_outside_of_its_folder_is_not_read(data):
    pairs = json.loads((data / "dataset_multiconcept.json").read_text())
    pairs[0][-1]["prompt_filename_compose"] = "../secret.txt"
    (data / "dataset_multiconcept.json").write_text(json.dumps(pairs))
    with pytest.raises(SceneError, match="lies outside"):
        check(read_manifest("customconcept101")[1], data, data)
