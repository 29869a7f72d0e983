"""Weave: places for every concept, and one call a step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import loraweave
from loraweave.denoise.confined import Confined
from loraweave.denoise.stacked import Stack
from loraweave.layout.places import PlaceRule, places_of, upsampled
from loraweave.lora.updates import LowRank
from loraweave.methods import get_method
from loraweave.methods.weave import LayoutStage, WeaveStage
from prepared import PROMPT, composed_on, engine

T = torch.tensor(601)


def draw(pipe, loras, prompt=PROMPT, method="weave", **more):
    given = {"num_inference_steps": 5, "output_type": "latent", "progress": False}
    given["generator"] = torch.Generator().manual_seed(4)
    return loraweave.compose(pipe, prompt, loras=loras, method=method, **given | more)


# -- the method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("regions", [None, {"b": (0, 0, 1, 1)}])
@pytest.mark.parametrize("attention", ["keys", "queries"])
def test_one_concept_is_plain_sampling_with_its_lora(double, loras, regions, attention):
    prompt, own = "a [sks cat](b) in the meadow", {"b": loras["b"]}
    expected = draw(double, own, prompt, "merge").images
    found = draw(double, own, prompt, regions=regions, settings={"attention": attention})
    torch.testing.assert_close(found.images, expected, atol=1e-5, rtol=0)
    assert found.info["calls"] == 5
    assert found.info["rows"] == 10


@pytest.mark.parametrize(("restart", "calls"), [(True, 7), (False, 5)])
def test_one_call_a_step_for_any_number_of_loras(double, loras, restart, calls):
    settings = {"layout_share": 0.4, "restart": restart}
    three = "a [sks cat](a), a [zwx dog](b) and a [sks bird](c) in the meadow"
    for prompt, files in ((PROMPT, loras), (three, loras | {"c": loras["a"]})):
        out = draw(double, files, prompt, settings=settings)
        assert out.info["calls"] == calls
        assert out.info["rows"] == 2 * calls
        masks = out.masks[0]
        assert masks.sum(1).max() <= 1, "no place has two owners"
        assert (masks.sum((2, 3)) > 0).all(), "no concept is without a place"


def test_places_that_are_given_stay_and_the_others_are_found_beside(double, loras):
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    masks = draw(double, loras, regions={"a": (0, 0, 0.5, 1)}).masks[0][-1]
    assert torch.equal(masks[0], left)
    assert masks[1].sum() > 0
    assert (masks[1] * left).sum() == 0


def test_given_places_that_overlap_are_shared(double, loras):
    three = "a [sks cat](a), a [zwx dog](b) and a [sks bird](c) in the meadow"
    regions = {"a": (0, 0, 0.5, 1), "b": (0.25, 0, 0.75, 1)}
    masks = draw(double, loras | {"c": loras["a"]}, three, regions=regions).masks[0][-1]
    assert masks.sum(0).max() <= 1
    assert torch.equal(masks[0, :, 4:8], torch.full((16, 4), 0.5))
    assert torch.equal(masks[1, :, 4:8], torch.full((16, 4), 0.5))
    assert masks[2].sum() > 0


THREE = "a [sks cat](a), a [zwx dog](b) and a [sks bird](c) in the meadow"


def test_what_given_places_read(double, loras):
    """Of three, own words from the start; neither early steps nor the sentence matter then."""
    boxes = {"a": (0, 0, 0.3, 1), "b": (0.3, 0, 0.6, 1), "c": (0.7, 0, 1, 1)}
    two, three = dict(list(boxes.items())[:2]), loras | {"c": loras["a"]}

    def drawn(files, prompt, regions, **own):
        return draw(double, files, prompt, regions=regions, settings=own).images

    expected = drawn(three, THREE, boxes)
    early = {"early": 1.0, "early_context": 0.9, "context": 0.8}
    assert torch.equal(drawn(three, THREE, boxes, early=1.0), expected)
    assert torch.equal(drawn(three, THREE, boxes, placed_context=0.0, **early), expected)
    with pytest.raises(loraweave.MethodError, match="use placed_context"):
        drawn(three, THREE, boxes, **early)
    with pytest.raises(loraweave.MethodError, match="here places are found"):
        drawn(three, THREE, two, placed_context=0.5)
    assert torch.equal(drawn(three, THREE, boxes, placed_context=0.0), expected)
    assert not torch.equal(drawn(three, THREE, boxes, placed_context=0.7), expected)
    assert not torch.equal(drawn(three, THREE, boxes, outside="prompt"), expected)
    assert not torch.equal(drawn(loras, PROMPT, two, **early), drawn(loras, PROMPT, two))


def test_given_places_of_three_are_filled(double, loras):
    """As LoRA-Composer fills its regions, which is then the same picture but for isolation."""
    boxes = {"a": (0, 0, 0.3, 1), "b": (0.3, 0, 0.6, 1), "c": (0.7, 0, 1, 1)}
    files = loras | {"c": loras["a"]}

    def drawn(method="weave", prompt=THREE, regions=boxes, **own):
        return draw(double, files, prompt, method, regions=regions, settings=own)

    every, some, none = drawn(), drawn(placed_updates=2), drawn(placed_updates=0)
    assert [(out.info["calls"], len(out.info["losses"][0])) for out in (every, some, none)] == [
        (10, 5), (7, 2), (5, 0),
    ]  # fmt: skip
    composer = drawn("lora_composer", isolation=False)
    torch.testing.assert_close(every.images, composer.images, atol=1e-9, rtol=0)
    losses, theirs = (torch.tensor(out.info["losses"][0]) for out in (every, composer))
    torch.testing.assert_close(losses, theirs)
    two = dict(list(boxes.items())[:2])
    pair = {name: loras[name] for name in two}
    assert draw(double, pair, regions=two).info["losses"] == [[]]
    filled = draw(double, pair, regions=two, settings={"placed_updates": 3})
    assert len(filled.info["losses"][0]) == 3
    with pytest.raises(loraweave.MethodError, match=r"placed_updates .* here places are found"):
        drawn(regions=two, placed_updates=3)


def test_places_are_found_once_more(double, loras):
    """From the layout's end to the refresh every owner is looked at, in the same calls."""
    settings = {"layout_share": 0.4, "refresh": 0.8}
    assert draw(double, loras).info["calls"] == 6
    # Several pictures, since an untrained base may well look at one place twice.
    twice = draw(double, loras, settings=settings, num_images_per_prompt=6)
    assert twice.info["calls"] == 6 * 7, "two steps of layout, no call for the rest"
    first, *between, last = torch.stack(twice.masks, 1)
    assert len(between) == 3
    assert all(torch.equal(own, first) for own in between)
    assert not torch.equal(last, first)
    assert last.sum(1).max() <= 1
    with pytest.raises(loraweave.MethodError, match="not after the layout"):
        draw(double, loras, settings={"layout_share": 0.4, "refresh": 0.3})
    regions = {"a": (0, 0, 0.5, 1), "b": (0.5, 0, 1, 1)}
    with pytest.raises(loraweave.MethodError, match="here all are known"):
        draw(double, loras, regions=regions, settings={"refresh": 0.8})


def test_given_places_that_leave_no_room_are_an_error(double, loras):
    with pytest.raises(loraweave.RegionError, match="leave no place for 'b'"):
        draw(double, loras, regions={"a": (0, 0, 1, 1)})


def test_without_restart_the_concepts_have_a_step_at_least(double, loras):
    settings = {"layout_share": 0.99, "restart": False}
    assert len(draw(double, loras, settings=settings).masks[0]) == 1
    with pytest.raises(loraweave.MethodError, match="two steps at least"):
        draw(double, loras, settings=settings, num_inference_steps=1)


def test_texts_are_read_once(double, loras):
    """Pass 0, and of each concept its sentence and its words; the rest of the prompt."""
    assert draw(double, loras).info["texts"] == [[], ["a"], ["b"], ["a"], ["b"], []]


def test_a_lora_on_the_background_acts_outside_of_the_places(double, loras):
    placed = {"a": loras["a"], "b": loraweave.LoraRef(path=loras["b"], on="background")}
    prompt = "a [sks cat](a) in the [zwx meadow](b)"
    out = draw(double, placed, prompt)
    assert out.info["calls"] == 6, "a layout was made, for one concept too"
    assert 0 < out.masks[0][-1].mean() < 1


def test_without_restart_the_layouts_steps_are_the_pictures(double, loras):
    seen = []

    def callback(pipe, i, t, values):
        seen.append(i)
        return values

    for restart in (True, False):
        settings = {"layout_share": 0.4, "restart": restart}
        draw(double, loras, settings=settings, callback_on_step_end=callback)
    assert seen == [*range(5)] * 2


def test_stages(double, loras):
    with composed_on(double, loras) as (composed, executor):
        scheduler = loraweave.api._scheduler(executor, [None], get_method("weave"))
        kinds = [type(s) for s in get_method("weave").stages(composed, executor, scheduler)]
    assert kinds == [LayoutStage, WeaveStage]


# -- places ----------------------------------------------------------------------------------------


def blob(*centres, size=16, radius=2.5):
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    each = [np.exp(-(((rows - y) ** 2 + (columns - x) ** 2) / radius**2)) for y, x in centres]
    return torch.from_numpy(np.max(each, 0)).float()


def centre(mask):
    return mask.nonzero().float().mean(0) + 0.5


def test_pieces_of_their_own_are_kept():
    maps = torch.stack([blob((8, 4)), blob((8, 12))])
    found = places_of(maps, ["cat", "dog"])
    assert found.put == []
    assert torch.allclose(centre(found.masks[0]), torch.tensor([8.0, 4.0]), atol=0.5)
    assert torch.allclose(centre(found.masks[1]), torch.tensor([8.0, 12.0]), atol=0.5)


def test_of_two_nouns_that_look_at_one_place_one_is_put_beside_it():
    maps = torch.stack([blob((9, 4)), 0.9 * blob((9, 4.5)) + 1e-3])
    found = places_of(maps / maps.amax((1, 2), keepdim=True), ["cat", "dog"])
    assert len(found.put) == 1
    other, put = found.masks[1 - found.put[0]], found.masks[found.put[0]]
    assert (centre(other)[1] - centre(put)[1]).abs() > 4, "beside, not above"
    assert (centre(other)[0] - centre(put)[0]).abs() < 3, "at the same height"
    assert put.sum() > 9


def test_concepts_of_one_noun_share_out_its_instances():
    both = blob((8, 4), (8, 12))
    found = places_of(torch.stack([both, both]), ["cat", "cat"])
    assert found.put == []
    assert sorted(round(float(centre(m)[1])) for m in found.masks) == [4, 12]


def test_places_that_are_known_are_not_given_away():
    maps = torch.stack([blob((8, 4)), blob((8, 4))])
    known = (blob((8, 4)) > 0.2).float()
    found = places_of(maps, ["cat", "dog"], given={0: known})
    assert torch.equal(found.masks[0], known)
    assert found.put == [1]
    assert (found.masks.sum(0) <= 1).all()


def test_small_places_grow_into_what_is_nobodys_until_they_have_room():
    maps = torch.stack([blob((8, 3), radius=1.5), blob((8, 12), radius=4)])
    small = places_of(maps, ["cat", "dog"], PlaceRule(room=0)).masks
    grown = places_of(maps, ["cat", "dog"], PlaceRule(room=0.15)).masks
    assert small[0].mean() < 0.15 < small[1].mean()
    assert torch.equal(grown[1], small[1]), "large ones stay"
    assert (grown[0] >= small[0]).all()
    assert 0.15 <= grown[0].mean() < 0.3, "cell by cell"
    assert (grown.sum(0) <= 1).all()
    every = places_of(maps, ["cat", "dog"], PlaceRule(room=1)).masks
    assert torch.equal(every.sum(0), torch.ones(16, 16)), "until nothing is left"
    between = every[:, 8]
    assert between.argmax(0).diff().sum() == 1, "the border is between them"
    known = (blob((8, 4)) > 0.2).float()
    kept = places_of(maps, ["cat", "dog"], PlaceRule(room=1), {0: known}).masks
    assert torch.equal(kept[0], known), "what is given does not grow"
    assert torch.equal(kept[1], 1 - known)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 8), st.integers(4, 17), st.integers(4, 17), st.integers(0, 2**31),
    st.booleans(), st.floats(0.05, 0.9), st.floats(0, 1),
)  # fmt: skip
def test_every_concept_has_a_place_and_no_place_has_two(n, h, w, seed, alike, threshold, room):
    maps = torch.rand((n, h, w), generator=torch.Generator().manual_seed(seed)) ** 3
    maps = maps / maps.amax((1, 2), keepdim=True)
    nouns = ["cat"] * n if alike else [f"noun {k}" for k in range(n)]
    found = places_of(maps, nouns, PlaceRule(threshold=threshold, room=room))
    assert found.masks.shape == (n, h, w)
    assert set(found.masks.unique().tolist()) <= {0.0, 1.0}
    assert found.masks.sum(0).max() <= 1
    assert (found.masks.sum((1, 2)) > 0).all()


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (13, 30)])
def test_finer_places_have_one_owner_everywhere(size):
    masks = torch.zeros(1, 3, 16, 16)
    masks[:, 1, 4:9, 2:7], masks[:, 2, 4:9, 7:12] = 1, 1
    masks[:, 0] = 1 - masks[:, 1:].sum(1)
    found = upsampled(masks, size)
    assert found.shape == (1, 3, *size)
    assert torch.equal(found.sum(1), torch.ones(1, *size))
    if size == (16, 16):
        assert torch.equal(found, masks)


# -- what makes it fast ----------------------------------------------------------------------------


def low_rank(out, into, rank, seed, kernel=()):
    generator = torch.Generator().manual_seed(seed)
    ones = (1,) * len(kernel)
    down = torch.randn((rank, into, *kernel), generator=generator, dtype=torch.float64)
    up = torch.randn((out, rank, *ones), generator=generator, dtype=torch.float64)
    return LowRank(down, up, 0.5 + seed)


@pytest.mark.parametrize("kind", ["linear", "conv", "strided"])
def test_stacked_loras_are_the_sum_of_each_where_it_acts(kind):
    ranks, image = (2, 3, 1), kind != "linear"
    kernel, shape = ((3, 3), (2, 6, 8, 8)) if image else ((), (2, 10, 6))
    layer = nn.Linear(6, 5).double()
    if image:
        layer = nn.Conv2d(6, 5, 3, padding=1, stride=2 if kind == "strided" else 1).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    updates = [low_rank(5, 6, rank, n, kernel) for n, rank in enumerate(ranks)]
    with torch.no_grad():
        out = layer(x)
        places = [torch.rand((2, 1, *out.shape[2:]) if image else (2, 10, 1)).double()
                  for _ in ranks]  # fmt: skip
        axis = 1 if image else -1
        gate = torch.cat([
            u.scale * p.repeat_interleave(r, axis) for u, p, r in zip(updates, places, ranks)
        ], axis)  # fmt: skip
        stack = Stack.of(updates, x.device, x.dtype)
        assert stack.ranks == ranks
        assert stack.scales == tuple(u.scale for u in updates)
        expected = out + sum(u.delta(x, layer) * p for u, p in zip(updates, places))
        torch.testing.assert_close(stack.added(x, out, layer, gate), expected)
        flat = torch.tensor([0.5, 0.5, 2.0, 2.0, 2.0, -1.0], dtype=torch.float64)
        flat = flat * torch.tensor(stack.scales).double().repeat_interleave(torch.tensor(ranks))
        expected = out + sum(u.delta(x, layer) * w for u, w in zip(updates, (0.5, 2.0, -1.0)))
        torch.testing.assert_close(stack.added(x, out, layer, flat), expected)


@torch.no_grad()
@pytest.mark.parametrize("by_query", [False, True])
def test_owners_may_be_named_in_any_order(double, loras, by_query):
    z = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3)).double()
    masks = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    masks[:, 0, :5], masks[:, 1, 5:, :7], masks[:, 2, 5:, 7:] = 1, 1, 1
    turned = [2, 0, 1]
    with engine(double, loras) as (executor, passes):
        one = Confined(executor, passes, by_query).evaluate(masks, z, T).noise
        other = Confined(executor, [passes[k] for k in turned], by_query)
        two = other.evaluate(masks[:, turned], z, T).noise
        every = Confined(executor, passes, not by_query).evaluate(masks, z, T).noise
    torch.testing.assert_close(one, two, atol=1e-10, rtol=0)
    assert (one - every).abs().max() > 1e-6, "it matters whose keys and values are seen"


@torch.no_grad()
def test_what_follows_from_masks_is_made_again_for_other_masks(double, loras):
    z = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3)).double()
    first, second = torch.zeros(2, 1, 3, 16, 16, dtype=torch.float64)
    first[:, 1], second[:, 2] = 1, 1
    with engine(double, loras) as (executor, passes):
        kept = Confined(executor, passes)
        for masks in (first, second, first):
            fresh = Confined(executor, passes).evaluate(masks, z, T).noise
            torch.testing.assert_close(kept.evaluate(masks, z, T).noise, fresh, atol=0, rtol=0)
