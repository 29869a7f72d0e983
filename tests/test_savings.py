"""What makes CLoRA cheaper at some loss: what each option computes, and what it refuses."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loraweave
from loraweave import MethodError
from prepared import PROMPT

ALONE = "a [sks cat](a) in the meadow"


def draw(pipe, loras, settings, prompt=PROMPT, **changes):
    given = {"max_update_step": 0, **settings}
    return loraweave.compose(
        pipe, prompt, loras=loras, method="clora", settings=given, num_inference_steps=4,
        generator=torch.Generator().manual_seed(4), output_type="latent", progress=False, **changes,
    )  # fmt: skip


def rows(pipe, loras, settings):
    return draw(pipe, loras, settings).info["rows"]


def test_fewer_rows(pipe, loras):
    assert rows(pipe, loras, {}) == 4 * 6
    assert rows(pipe, loras, {"unconditional": "shared"}) == 4 * 4
    assert rows(pipe, loras, {"mask_until": 1}) == 4 * 6  # only the masks are not made
    assert rows(pipe, loras, {"mask_until": 1, "frozen": "owner"}) == 6 + 3 * 2


def test_updates_at_every_kth_step_and_where_there_are_refinements(pipe, loras):
    settings = {"max_update_step": 4, "refinement_steps": (1,), "refinements": 2}
    for every, expected in ((1, [0, 1, 1, 1, 2, 3]), (2, [0, 1, 1, 1, 2]), (3, [0, 1, 1, 1, 3])):
        losses = draw(pipe, loras, {**settings, "update_every": every}).info["losses"][0]
        assert [i for i, _ in losses] == expected


def test_masks_stay_from_a_step_on(pipe, loras):
    free = draw(pipe, loras, {}).masks[0]
    for how in ("passes", "owner"):
        masks = draw(pipe, loras, {"mask_until": 2, "frozen": how}).masks[0]
        assert len(masks) == 4
        assert torch.equal(masks[:2], free[:2])
        assert torch.equal(masks[2], masks[1])
        assert torch.equal(masks[3], masks[1])
    assert not torch.equal(free[2], free[1])


def test_masks_that_freeze_after_the_end_change_nothing(pipe, loras):
    expected = draw(pipe, loras, {}).images
    assert torch.equal(draw(pipe, loras, {"mask_until": 4}).images, expected)
    assert not torch.equal(draw(pipe, loras, {"mask_until": 1}).images, expected)


def test_the_owner_of_the_whole_picture_draws_it_as_its_pass_does(double, loras):
    settings, loras = {"base_pass": False}, {"a": loras["a"]}
    expected = draw(double, loras, settings, ALONE).images
    frozen = {**settings, "mask_until": 1, "frozen": "owner"}
    found = draw(double, loras, frozen, ALONE).images
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_stale_noise_of_a_shared_half_is_the_same_in_one_graph_or_many(double, loras):
    settings = {"variant": "faithful", "unconditional": "shared", "max_update_step": 2,
                "refinements": 0}  # fmt: skip
    one, other = (
        draw(double, loras, {**settings, "gradient": mode}).images
        for mode in ("together", "one_by_one")
    )
    torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("settings", "more", "words"),
    [
        ({"frozen": "owner"}, {}, "mask_until=25"),
        ({"mask_until": 1, "mask_from": 3}, {}, "no masks yet that could freeze at step 1"),
        ({"mask_until": 1, "masks": False}, {}, "no masks yet"),
        ({"mask_until": 1, "frozen": "owner", "unconditional": "shared"}, {}, "unconditional=own"),
        (
            {"mask_until": 1, "frozen": "owner", "noise": "stale", "max_update_step": 2},
            {},
            "max_update_step=2 up",
        ),
        ({"update_every": 2, "update_at": "listed"}, {}, "use one of the two"),
        ({"unconditional": "shared", "base_pass": False}, {}, "base_pass=true"),
        ({"unconditional": "shared"}, {"negative_prompts": {"a": "snow"}}, "'a' has one"),
        ({"mask_until": 0}, {}, "mask_until"),
        ({"update_every": 0}, {}, "update_every"),
    ],
)
def test_what_does_not_fit_together_is_said(pipe, loras, settings, more, words):
    with pytest.raises(MethodError, match=words):
        draw(pipe, loras, settings, **more)


@pytest.mark.parametrize(
    ("method", "settings"), [("clora", {"mask_until": 2, "frozen": "owner"}), ("weave", {})]
)
def test_no_place_is_said_before_anything_is_drawn(pipe, loras, tmp_path, method, settings):
    timed = tmp_path / "timed.safetensors"
    layer = "lora_unet_time_embedding_linear_1"
    out, into = pipe.unet.time_embedding.linear_1.weight.shape
    more = {f"{layer}.lora_down.weight": torch.ones(1, into),
            f"{layer}.lora_up.weight": torch.ones(out, 1)}  # fmt: skip
    save_file({**load_file(loras["a"]), **more}, timed)
    steps = []

    def callback(pipe, i, t, values):
        steps.append(i)
        return values

    given = {"loras": {**loras, "a": timed}, "method": method, "settings": settings}
    with pytest.raises(MethodError, match="frozen=passes"):
        loraweave.compose(pipe, PROMPT, **given, progress=False, callback_on_step_end=callback)
    assert steps == []
