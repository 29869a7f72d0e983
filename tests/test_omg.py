"""OMG with segmenters that know where they look."""

import numpy as np
import pytest
import torch

import loraweave
from loraweave import MethodError
from loraweave.detect import SEGMENTERS, get_segmenter
from loraweave.detect.components import components
from loraweave.detect.registry import Entry
from prepared import PROMPT
from tiny import tiny_pipeline


class Halves:
    """Cats are in the left half, dogs in the right one, nothing else is anywhere."""

    def find(self, image, noun):
        mask = np.zeros((32, 32), dtype=bool)
        if noun == "cat":
            mask[:, :16] = True
        elif noun == "dog":
            mask[:, 16:] = True
        return [mask] if mask.any() else []


class Everywhere:
    """Whatever is asked for fills the picture, once."""

    def find(self, image, noun):
        return [np.ones((4, 4), dtype=bool)]


@pytest.fixture(autouse=True)
def segmenters(monkeypatch):
    monkeypatch.setitem(SEGMENTERS, "halves", Entry(Halves))
    monkeypatch.setitem(SEGMENTERS, "everywhere", Entry(Everywhere))


def draw(pipe, loras, prompt=PROMPT, method="omg", steps=5, **settings):
    return loraweave.compose(
        pipe, prompt, loras=loras, method=method, settings=settings, num_inference_steps=steps,
        generator=torch.Generator().manual_seed(4), output_type="latent", progress=False,
    )  # fmt: skip


def test_from_the_first_step_everywhere_is_the_concepts_own_picture(double, loras):
    prompt, one = "a [zwx dog](b:0.7) in the meadow", {"b": loras["b"]}
    found = draw(double, one, prompt, segmenter="everywhere", start=0.0)
    expected = draw(double, one, prompt, "merge")
    torch.testing.assert_close(found.images, expected.images, atol=1e-9, rtol=0)


def test_shared_first_steps_are_computed_once(double, loras):
    out = draw(double, loras, segmenter="halves", start=0.4)
    assert out.info["calls"] == 5 + 3
    assert out.info["rows"] == 5 * 2 + 3 * 3 * 2
    assert out.masks[0].shape == (3, 2, 16, 16)
    assert out.masks[0][0, 0].tolist() == [[1.0] * 8 + [0.0] * 8] * 16
    assert out.info["notes"] == []


def test_noise_inside_a_mask_is_that_of_its_pass(double, loras):
    """With disjoint masks, the last step by hand from single passes."""
    steps = 4
    seen = {}

    def callback(pipe, i, t, values):
        seen[i] = t, values["latents"].clone()
        return values

    given = {"loras": loras, "num_inference_steps": steps, "output_type": "latent"}
    out = loraweave.compose(
        double, PROMPT, method="omg", settings={"segmenter": "halves", "start": 0.5}, **given,
        generator=torch.Generator().manual_seed(4), callback_on_step_end=callback, progress=False,
    )  # fmt: skip
    assert sorted(seen) == [0, 1, 2, 3]
    before, (t, after) = seen[2][1], seen[3]
    halves = []
    for name, weight, prompt in (
        ("a", 1.0, "a sks cat and a dog in the meadow"),
        ("b", 0.7, "a cat and a zwx dog in the meadow"),
    ):
        own = tiny_pipeline().to(torch.float64)
        own.load_lora_weights(loras[name].parent, weight_name=loras[name].name, adapter_name=name)
        own.set_adapters([name], [weight])
        with torch.no_grad():
            conditional, unconditional = own.encode_prompt(prompt, "cpu", 1, True, "")
            states = torch.cat([unconditional, conditional])
            un, con = own.unet(before.expand(2, -1, -1, -1), t, states).sample
        halves.append(un + 7.5 * (con - un))
    noise = torch.cat([halves[0][..., :8], halves[1][..., 8:]], -1)[None]
    double.scheduler.set_timesteps(steps)
    expected = double.scheduler.step(noise, t, before).prev_sample
    torch.testing.assert_close(after, expected, atol=1e-7, rtol=0)
    assert torch.equal(out.images, after)


def test_a_subject_that_is_not_found_is_reported_and_left_to_the_base(double, loras):
    prompt = "a [sks cat](a) and a [zwx robot](b)"
    out = draw(double, loras, prompt, segmenter="halves")
    assert out.info["notes"] == [
        "omg: no robot for 'b' in the layout of picture 1; the base model draws it"
    ]
    assert out.masks[0][:, 1].max() == 0


def test_two_of_a_class_from_left_to_right(double, loras):
    class TwoCats:
        def find(self, image, noun):
            left, right = np.zeros((2, 8, 8), dtype=bool)
            left[:, :2], right[:, 5:] = True, True
            return [left, right]

    SEGMENTERS["two"] = Entry(TwoCats)
    try:
        out = draw(double, loras, "a [sks cat](b) and a [zwx cat](a)", segmenter="two")
    finally:
        del SEGMENTERS["two"]
    assert out.masks[0][0, 0, 0].tolist() == [1.0] * 4 + [0.0] * 12
    assert out.masks[0][0, 1, 0].tolist() == [0.0] * 10 + [1.0] * 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "omg needs a segmenter for this model"),
        ({"segmenter": "sam"}, "no segmenter 'sam'; there are: miniature"),
        ({"segmenter": "clipseg"}, "needs 1 model folders and got 0"),
    ],
)
def test_bad_segmenters(double, loras, settings, message):
    with pytest.raises(MethodError, match=message):
        draw(double, loras, **settings)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(loraweave.LoraWeaveError, match="no CLIPSeg model in"):
        get_segmenter("clipseg", tmp_path)


def test_components_from_left_to_right():
    where = np.zeros((6, 9), dtype=bool)
    where[2:4, 6:9] = where[0:5, 0:2] = where[5, 4] = True
    found = components(where, 2)
    assert [part.sum() for part in found] == [10, 6]
