"""Looks by colours: known values, and affinities of known histograms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loraweave.miniature.judge.colours import cielab, colours_of, palette, signature


def test_cielab_of_known_colours():
    """Values of the sRGB primaries and of white (D65), as in any table of CIELAB."""
    rgb = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], float)
    wanted = [
        [100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
    ]  # fmt: skip
    assert np.allclose(cielab(rgb), wanted, atol=0.1)


def test_only_colours_under_the_mask_count():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = (255, 0, 0)
    mask = np.zeros((4, 4), bool)
    mask[:, :2] = True
    found = colours_of(Image.fromarray(pixels), mask)
    assert found.shape == (8, 3)
    assert np.allclose(found, cielab(np.array([[255.0, 0, 0]])), atol=1e-6)


def test_affinity_of_shares():
    """Bhattacharyya: the sum of the roots of products of shares."""
    centres = np.array([[50.0, -60, 0], [50, 0, 0], [50, 60, 0]])
    one = signature(np.repeat(centres, [3, 1, 0], axis=0), centres)
    other = signature(np.repeat(centres, [1, 1, 2], axis=0), centres)
    assert one @ other == pytest.approx((3 / 4 * 1 / 4) ** 0.5 + (1 / 4 * 1 / 4) ** 0.5, abs=1e-3)
    assert one @ one == pytest.approx(1)
    middle = signature(np.array([[50.0, 30, 0]]), centres)
    assert middle[1] == pytest.approx(middle[2])


@given(st.integers(0, 1000), st.integers(2, 6))
def test_signatures_are_unit_vectors(seed, count):
    rng = np.random.default_rng(seed)
    colours = rng.normal((50, 0, 0), 30, (40, 3))
    centres = palette(colours, count)
    assert centres.shape == (count, 3)
    assert np.linalg.norm(signature(colours, centres)) == pytest.approx(1)
