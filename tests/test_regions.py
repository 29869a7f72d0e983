"""Regions as users give them: fractions, pixels, pictures, several, without names, with prompts."""

import json
from dataclasses import astuple

import numpy as np
import pytest
import torch
from PIL import Image

import loraweave
from loraweave import LoraRef, MethodError, Region, RegionError, Scene, SceneError
from loraweave.layout.regions import as_masks, joined, region_masks
from loraweave.methods import METHODS, get_method
from loraweave.methods.masked import owners
from loraweave.prompt import parse_prompt, words_alone, words_between
from loraweave.scene import scene_from_dict
from prepared import PROMPT, composed_on

WITH_REGIONS = ("masked", "regional", "lora_composer", "weave")
BARE = {"presence": 0, "fill": 0, "leak": 0, "isolation": False, "reinitialise": "no"}
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def draw(pipe, loras, method="masked", regions=None, prompt=PROMPT, **more):
    return loraweave.compose(
        pipe, prompt, loras=loras, method=method, num_inference_steps=2, output_type="latent",
        regions={"a": LEFT, "b": RIGHT} if regions is None else regions,
        generator=torch.Generator().manual_seed(4), progress=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize("method", WITH_REGIONS)
def test_pixels_and_fractions_are_the_same_box(double, loras, method):
    pixels = {"a": (0, 0, 16, 32), "b": [16, 0, 32, 32]}
    assert torch.equal(draw(double, loras, method, pixels).images,
                       draw(double, loras, method).images)  # fmt: skip


def test_a_box_of_pixels_that_reaches_beyond_the_picture(double, loras):
    with pytest.raises(RegionError, match=r"'b': the box .*48.* outside the picture of 32x32"):
        draw(double, loras, regions={"a": LEFT, "b": (16, 0, 48, 32)})


@pytest.mark.parametrize(
    "box", [(0.5, 0, 0.5, 1), (-0.1, 0, 1, 1), (0.6, 0, 0.4, 1), (20, 0, 10, 5)]
)
def test_an_empty_box(box):
    with pytest.raises(RegionError, match="outside the picture or empty"):
        Region(box=box)


@pytest.mark.parametrize("method", WITH_REGIONS)
def test_a_concept_in_several_regions(double, loras, method):
    """Two halves of a region are the region, but for methods that keep regions apart."""
    halves = {"a": [(0.0, 0.0, 0.5, 0.5), (0.0, 0.5, 0.5, 1.0)], "b": RIGHT}
    whole, parts = draw(double, loras, method), draw(double, loras, method, halves)
    torch.testing.assert_close(parts.masks[0], whole.masks[0], atol=0, rtol=0)
    same = torch.allclose(parts.images, whole.images, atol=1e-9)
    assert same == (method != "lora_composer")
    if method == "lora_composer":
        torch.testing.assert_close(
            draw(double, loras, method, halves, settings=BARE).images,
            draw(double, loras, method, settings=BARE).images, atol=1e-9, rtol=0,
        )  # fmt: skip


def test_masks_of_several_regions_know_their_concept():
    regions = {"a": [Region(box=LEFT)], "b": [Region(box=(0, 0, 1, 0.5)), torch.ones(2, 2)]}
    masks, whose = region_masks(regions, ["a", "b"], (4, 4), (32, 32))
    assert whose == [0, 1, 1]
    assert masks.shape == (3, 4, 4)
    torch.testing.assert_close(joined(masks, whose)[0], masks[0])
    torch.testing.assert_close(joined(masks, whose)[1], torch.ones(4, 4))
    with pytest.raises(RegionError, match="no region for b; give one for each"):
        region_masks({"a": regions["a"], "b": []}, ["a", "b"], (4, 4), (32, 32))


def test_what_a_program_may_give(tmp_path):
    Image.new("L", (4, 4), 255).save(tmp_path / "mask.png")
    picture = tmp_path / "mask.png"
    given = [LEFT, Region(box=RIGHT), {"box": [0, 0, 1, 1]}, picture, torch.ones(2, 2)]
    found = as_masks("a", given)
    assert found[0] == Region(box=LEFT)
    assert found[3] == Region(image=tmp_path / "mask.png")
    assert len(found) == 5
    assert as_masks("a", [0, 0, 8, 8]) == (Region(box=(0, 0, 8, 8)),)
    with pytest.raises(RegionError, match="no region for 'a' in its list"):
        as_masks("a", [])
    half = torch.tensor([[0, 1], [0, 1]])
    for one in (half.bool().numpy(), half.numpy().astype(np.uint8), half.to(torch.uint8) * 255):
        (mask,) = as_masks("a", one)
        assert torch.equal(mask, half.float())  # type: ignore[arg-type]
    with pytest.raises(RegionError, match="is a int; give a box"):
        as_masks("a", [3])


def test_mask_pictures_of_16_bits_are_scaled(tmp_path):
    values = np.array([[0, 65535], [65535 // 4, 65535]], dtype=np.uint16)
    deep = Image.fromarray(values)
    deep.save(tmp_path / "deep.png")
    expected = torch.from_numpy(values.astype(np.float32) / 65535)
    torch.testing.assert_close(as_masks("a", deep)[0], expected)
    regions = {"a": as_masks("a", tmp_path / "deep.png")}
    torch.testing.assert_close(region_masks(regions, ["a"], (2, 2), (16, 16))[0][0], expected)


def test_a_mask_picture_that_is_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "mask.png")
    data = bytearray((tmp_path / "mask.png").read_bytes())
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    data[second : second + 4] = b"\x00\x01\x02\x03"
    (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(RegionError, match="cannot read the mask"):
        region_masks({"a": as_masks("a", tmp_path / "mask.png")}, ["a"], (4, 4), (32, 32))


def test_regions_without_names_are_in_the_order_of_the_prompt(double, loras):
    scene = Scene(prompt=PROMPT, regions=[{"box": LEFT}, [{"box": RIGHT}, {"box": LEFT}]])
    assert scene.regions == {"a": Region(box=LEFT), "b": (Region(box=RIGHT), Region(box=LEFT))}
    assert scene_from_dict(json.loads(scene.to_json())) == scene
    with pytest.raises(RegionError, match=r"3 regions without names for 2 concepts \(a, b\); say"):
        Scene(prompt=PROMPT, regions=[{"box": LEFT}] * 3)
    assert torch.equal(
        draw(double, loras, regions=[LEFT, torch.ones(2, 2)]).images,
        draw(double, loras, regions={"a": LEFT, "b": torch.ones(2, 2)}).images,
    )
    worn = Scene(
        prompt="a [cat](a) with a [hat](h)", regions=[{"box": LEFT}], loras={"h": LoraRef(on="a")}
    )
    assert list(worn.regions) == ["a"]


@pytest.mark.parametrize("method", WITH_REGIONS)
def test_prompts_of_regions(double, loras, method):
    own = {"b": r"a [zwx dog](b) with a red ball", "background": "at night"}
    plain = draw(double, loras, method)
    assert not torch.allclose(draw(double, loras, method, prompts=own).images, plain.images)
    with composed_on(double, loras, prompts=own) as (composed, _):
        texts = [one.text for one in owners(composed, "alone")]
        words = owners(composed, "alone")[2].words
    assert texts == ["at night", "sks cat", "a zwx dog with a red ball"]
    assert len(words.of("b")) >= 2
    again = {"a": "[sks cat](a)", "b": "[zwx dog](b)"}
    text = {"masked": {"text": "alone"}, "weave": {"placed_context": 0.0}}
    text = text.get(method, {})
    torch.testing.assert_close(
        draw(double, loras, method, prompts=again, settings=text).images,
        draw(double, loras, method, settings=text).images, atol=0, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"c": "x"}, "a prompt of its own for 'c', which is no concept"),
        ({"a": "a cat"}, "prompts.a has 0 places for 'a'"),
        ({"a": "[cat](a) and [cat](a)"}, "in the prompt of 'a'"),
        ({"a": "[cat](a) and [dog](b)"}, "names the LoRA 'b', which is not on 'a'"),
        ({"a": "[cat](a:0.5)"}, "gives 'a' a weight"),
        ({"background": "[cat](a)"}, "names the LoRA 'a', which is not on 'background'"),
        ({"a": "[cat](a"}, "in the prompt of 'a': "),
    ],
)
def test_wrong_prompts_of_regions(own, message):
    with pytest.raises(SceneError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Scene(prompt=PROMPT, prompts=own)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(WITH_REGIONS)))
def test_methods_without_texts_of_regions_say_so(double, loras, method):
    assert not METHODS[method].own_prompts
    with pytest.raises(MethodError, match=f"{method} has no text for each region"):
        draw(double, loras, method, {}, prompts={"a": "[cat](a) at night"})


@pytest.mark.parametrize("method", WITH_REGIONS)
def test_what_is_worn_comes_along(double, loras, method):
    prompt = "a [sks cat](a) with a [zwx ball](hat)"
    worn = {"a": loras["a"], "hat": LoraRef(path=loras["b"], on="a")}
    with composed_on(double, worn, prompt) as (composed, _):
        assert [p.text for p in owners(composed, "alone")] == [
            "a cat with a ball", "sks cat, zwx ball",
        ]  # fmt: skip
    assert draw(double, worn, method, {"a": LEFT}, prompt=prompt).images.isfinite().all()


def test_outside_reads_the_rest(double, loras):
    with composed_on(double, loras) as (composed, _):
        assert owners(composed, "alone", "rest")[0].text == "in the meadow"
    for method in ("masked", "lora_composer"):
        images = [
            draw(double, loras, method, {"a": LEFT, "b": (0.5, 0, 1, 0.5)},
                 settings={"outside": what}).images
            for what in ("prompt", "rest")
        ]  # fmt: skip
        assert not torch.allclose(*images)


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("a [sks cat](c), a [dog](d) and the [x](e) on a beach, (at night:1.3)",
         "on a beach, at night"),
        ("photo of a [cat](c)", "photo of"),
        ("[cat](c) next to a [dog](d)", "next to"),
        ("an [cat](c) and [dog](d)", ""),
        ("a [cat](c) wearing a hat and a [dog](d), masterpiece", "wearing a hat masterpiece"),
    ],
)  # fmt: skip
def test_words_between(prompt, left):
    found = words_between(parse_prompt(prompt))
    assert found.text == left
    assert not found.nouns
    for span, _ in found.emphasis:
        assert found.text[span.start : span.end] == "at night"


def test_words_of_what_is_behind_stay():
    parsed = parse_prompt("a [sks cat](c) and a [dog](d) in the [jqv meadow](m:1.2), at night")
    found = words_between(parsed, {"m"})
    assert found.text == "in the jqv meadow, at night"
    assert found.text[slice(*astuple(found.nouns["m"]))] == "meadow"
    assert found.text[slice(*astuple(found.triggers["m"]))] == "jqv"
    assert words_between(parsed).text == "in at night"


def test_a_concept_without_a_lora(double, loras):
    plain = {"a": loras["a"], "b": "none"}
    for method in METHODS:
        settings = {"segmenter": "miniature"} if method == "omg" else None
        if method == "omg":
            continue  # the finder does not fit a random model
        given = {"a": LEFT, "b": RIGHT} if METHODS[method].own_prompts else {}
        out = draw(double, plain, method, given, settings=settings)
        assert out.images.isfinite().all(), method
        assert out.info["loras"]["b"] == {"sha256": "none"}
    zero = PROMPT.replace("b:0.7", "b:0")
    torch.testing.assert_close(
        draw(double, plain).images, draw(double, loras, prompt=zero).images, atol=1e-9, rtol=0
    )
    assert get_method("merge").own_prompts is False
    assert words_alone(parse_prompt(PROMPT), "b").text == "zwx dog"
