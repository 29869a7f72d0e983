"""Concepts of one noun share out its instances."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from loraweave.layout.instances import Instances, clustered


def blobs(*spots, size=(8, 12)):
    """Strengths with a 3 x 3 blob of the given height at each (row, column)."""
    grid = torch.zeros(size)
    for row, column, height in spots:
        grid[row - 1 : row + 2, column - 1 : column + 2] = height
    return grid


def claims(strengths):
    return (strengths > 0.4).float()


def test_each_concept_gets_the_instance_that_its_words_prefer():
    left, right = blobs((3, 2, 1.0)), blobs((4, 9, 1.0))
    strengths = torch.stack([0.5 * left + right, left + 0.5 * right])
    masks = Instances(["cat", "cat"]).shared_out(0, claims(strengths), strengths)
    assert torch.equal(masks[0], claims(right))
    assert torch.equal(masks[1], claims(left))


def test_both_prefer_one_and_still_each_gets_its_own():
    strengths = torch.stack([blobs((3, 2, 1.0), (4, 9, 0.5)), blobs((3, 2, 1.0), (4, 9, 0.6))])
    masks = Instances(["cat", "cat"]).shared_out(0, claims(strengths), strengths)
    assert torch.equal(masks[0], claims(blobs((3, 2, 1.0))))
    assert torch.equal(masks[1], claims(blobs((4, 9, 1.0))))


def test_parts_of_instances_do_not_tear_them_apart():
    """One word takes the bodies, the other the heads of both."""
    bodies, heads = blobs((5, 2, 1.0), (5, 9, 0.9)), blobs((2, 2, 0.9), (2, 9, 1.0))
    strengths = torch.stack([bodies, heads])
    masks = Instances(["cat", "cat"]).shared_out(0, claims(strengths), strengths)
    assert torch.equal(masks.sum(0), claims(bodies + heads))
    assert masks[0, :, :6].sum() in (0, 18)
    assert masks[0, :, 6:].sum() in (0, 18)


def test_owners_do_not_change_when_words_do():
    instances = Instances(["cat", "cat"])
    left, right = blobs((3, 2, 1.0)), blobs((4, 9, 1.0))
    first = torch.stack([left + 0.5 * right, 0.5 * left + right])
    instances.shared_out(0, claims(first), first)
    later = torch.stack([0.5 * blobs((4, 3, 1.0)) + right, blobs((4, 3, 1.0)) + 0.5 * right])
    masks = instances.shared_out(0, claims(later), later)
    assert torch.equal(masks[0], claims(blobs((4, 3, 1.0))))
    other_picture = instances.shared_out(1, claims(later), later)
    assert torch.equal(other_picture[1], claims(blobs((4, 3, 1.0))))


def test_other_nouns_keep_their_masks():
    strengths = torch.stack([blobs((3, 2, 1.0), (4, 9, 0.9)), blobs((5, 5, 1.0))] * 2)
    instances = Instances(["cat", "dog", "cat", "bird"])
    assert instances.groups == [[0, 2]]
    masks = instances.shared_out(0, claims(strengths), strengths)
    assert torch.equal(masks[[1, 3]], claims(strengths[[1, 3]]))
    assert torch.equal(masks[0] + masks[2], claims(strengths[0]))
    assert Instances(["cat", "dog"]).groups == []


def test_nothing_claimed_and_fewer_places_than_concepts():
    nothing = torch.zeros(3, 8, 12)
    one = nothing.clone()
    one[:, 3, 3] = 1
    for strengths in (nothing, one):
        masks = Instances(["cat"] * 3).shared_out(0, claims(strengths), strengths)
        assert torch.equal(masks.sum(0), claims(strengths[0]))


def test_three_clusters_are_found():
    spots = torch.tensor([[1.0, 1], [1, 2], [8, 1], [8, 2], [4, 9], [5, 9]])
    centres = clustered(spots, torch.ones(6), 3)
    assert {tuple(c) for c in centres.tolist()} == {(1, 1.5), (8, 1.5), (4.5, 9)}


@given(st.integers(0, 2**31), st.integers(2, 4), st.sampled_from([torch.float16, torch.float64]))
def test_every_claimed_place_has_one_owner_whatever_the_order(seed, count, dtype):
    strengths = torch.rand(count, 6, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    masks = (strengths > 0.6).to(dtype)
    found = Instances(["cat"] * count).shared_out(0, masks, strengths)
    assert found.dtype == dtype
    assert torch.equal(found.sum(0), masks.any(0).to(dtype))
    turned = Instances(["cat"] * count).shared_out(0, masks.flip(0), strengths.flip(0))
    if dtype == torch.float64:
        assert torch.equal(turned.flip(0), found)
