"""From attention maps to masks, and noise joined by them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraweave.layout.masks import (
    concept_strength,
    exclusive,
    fused,
    resized,
    smoothed,
    threshold_mask,
    with_base,
    word_maps,
)


def test_threshold_is_strict():
    maps = torch.tensor([[[1.0, 0.5], [0.25, 0.50001]]])
    assert threshold_mask(maps, 0.5).tolist() == [[1, 0], [0, 1]]


def test_threshold_is_relative_to_the_own_peak_of_each_word():
    maps = torch.tensor([[[100.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.01, 0.001]]])
    assert threshold_mask(maps, 0.5).tolist() == [[1, 0], [1, 0]]


def test_mask_is_the_union_over_words():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand((3, 4, 6), generator=generator)
    single = torch.stack([threshold_mask(one[None], 0.7) for one in maps])
    assert torch.equal(threshold_mask(maps, 0.7), single.amax(0))
    assert not torch.equal(single[0], single.amax(0))


def test_a_map_of_zeros_claims_nothing():
    assert threshold_mask(torch.zeros(2, 3, 3), 0.4).sum() == 0


def test_base_takes_what_nobody_claims_and_nothing_else():
    masks = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]])
    out = with_base(masks)
    assert out[0].tolist() == [[0, 0, 1]]
    assert torch.equal(out[1:], masks)


def test_overlaps_go_to_the_strongest_that_claims_them():
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    strengths = torch.tensor([[[0.9, 0.2, 0.9, 0.9]], [[0.1, 0.3, 0.1, 0.1]], [[1.0] * 4]])
    out = exclusive(masks, strengths)
    assert out.tolist() == [[[1, 0, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 0, 0]]]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), h=st.integers(1, 7), w=st.integers(1, 7), seed=st.integers(0, 999))
def test_exclusive_masks_and_base_share_every_place_out_once(n, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand((n, h, w), generator=generator) > 0.5).float()
    out = with_base(exclusive(masks, torch.rand((n, h, w), generator=generator)))
    assert torch.equal(out.sum(0), torch.ones(h, w))
    assert torch.equal(out[1:].sum(0) > 0, masks.sum(0) > 0), "no place is lost or won"
    assert bool((out[1:] <= masks).all())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 999))
def test_fused_weights_sum_to_one(n, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = with_base((torch.rand((n, h, w), generator=generator) > 0.5).double())
    same = torch.rand((1, 2, 4, h, w), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(fused(same.expand(n + 1, -1, -1, -1, -1), masks), same[0])


def test_overlaps_are_the_plain_average_of_those_who_claim_them():
    noise = torch.tensor([10.0, 1.0, 3.0]).view(3, 1, 1, 1, 1).expand(3, 2, 4, 1, 4)
    masks = with_base(torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]]]))
    out = fused(noise, masks)
    assert out.shape == (2, 4, 1, 4)
    assert out[1, 2].tolist() == [[1, 2, 3, 10]]


def test_halves_are_fused_separately():
    noise = torch.randn(2, 2, 4, 3, 5)
    masks = with_base((torch.rand(1, 3, 5) > 0.5).float())
    out = fused(noise, masks)
    for half in (0, 1):
        assert torch.equal(out[half], fused(noise[:, half : half + 1], masks)[0])


def test_word_maps_have_rows_of_the_picture_first():
    h, w = 2, 3
    maps = torch.zeros(h * w, 5)
    maps[1 * w + 2, 4] = 1.0  # second row, third column
    out = word_maps(maps, [4, 0], (h, w))
    assert out.shape == (2, h, w)
    assert out[0, 1, 2] == 1
    assert out.sum() == 1


def test_resizing_repeats_whole_cells_also_when_not_square():
    masks = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
    out = resized(masks, (4, 12))
    assert torch.equal(out[0], masks[0].repeat_interleave(2, 0).repeat_interleave(4, 1))


@pytest.mark.parametrize("size", [(17, 17), (9, 13)])
def test_resizing_to_a_size_that_does_not_divide_keeps_zeros_and_ones(size):
    masks = with_base((torch.rand(3, 5, 4) > 0.5).float())
    out = resized(masks, size)
    assert out.shape == (4, *size)
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    assert bool((out.sum(0) >= 1).all())


def test_strength_is_the_mean_of_maps_divided_by_their_peaks():
    maps = torch.tensor([[[2.0, 1.0]], [[0.0, 0.1]]])
    torch.testing.assert_close(concept_strength(maps), torch.tensor([[0.5, 0.75]]))
    assert concept_strength(torch.zeros(2, 3, 3)).isfinite().all()


def test_smoothing_keeps_constants_and_is_off_at_zero():
    flat = torch.full((2, 5, 8), 0.3)
    torch.testing.assert_close(smoothed(flat, 1.0), flat)
    maps = torch.rand(2, 5, 8)
    assert smoothed(maps, 0) is maps


def test_smoothing_is_a_symmetric_gaussian():
    point = torch.zeros(1, 9, 11)
    point[0, 4, 5] = 1
    out = smoothed(point, 0.8)[0]
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    torch.testing.assert_close(out, out.flip(0))
    torch.testing.assert_close(out, out.flip(1))
    torch.testing.assert_close(out[4, 6] / out[4, 5], torch.tensor(-1 / (2 * 0.8**2)).exp())
    torch.testing.assert_close(out[4, 6], out[5, 5])


def test_smoothing_a_map_smaller_than_its_kernel():
    assert smoothed(torch.rand(1, 2, 3), 3.0).shape == (1, 2, 3)
