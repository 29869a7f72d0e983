"""The judge's rules, on instances made by hand."""

import pytest

from loraweave.evaluate.bootstrap import bootstrap
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


def test_blended_when_it_is_neither():
    strict = Thresholds({"golddog": 0.8}, 0.05)
    dog = seen("dog", golddog=0.9)
    between = [seen("cat", golddog=0.6, blackcat=0.5), dog]
    assert outcomes(between, thresholds=strict)["blackcat"] == "blended"
    coat = [seen("cat", golddog=0.85, blackcat=0.5), dog]
    assert outcomes(coat, thresholds=strict)["blackcat"] == "swapped"


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


def test_bootstrap_of_constants_and_coins():
    assert bootstrap([1.0] * 9).as_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0}
    coin = bootstrap([0.0, 1.0] * 50)
    assert coin.mean == 0.5
    # 1.96 standard errors of 100 coin flips: 0.098
    assert coin.high - coin.low == pytest.approx(2 * 0.098, abs=0.015)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
