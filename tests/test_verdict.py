"""The judge's rules, on instances made by hand, and its descriptor."""

import numpy as np
import pytest

from loraweave.evaluate.bootstrap import bootstrap
from loraweave.miniature.judge.identity import describe, similarity
from loraweave.miniature.judge.verdict import Instance, Thresholds, decide

KINDS = {"blackcat": "cat", "golddog": "dog"}
LENIENT = Thresholds({}, 0.0)


def seen(kind: str, **similarities: float) -> Instance:
    known = {"blackcat": 0.1, "tigercat": 0.1, "golddog": 0.1} | similarities
    return Instance(kind, (0, 0, 1, 1), 0.1, known)


def outcomes(instances, kinds=KINDS, thresholds=LENIENT):
    return dict(decide(instances, kinds, thresholds).outcomes)


def test_both_right():
    verdict = decide([seen("cat", blackcat=0.9), seen("dog", golddog=0.9)], KINDS, LENIENT)
    assert verdict.success
    assert verdict.right == 2
    assert "blackcat right" in verdict.sentence()


def test_missing_and_duplicated():
    assert outcomes([seen("dog", golddog=0.9)])["blackcat"] == "missing"
    cats = [seen("cat", blackcat=0.9), seen("cat", blackcat=0.8)]
    assert outcomes([*cats, seen("dog", golddog=0.9)]) == {
        "blackcat": "duplicated",
        "golddog": "right",
    }


def test_swapped_when_nearest_to_another_concept_of_the_scene():
    found = outcomes([seen("cat", golddog=0.9, blackcat=0.5), seen("dog", golddog=0.9)])
    assert found == {"blackcat": "swapped", "golddog": "right"}


def test_blended_under_its_own_floor_or_without_a_lead():
    strict = Thresholds({"blackcat": 0.8}, 0.05)
    dog = seen("dog", golddog=0.9)
    assert outcomes([seen("cat", blackcat=0.7), dog], thresholds=strict)["blackcat"] == "blended"
    close = seen("cat", blackcat=0.9, golddog=0.87)
    assert outcomes([close, dog], thresholds=strict)["blackcat"] == "blended"
    assert outcomes([close, dog])["blackcat"] == "right"


def test_a_third_concepts_looks_are_not_right():
    found = outcomes([seen("cat", blackcat=0.6, tigercat=0.9), seen("dog", golddog=0.9)])
    assert found["blackcat"] == "blended"


def test_two_of_a_class_are_assigned_together():
    kinds = {"blackcat": "cat", "tigercat": "cat"}
    instances = [seen("cat", tigercat=0.9, blackcat=0.6), seen("cat", blackcat=0.8, tigercat=0.7)]
    assert set(outcomes(instances, kinds).values()) == {"right"}


def pattern(kind: str) -> np.ndarray:
    y, x = np.mgrid[:40, :40]
    on = {"plain": x < 0, "columns": x // 4 % 2 == 0, "rows": y // 4 % 2 == 0}[kind]
    return np.where(on[..., None], [0.1, 0.1, 0.1], [0.9, 0.6, 0.2])


MASK = np.zeros((40, 40), bool)
MASK[4:36, 4:36] = True


def test_descriptor_tells_colours_places_and_patterns_apart():
    plain, columns, rows = (describe(pattern(k), MASK) for k in ("plain", "columns", "rows"))
    assert similarity(plain, plain) == pytest.approx(1)
    assert np.linalg.norm(plain) == pytest.approx(1)
    assert similarity(plain, columns) < 0.9
    assert similarity(columns, rows) < 0.97  # the same colours in the same halves
    top = np.where(np.arange(40)[:, None, None] < 20, [0.1, 0.1, 0.1], [0.9, 0.6, 0.2])
    top = np.broadcast_to(top, (40, 40, 3))
    assert similarity(describe(top, MASK), describe(top[::-1], MASK)) < 0.3


def test_descriptor_ignores_what_is_outside_and_mirroring():
    inside = pattern("columns")
    other = np.where(MASK[..., None], inside, 0.0)
    mine = describe(inside, MASK)
    # Neighbours across the edge of the mask do not count as changes of colour.
    assert similarity(mine, describe(other, MASK)) == pytest.approx(1, abs=1e-9)
    assert similarity(mine, describe(inside[:, ::-1], MASK[:, ::-1])) > 0.99


def test_bootstrap_of_constants_and_coins():
    assert bootstrap([1.0] * 9).as_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0}
    coin = bootstrap([0.0, 1.0] * 50)
    assert coin.mean == 0.5
    # 1.96 standard errors of 100 coin flips: 0.098
    assert coin.high - coin.low == pytest.approx(2 * 0.098, abs=0.015)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
