"""How the miniature is measured: formulas with known values, and drawings with known truth."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from loraweave.bench.suites import read_suite, suite_names
from loraweave.evaluate.verdicts import OUTCOMES
from loraweave.miniature.check import samples_seen
from loraweave.miniature.checks.base import all_found, area_under_roc
from loraweave.miniature.checks.judge import eye_agreement, injured_scene, kappa
from loraweave.miniature.codec import images_of, pixels_of
from loraweave.miniature.concepts import CONCEPTS, HELD_OUT, KNOWN
from loraweave.miniature.judge import load_judge
from loraweave.miniature.judge.verdict import Instance
from loraweave.miniature.prompts import marked_prompt, own_prompt, plain_prompt
from loraweave.miniature.recipe.vae import new_vae
from loraweave.miniature.scenes import PAIRS, WORDINGS, scenes
from loraweave.miniature.shipped import native_side
from loraweave.prompt import parse_prompt


def test_area_under_roc_is_mann_whitneys_u():
    scores = np.array([0.1, 0.4, 0.35, 0.8, 0.4])
    positive = np.array([False, False, True, True, True])
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert area_under_roc(scores, positive) == pytest.approx(u / 6)
    assert area_under_roc(np.arange(9.0), np.arange(9) > 4) == 1
    assert area_under_roc(np.ones(6), np.arange(6) > 3) == 0.5


def test_kappa_of_a_table_worked_by_hand():
    # 45 and 30 on the diagonal, 15 and 10 off it: agreement .75, chance .51.
    truth = ["a"] * 60 + ["b"] * 40
    said = ["a"] * 45 + ["b"] * 15 + ["a"] * 10 + ["b"] * 30
    assert kappa(truth, said) == pytest.approx((0.75 - 0.51) / (1 - 0.51), abs=1e-4)
    assert kappa(truth, truth) == 1
    assert kappa(["a", "b"], ["b", "a"]) == -1
    assert kappa(["a"], ["a"]) == 1


def test_all_found_counts_the_named_classes_only():
    seen = [Instance(kind, (0, 0, 1, 1), 0.1, {}) for kind in ("cat", "cat", "dog")]
    assert all_found(seen, ["cat", "cat"])
    assert all_found(seen, ["dog"])
    assert not all_found(seen, ["cat", "dog"])
    assert not all_found(seen, ["bird"])


@pytest.mark.parametrize("name", suite_names())
def test_scenes_are_split_once(name):
    suite = read_suite(name)
    tuning, report = scenes(suite, "tuning", 40), scenes(suite, "report", 40)
    assert report == scenes(suite, "report", 40)
    assert report[: 10 * len(WORDINGS)][:10] == scenes(suite, "report", 10)[:10]
    assert not {s.seed for s in tuning} & {s.seed for s in report}
    for scene in report:
        kinds = {KNOWN[name].kind for name in scene.names}
        assert len(set(scene.names)) == len(scene.names) == suite.concepts
        assert len(kinds) == (1 if name == "same_class" else suite.concepts)
        assert set(scene.names) <= set(HELD_OUT if name == "heldout" else CONCEPTS)
        parse_prompt(scene.prompt)


def test_a_scene_with_several_noises():
    twice = scenes(PAIRS, "report", 5, seeds=2)
    assert len(twice) == 10
    assert len({scene.seed for scene in twice}) == 10
    for first, second in zip(twice[::2], twice[1::2]):
        assert (first.names, first.background) == (second.names, second.background)


def test_prompts_of_a_pair():
    names = ["blackcat", "golddog"]
    assert marked_prompt(names, "beach") == (
        "a [sks cat](blackcat) and a [zwx dog](golddog) at the beach"
    )
    assert plain_prompt([*names, "tealcup"], None) == "a cat, a dog and a cup"
    assert own_prompt("golddog", "snow") == "a zwx dog in the snow"


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return new_vae(128).eval()


@pytest.mark.parametrize("failure", OUTCOMES)
def test_injured_scenes_hold_what_their_truth_says(vae, failure):
    for scene in scenes(PAIRS, "tuning", 3):
        injured = injured_scene(scene, failure, vae)
        wanted = {"right": ("right", "right"), "swapped": ("swapped", "swapped")}
        if failure in wanted:
            assert injured.truth == wanted[failure]
        else:
            assert sorted(injured.truth) == sorted([failure, "right"])
        assert injured.names == scene.names
        assert injured.image.size == (native_side(),) * 2
        again = injured_scene(scene, failure, vae)
        assert np.array_equal(again.image, injured.image)


@given(st.integers(0, 2**31 - 1))
def test_pictures_survive_as_pixels(seed):
    values = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    (back,) = images_of(pixels_of([Image.fromarray(values)]))
    assert np.array_equal(np.asarray(back), values)
    assert images_of(torch.full((1, 3, 2, 2), 7.0))[0].getpixel((0, 0)) == (255, 255, 255)


def test_samples_seen_adds_up_the_parts(tmp_path):
    lines = [
        {"stage": "base", "part": "part0", "step": 100},
        {"stage": "base", "part": "part0", "step": 400},
        {"stage": "judge", "step": 9000},
        {"stage": "base", "part": "part1", "step": 200},
    ]
    (tmp_path / "log.json").write_text(json.dumps(lines))
    assert samples_seen(tmp_path) == 600 * 32


def test_every_concept_is_known_once():
    assert set(KNOWN) == set(CONCEPTS) | set(HELD_OUT)
    assert len({c.trigger for c in KNOWN.values()}) == len(KNOWN)


def test_agreement_with_viewers_is_counted_with_and_without_doubtful_cases(tmp_path):
    Image.new("RGB", (256, 128), (120, 180, 240)).save(tmp_path / "pictures.png")
    labels = {"side": 128, "viewers": 3, "scenes": [["blackcat", "golddog"], ["tigercat"]],
              "votes": [[0, 2], [1]]}  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    found = eye_agreement(load_judge(), tmp_path)  # which finds nobody there
    assert found["judge_eye_agreement"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["judge_eye_agreement_unanimous"] == 1
