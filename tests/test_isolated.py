"""Self-attention between regions equals a dense mask; the guidance's values by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraweave.denoise.isolated import Isolation, groups_of, level_regions
from loraweave.methods.composer_losses import (
    concept_presence,
    fill,
    gaussian_weight,
    leak,
    top_count,
)


def box(x0, y0, x1, y1, size=(16, 16)):
    mask = torch.zeros(size)
    mask[y0:y1, x0:x1] = 1
    return mask


def dense(attn, states, regions):
    """The plain computation with a mask of L x L."""
    query, key, value = (
        layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    flat = regions.flatten(1).float()
    shared = (flat.T @ flat) > 0
    background = ~regions.flatten(1).any(0)
    allowed = shared | background[None] | background[:, None]
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    probabilities = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    out = attn.to_out[0]((probabilities @ value).transpose(1, 2).flatten(2))
    return out, probabilities.mean(1)


BOXES = {
    "apart": [(0, 0, 6, 16), (10, 0, 16, 16)],
    "touching": [(0, 0, 8, 16), (8, 0, 16, 16)],
    "overlapping": [(0, 0, 10, 10), (6, 6, 16, 16)],
    "nested": [(0, 0, 16, 16), (4, 4, 8, 8)],
    "none": [],
    "full twice": [(0, 0, 16, 16), (0, 0, 16, 16)],
}


@torch.no_grad()
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES)
def test_isolation_is_a_dense_mask(double, boxes):
    masks = torch.stack([box(0, 0, 1, 1), *(box(*corners) for corners in boxes)]).double()[1:]
    block = double.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    site, run = block.attn1, Isolation(double.unet, masks, [block.attn2])
    states = torch.randn(
        2, 256, site.to_q.in_features, generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )  # fmt: skip
    expected, probabilities = dense(site, states, level_regions(masks, (16, 16)))
    with run.acting(record=True):
        torch.testing.assert_close(run.attend(site, states), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(run.take(), probabilities, atol=1e-12, rtol=0)


@torch.no_grad()
def test_regions_are_apart_within_the_context_only(double):
    masks = torch.stack([box(0, 0, 8, 16), box(8, 0, 16, 16)]).double()
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2)).double()
    text = torch.zeros(1, 77, 32, dtype=torch.float64)
    before = [m.processor for m in double.unet.modules() if hasattr(m, "processor")]
    plain = double.unet(latents, 500, text).sample
    run = Isolation(double.unet, masks)
    with run.acting():
        apart = double.unet(latents, 500, text).sample
    assert not torch.allclose(apart, plain, atol=1e-3)
    assert torch.equal(double.unet(latents, 500, text).sample, plain)
    after = [m.processor for m in double.unet.modules() if hasattr(m, "processor")]
    assert all(a is b for a, b in zip(before, after))


corners = st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(1, 16), st.integers(1, 16))


@given(st.lists(corners, min_size=1, max_size=5), st.sampled_from([(16, 16), (12, 16), (5, 7)]))
def test_every_place_has_a_key_at_every_level(boxes, size):
    masks = torch.stack([
        box(min(x0, x1 - 1), min(y0, y1 - 1), max(x1, x0 + 1), max(y1, y0 + 1))
        for x0, y0, x1, y1 in boxes
    ])  # fmt: skip
    h, w = size
    while True:
        regions = level_regions(masks, (h, w))
        assert regions.any(2).any(1).all(), "no region vanishes"
        groups = groups_of(regions.flatten(1))
        assert torch.equal(torch.cat([q for q, _ in groups]).sort().values, torch.arange(h * w))
        for queries, keys in groups:
            assert set(queries.tolist()) <= set(keys.tolist()), "a place may see itself"
        if max(h, w) == 1:
            break
        h, w = -(-h // 2), -(-w // 2)


# -- the guidance's values -------------------------------------------------------------------------


def test_gaussian_weight():
    weight = gaussian_weight(box(1, 0, 4, 3, (4, 5)).bool())
    assert weight[1, 2] == 1
    assert weight[0, 1] == pytest.approx(math.exp(-1))
    assert weight[0, 2] == pytest.approx(math.exp(-0.5))
    assert weight[:, 0].sum() == weight[:, 4].sum() == weight[3].sum() == 0
    assert gaussian_weight(box(2, 2, 3, 3, (4, 5)).bool()).sum() == 1


def test_concept_presence_by_hand():
    region = box(0, 0, 3, 3, (4, 4)).bool()  # 9 places: one is asked
    assert top_count(region) == 1
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 1] = 0.7  # in the middle, where the weight is 1
    maps[0, 3, 3] = 0.9  # outside
    maps[1, 0, 0] = 0.8  # a corner
    expected = [0.3, 1 - 0.8 * math.exp(-1)]
    assert concept_presence(maps, region).tolist() == pytest.approx(expected)
    many = box(0, 0, 4, 4, (4, 4)).bool()  # 16 places: three are asked
    assert top_count(many) == 3


def test_fill_by_hand():
    region = box(1, 0, 3, 2, (4, 4)).bool()
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 1], maps[0, 1, 2], maps[0, 3, 3] = 0.5, 0.25, 1.0
    # columns 1 and 2 reach .5 and .25 of 1; so do rows 0 and 1; the rest is 0 as it should be
    assert fill(maps, region).tolist() == pytest.approx([(0.5 + 0.75) / 4 * 2])
    assert fill(region[None].float(), region).tolist() == [0]


def test_leak_by_hand():
    region = box(0, 0, 2, 1, (2, 2)).bool()  # places 0 and 1 of 4: one look is asked
    attention = torch.tensor([
        [0.4, 0.1, 0.3, 0.2], [0.0, 0.5, 0.1, 0.4], [0.25] * 4, [0.9, 0.0, 0.1, 0.0]
    ])  # fmt: skip
    assert leak(attention, region).item() == pytest.approx(0.4)
    assert leak(attention, torch.ones(2, 2, dtype=torch.bool)) == 0
