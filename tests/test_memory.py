"""The memory that a piece of work needs."""

import sys

import pytest
import torch

from loraweave.evaluate.memory import peak_memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux only")
def test_growth_is_counted_and_given_back():
    with peak_memory() as outer:
        with peak_memory() as large:
            torch.ones(64 * MIB, dtype=torch.uint8)  # gone at once
        with peak_memory() as small:
            torch.ones(16 * MIB, dtype=torch.uint8)
        assert outer.mib is None
    assert large.mib == pytest.approx(64, abs=8)
    assert small.mib == pytest.approx(16, abs=8)
    assert outer.mib == pytest.approx(64, abs=8), "the largest of what was inside"
