"""CLoRA's loss: InfoNCE over attention maps."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraweave.methods.clora import info_nce, normalized

TAU = 0.5


def by_the_formula(embeddings: torch.Tensor, labels: list[int], tau: float) -> float:
    """Equation 2 in plain loops over Python floats."""
    rows = [[float(x) for x in row] for row in embeddings]

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b)) / lengths

    terms = []
    for a, anchor in enumerate(rows):
        for p, positive in enumerate(rows):
            if a == p or labels[a] != labels[p]:
                continue
            top = math.exp(cosine(anchor, positive) / tau)
            rest = sum(
                math.exp(cosine(anchor, other) / tau)
                for other, label in zip(rows, labels)
                if label != labels[a]
            )
            terms.append(-math.log(top / (top + rest)))
    return sum(terms) / len(terms)


def labels_of(groups: int, members: int) -> list[int]:
    return [group for group in range(groups) for _ in range(members)]


@pytest.mark.parametrize(("n", "expected"), [(2, 1.609), (3, 2.398), (4, 2.944), (8, 4.263)])
def test_value_when_all_maps_are_equal(n, expected):
    m = n + 2
    maps = torch.rand(1, 64, dtype=torch.float64).expand(n * m, -1)
    value = info_nce(maps, labels_of(n, m), TAU).item()
    assert value == pytest.approx(math.log(1 + (n - 1) * m), abs=1e-12)
    assert value == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("n", "expected"), [(2, 0.433), (3, 0.856), (4, 1.234), (8, 2.349)])
def test_value_when_groups_agree_within_and_share_nothing(n, expected):
    m = n + 2
    maps = torch.eye(n, 64, dtype=torch.float64).repeat_interleave(m, 0)
    value = info_nce(maps, labels_of(n, m), TAU).item()
    assert value == pytest.approx(math.log(1 + (n - 1) * m * math.exp(-2)), abs=1e-12)
    assert value == pytest.approx(expected, abs=6e-4)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4).filter(lambda s: max(s) > 1),
    tau=st.floats(0.05, 2.0),
    seed=st.integers(0, 2**20),
)
def test_agrees_with_plain_loops_for_groups_of_any_sizes(sizes, tau, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand((sum(sizes), 9), generator=generator, dtype=torch.float64)
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    value = info_nce(maps, labels, tau).item()
    assert value == pytest.approx(by_the_formula(maps, labels, tau), rel=1e-10, abs=1e-12)


def test_order_of_the_embeddings_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand((10, 16), generator=generator, dtype=torch.float64)
    labels = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    shuffled = torch.randperm(10, generator=generator)
    assert info_nce(maps[shuffled], [labels[k] for k in shuffled], TAU).item() == pytest.approx(
        info_nce(maps, labels, TAU).item(), abs=1e-12
    )


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]], ids=["no negatives", "no positives"])
def test_nothing_to_compare_is_zero_and_still_differentiable(labels):
    maps = torch.rand(3, 16, requires_grad=True)
    value = info_nce(maps, labels, TAU)
    assert value.item() == 0
    assert torch.autograd.grad(value, maps)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_flat_maps_give_finite_values_and_no_gradient_of_their_own(level, dtype):
    maps = torch.rand((8, 16), generator=torch.Generator().manual_seed(2), dtype=dtype)
    maps[3] = level
    maps.requires_grad_()
    value = info_nce(normalized(maps), labels_of(2, 4), TAU)
    gradient = torch.autograd.grad(value, maps)[0]
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[3].abs().max() == 0
    assert 0 < gradient.abs().max() < 10


def test_all_maps_flat():
    maps = torch.full((8, 16), 0.01, requires_grad=True)
    value = info_nce(normalized(maps), labels_of(2, 4), TAU)
    assert value.isfinite()
    assert torch.autograd.grad(value, maps)[0].abs().max() == 0


def test_normalized_maps_span_zero_to_one():
    maps = torch.rand(5, 16) * torch.tensor([1e-6, 1e-3, 1, 10, 100])[:, None]
    scaled = normalized(maps)
    assert torch.equal(scaled.amin(1), torch.zeros(5))
    assert torch.equal(scaled.amax(1), torch.ones(5))
    assert torch.equal(scaled.argsort(1), maps.argsort(1))


def test_a_small_step_against_the_gradient_lowers_the_loss():
    maps = torch.rand((8, 36), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels, losses = labels_of(2, 4), []
    for _ in range(20):
        maps.requires_grad_()
        value = info_nce(normalized(maps), labels, TAU)
        losses.append(value.item())
        maps = (maps - 0.05 * torch.autograd.grad(value, maps)[0]).detach()
    assert all(after < before for before, after in pairwise(losses))


def test_gradient_is_that_of_finite_differences():
    maps = torch.rand((6, 7), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = [0, 0, 0, 1, 1, 1]
    assert torch.autograd.gradcheck(
        lambda m: info_nce(normalized(m), labels, TAU), (maps.requires_grad_(),)
    )
