"""The judge's rules, on instances made by hand."""

from dataclasses import astuple

import numpy as np
import pytest

from loraweave.bench.rates import estimate
from loraweave.detect.components import components, joined_components, parted
from loraweave.evaluate.bootstrap import DIFFERENCES, LEAST_SCENES, SHARES, bootstrap
from loraweave.miniature.judge.verdict import Instance, Thresholds, decide

KINDS = {"blackcat": "cat", "golddog": "dog"}
LENIENT = Thresholds({}, 0.0)


def half_alike(one: str, other: str, kind: str) -> float:
    return 0.5


def seen(kind: str, **similarities: float) -> Instance:
    known = {"blackcat": 0.1, "tigercat": 0.1, "golddog": 0.1} | similarities
    return Instance(kind, (0, 0, 1, 1), 0.1, known)


def outcomes(instances, kinds=KINDS, thresholds=LENIENT):
    return dict(decide(instances, kinds, thresholds, half_alike).outcomes)


def test_both_right():
    both = [seen("cat", blackcat=0.9), seen("dog", golddog=0.9)]
    verdict = decide(both, KINDS, LENIENT, half_alike)
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


@pytest.mark.parametrize(
    ("own", "other", "outcome"),
    [
        (0.9, 0.6, "right"),  # a lead of (.9 - .6) / (1 - .5) = .6
        (0.9, 0.7, "blended"),  # .4
        (0.7, 0.9, "blended"),  # -.4
        (0.6, 0.9, "swapped"),  # -.6
    ],
)
def test_a_lead_counts_in_units_of_the_distance_of_both(own, other, outcome):
    found = [seen("cat", blackcat=own, golddog=other), seen("dog", golddog=0.9)]
    assert outcomes(found, thresholds=Thresholds({}, 0.5))["blackcat"] == outcome


def test_likeness_says_the_same_again():
    """Of a picture only its likeness is kept; outcomes by any thresholds follow from it."""
    found = [seen("cat", blackcat=0.7, golddog=0.5, tigercat=0.75), seen("dog", golddog=0.9)]
    verdict = decide(found, KINDS, LENIENT, half_alike)
    (own, lead, behind) = astuple(verdict.likeness["blackcat"])
    assert (own, lead, behind) == pytest.approx((0.7, 0.4, 0.05))
    for lead in (0.0, 0.3, 0.5):
        other = Thresholds({}, lead)
        again = {name: other.outcome(name, own) for name, own in verdict.likeness.items()}
        assert again == outcomes(found, thresholds=other)


def test_blended_under_its_own_floor():
    strict = Thresholds({"blackcat": 0.8}, 0.05)
    found = [seen("cat", blackcat=0.7), seen("dog", golddog=0.9)]
    assert outcomes(found, thresholds=strict)["blackcat"] == "blended"
    assert outcomes(found)["blackcat"] == "right"


def test_concepts_that_look_the_same_leave_the_lead_finite():
    instances = [seen("cat", blackcat=0.9, golddog=0.89), seen("dog", golddog=0.9)]
    same = decide(instances, KINDS, Thresholds({}, 0.5), lambda *_: 1.0)
    assert same.outcomes["blackcat"] == "blended"


def test_a_third_concepts_looks_are_not_right():
    found = outcomes([seen("cat", blackcat=0.6, tigercat=0.9), seen("dog", golddog=0.9)])
    assert found["blackcat"] == "blended"
    close = outcomes([seen("cat", blackcat=0.6, tigercat=0.65), seen("dog", golddog=0.9)])
    assert close["blackcat"] == "right"


def test_two_of_a_class_are_assigned_together():
    kinds = {"blackcat": "cat", "tigercat": "cat"}
    instances = [seen("cat", tigercat=0.9, blackcat=0.6), seen("cat", blackcat=0.8, tigercat=0.7)]
    assert set(outcomes(instances, kinds).values()) == {"right"}


def test_bootstrap_of_constants_and_coins():
    assert bootstrap([1.0] * 9).as_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0}
    # Clopper and Pearson's upper end of 0 of 40 is .0881
    none, every, same = (bootstrap([v] * 40, bounds=b).as_dict() for v, b in (
        (0.0, SHARES), (1.0, SHARES), (0.0, DIFFERENCES)
    ))  # fmt: skip
    assert none == {"mean": 0, "low": 0, "high": 0.0881}
    assert every == {"mean": 1, "low": 0.9119, "high": 1}
    assert same == {"mean": 0, "low": -0.0881, "high": 0.0881}, "no difference seen, not none"
    half = bootstrap([0.5] * 40, bounds=SHARES).as_dict()
    assert half == {"mean": 0.5, "low": 0.456, "high": 0.544}
    assert bootstrap([0.0, 1.0] * 9, bounds=SHARES) == bootstrap([0.0, 1.0] * 9)
    coin = bootstrap([0.0, 1.0] * 50)
    assert coin.mean == 0.5
    # 1.96 standard errors of 100 coin flips: 0.098
    assert coin.high - coin.low == pytest.approx(2 * 0.098, abs=0.015)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_a_small_piece_close_to_a_larger_one_is_part_of_it():
    where = np.zeros((32, 32), bool)
    where[4:12, 4:12] = True  # a body
    where[4:8, 14:18] = True  # its head, behind a gap of two cells
    where[20:28, 4:12] = True  # another one
    where[20:28, 14:20] = True  # a neighbour of nearly its size
    where[14:17, 26:29] = True  # a scrap far from all
    sizes = [part.sum() for part in joined_components(where, 10)]
    assert sorted(sizes) == [48, 64, 64 + 16]
    assert sum(part.sum() for part in joined_components(where, 1)) == where.sum()
    assert len(components(where, 1)) == 5


def test_two_that_touch_are_two_if_two_are_wanted():
    where = np.zeros((40, 60), dtype=bool)
    where[10:25, 5:20] = True
    where[16:18, 20:23] = True  # they touch here
    where[12:27, 23:40] = True
    (whole,) = components(where, 1)
    left, right = parted([whole], 2, least=50)
    assert not (left & right).any()
    assert np.array_equal(left | right, where)
    assert left[10:25, 5:20].all()
    assert right[12:27, 23:40].all()
    for wanted, least in ((1, 50), (2, 250)):  # one is wanted; a half is too small
        (same,) = parted([whole], wanted, least=least)
        assert np.array_equal(same, where)
    assert len(parted([whole], 3, least=50)) == 2


def test_what_has_no_waist_stays_whole():
    where = np.zeros((40, 60), dtype=bool)
    where[10:25, 5:20] = True
    where[16:18, 20:30] = True  # a tail is no half
    assert len(parted([where], 2, least=5)) == 1
    assert parted([], 2, least=5) == []


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say():
    """Rates of 40 independent pictures of two concepts: 400 simulated runs."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        truth = rng.uniform(0.2, 0.8)
        values = rng.binomial(2, truth, 40) / 2
        found = bootstrap(values, resamples=1000, seed=int(rng.integers(2**31)))
        inside.append(found.low <= truth <= found.high)
    # 95 % but for the few scenes; 3 standard errors of 400 runs are .033
    assert 0.90 <= np.mean(inside) <= 0.985


def test_intervals_hold_for_scenes_whose_noises_are_alike():
    """20 scenes with two noises each, as in the full suites; some scenes are hard, some easy."""
    rng = np.random.default_rng(0)
    inside: dict[str, list[bool]] = {"scenes": [], "noises": []}
    for _ in range(300):
        hard = rng.beta(0.2, 0.2, 20)  # share of noises in which a scene is right: mean .5
        rows = [
            {"job": {"scene": n, "seed": 2 * n + k}, "right": float(rng.random() < share)}
            for n, share in enumerate(hard) for k in range(2)
        ]  # fmt: skip
        low, high = estimate("right", rows, lambda row: row["right"], share=True)["right_ci"]
        inside["scenes"].append(low <= 0.5 <= high)
        apart = bootstrap([row["right"] for row in rows], resamples=1000, bounds=SHARES)
        inside["noises"].append(apart.low <= 0.5 <= apart.high)
    assert 0.90 <= np.mean(inside["scenes"]) <= 0.985
    assert np.mean(inside["noises"]) < np.mean(inside["scenes"]) - 0.02, "too narrow"


def test_the_mean_is_over_pictures_however_many_a_scene_has():
    rows = [{"job": {"scene": n, "seed": n}, "right": 0.0} for n in range(LEAST_SCENES)]
    rows += [{"job": {"scene": 0, "seed": 100 + n}, "right": 1.0} for n in range(10)]
    told = estimate("right", rows, lambda row: row["right"], share=True)
    assert told["right"] == 0.5
    assert 0 <= told["right_ci"][0] < 0.2
    assert 0.7 < told["right_ci"][1] <= 1
    thirds = [1 - 2 / 3, 2 / 3 - 1 / 3, 1 / 3] * 7
    assert bootstrap(thirds, bounds=DIFFERENCES).high > 0.34, "equal but for rounding"


def test_paired_intervals_cover_the_difference():
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(400):
        scene = rng.uniform(0, 1, 40)  # how hard it is, for both methods alike
        one, other = (rng.random(40) < np.clip(scene + gain, 0, 1) for gain in (0.15, 0.0))
        gain = np.mean(np.clip(np.linspace(0, 1, 10_001) + 0.15, 0, 1)) - 0.5
        found = bootstrap(one.astype(float) - other, resamples=1000, seed=0)
        inside.append(found.low <= gain <= found.high)
    assert 0.90 <= np.mean(inside) <= 0.985
