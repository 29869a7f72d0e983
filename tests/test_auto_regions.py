"""A layout without a user: boxes from the attention of the base model."""

import json

import pytest
import torch
from typer.testing import CliRunner

import loraweave
from loraweave import MethodError, SceneError
from loraweave.cli import app
from loraweave.layout.auto import LEAST_SIDE, boxes_of
from loraweave.layout.boxes import containment, intersection_over_union, tight_box
from loraweave.output import picture_record
from loraweave.scene import scene_from_dict
from prepared import PROMPT


def blob(y, x, size=(16, 16), width=2.0):
    rows = torch.arange(size[0])[:, None] - y
    columns = torch.arange(size[1]) - x
    return torch.exp(-(rows**2 + columns**2) / (2 * width**2))


def test_boxes_are_around_the_attention():
    left, right = boxes_of(torch.stack([blob(8, 4), blob(8, 12)]), ["cat", "dog"])
    assert left[2] <= 0.5 <= right[0]
    assert 0.3 < left[1] < left[3] < 0.8
    for box in (left, right):
        assert 0 <= box[0] < box[2] <= 1
        assert 0 <= box[1] < box[3] <= 1


def test_two_of_one_noun_get_a_box_each():
    both = torch.maximum(blob(8, 3), blob(8, 12))
    one, other = boxes_of(torch.stack([both, both * 0.99]), ["cat", "cat"])
    assert intersection_over_union(one, other) == 0


def test_a_place_that_two_want_goes_to_the_stronger():
    weak = blob(8, 8) * 0.9
    one, other = boxes_of(torch.stack([blob(8, 8), weak]), ["cat", "dog"])
    assert one[0] < 0.45 < 0.55 < one[2]
    assert other[2] - other[0] >= LEAST_SIDE - 1e-6, "nothing is left of it: the least box"


def test_only_the_strongest_piece_counts():
    (box,) = boxes_of((blob(8, 3) + 0.6 * blob(8, 13))[None], ["cat"])
    assert box[2] < 0.5


def test_boxes_and_their_overlap():
    assert intersection_over_union((0, 0, 1, 1), (0.5, 0, 1, 1)) == 0.5
    assert containment((0, 0, 1, 1), (0.5, 0, 1, 1)) == 0.5
    assert containment((0.5, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert containment((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    assert intersection_over_union((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    assert intersection_over_union((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)) == pytest.approx(
        1 / 7
    )
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[1, 2:5] = True
    assert tight_box(mask.numpy()) == (0.25, 0.25, 0.625, 0.5)
    with pytest.raises(ValueError, match="empty mask"):
        tight_box(mask.numpy() & False)


def draw(pipe, loras, method="lora_composer", count=1, **more):
    return loraweave.compose(
        pipe, PROMPT, loras=loras, method=method, num_inference_steps=4, output_type="latent",
        num_images_per_prompt=count, progress=False, **more,
    )  # fmt: skip


def test_every_picture_has_a_layout_of_its_own_and_can_be_made_again(double, loras):
    both = draw(double, loras, count=2, auto_regions=True, batch_size=2)
    first, second = both.info["regions"]
    assert set(first) == set(second) == {"a", "b"}
    for n in (0, 1):
        record = picture_record(both.info, n)
        scene = scene_from_dict(json.loads(json.dumps(record["scene"])))
        again = loraweave.compose(
            double, scene, method="lora_composer", settings=record["settings"],
            output_type="latent", progress=False,
        )  # fmt: skip
        torch.testing.assert_close(again.images, both.images[n : n + 1], atol=0, rtol=0)
    calls = draw(double, loras, settings={"layout": "strips"}).info["calls"]
    assert both.info["calls"] == 2 * (calls + round(0.4 * 4))


def test_what_the_user_gives_stays(double, loras):
    out = draw(double, loras, "masked", auto_regions=True, regions={"a": (0, 0, 0.5, 1)})
    assert set(out.info["regions"][0]) == {"b"}
    assert out.info["scene"]["regions"].keys() == {"a"}


@pytest.mark.parametrize(
    ("method", "more", "error", "message"),
    [
        ("merge", {}, MethodError, "merge takes no regions"),
        ("masked", {"settings": {"layout": "strips"}}, MethodError, "cuts the picture itself"),
        ("masked", {"regions": {"a": (0, 0, 1, 1), "b": (0, 0, 1, 1)}}, SceneError, "already"),
    ],
)
def test_where_it_makes_no_sense(double, loras, method, more, error, message):
    with pytest.raises(error, match=message):
        draw(double, loras, method, auto_regions=True, **more)


def test_command_line(tmp_path, base_folder, lora_files):
    def run(*args):
        given = [a for n, f in lora_files.items() for a in ("--lora", f"{n}={f}")]
        return CliRunner().invoke(app, [
            "generate", "a [sks cat](cat) and a [zwx dog](dog) in the meadow", *given,
            "--base", str(base_folder), "--steps", "2", "-o", str(tmp_path / "out.png"), *args,
        ])  # fmt: skip

    own = ["--method", "lora_composer"]
    assert run(*own, "--auto-regions").exit_code == 0
    record = loraweave.output.read_png_record(tmp_path / "out.png")
    assert set(record["scene"]["regions"]) == {"cat", "dog"}
    boxes = ["--region", "0,0,16,32", "--region", "16,0,32,32"]
    assert run(*own, *boxes).exit_code == 0
    twice = ["--region", "cat=0,0,8,8", "--region", "cat=8,8,16,16", "--region", "dog=0.5,0,1,1"]
    worn = ["--region-prompt", r"dog=a [zwx dog](dog) at night"]
    result = run(*own, *twice, *worn)
    assert result.exit_code == 0, result.stderr
    record = loraweave.output.read_png_record(tmp_path / "out.png")
    assert len(record["scene"]["regions"]["cat"]) == 2
    for bad, message in {
        ("--region", "0,0,1,1"): "1 regions without names for 2 concepts (cat, dog)",
        ("--region", "0,0,1,1", "--region", "cat=0,0,1,1"): "some regions have a name",
        ("--region", "cat=0,0,1,1", "--region", "dog=0,0,64,64"): "outside the picture of 32x32",
        ("--method", "merge", "--auto-regions"): "no regions are taken",
        ("--method", "clora", "--region-prompt", "dog=[dog](dog) at night"): "has no text for each",
    }.items():
        result = run(*([] if "--method" in bad else own), *bad)
        assert result.exit_code == 2, bad
        assert message in result.stderr, result.stderr
