"""What comes on top of concepts, in drawings of which the truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from loraweave import SceneError
from loraweave.bench import read_suite
from loraweave.loading import load
from loraweave.miniature.checks import judge as checks
from loraweave.miniature.checks.judge import injured_scenes, kappa
from loraweave.miniature.codec import through
from loraweave.miniature.concepts import KNOWN, draw_subjects
from loraweave.miniature.extras import EXTRAS
from loraweave.miniature.judge import load_judge
from loraweave.miniature.judge.extras import place_in, stands, wears
from loraweave.miniature.scene_judge import SceneJudge
from loraweave.miniature.scenes import PAIRS, WORDINGS, ConceptScene, SceneRule, scenes
from loraweave.miniature.scoring import REFERENCES, references_version
from loraweave.miniature.segmenter import at_places
from loraweave.miniature.shipped import WEIGHTS, lora_names, native_side
from loraweave.miniature.world import render


@pytest.fixture(scope="module")
def vae():
    return load("miniature", device="cpu").vae


@pytest.fixture(scope="module")
def judge():
    return SceneJudge()


def drawing(scene: ConceptScene, **dressed: str):
    """The scene, some of its concepts with an extra on."""
    subjects = [
        replace(KNOWN[n].subject, accessory=EXTRAS[dressed[n]].drawn) if n in dressed
        else KNOWN[n].subject
        for n in scene.names
    ]  # fmt: skip
    return draw_subjects(subjects, scene.background, scene.seed, native_side())


def test_places_are_told_apart(vae):
    finder = load_judge()
    for scene in read_suite("scene").drawn("quick", "tuning")[::3]:
        drawn = drawing(scene).drawing
        for place in (scene.background, EXTRAS[scene.place].drawn):
            (image,) = through(vae, [render(replace(drawn, background=place), native_side()).image])
            assert place_in(image, finder.classes([image])[0] > 0) == place


def test_who_wears_it(vae):
    """Nobody has on what is not there; most of what is there is seen."""
    seen = []
    for scene in read_suite("accessory").drawn("quick", "tuning")[::2]:
        extra, _ = scene.worn
        for dressed in scene.names:
            drawn = drawing(scene, **{dressed: extra})
            (image,) = through(vae, [drawn.image])
            for name, mask in zip(scene.names, drawn.masks):
                found = wears(load_judge(), image, at_places(mask), name, extra)
                if name == dressed:
                    seen.append(found)
                else:
                    assert not found
    assert np.mean(seen) > 0.7


@pytest.mark.parametrize(
    ("dressed", "outcome"),
    [((0,), "right"), ((1,), "swapped"), ((0, 1), "duplicated"), ((), "missing")],
)
def test_the_outcome_of_what_is_worn(judge, dressed, outcome):
    scene = ConceptScene(("inkcat", "tinrobot"), "meadow", 3, worn=("rainbowscarf", "inkcat"))
    image = drawing(scene, **{scene.names[k]: "rainbowscarf" for k in dressed}).image
    found = judge.examine(image, scene, {})
    assert found.outcomes["rainbowscarf"] == outcome


def test_the_outcome_of_a_relation_a_place_and_a_style(judge):
    scene = ConceptScene(("inkcat", "tinrobot"), "meadow", 3, relation="left of")
    image = drawing(scene).image
    assert judge.examine(image, scene, {}).outcomes["relation"] == "right"
    turned = replace(scene, relation="right of")
    assert judge.examine(image, turned, {}).outcomes["relation"] == "swapped"
    alone = drawing(scene.alone("inkcat")).image
    assert judge.examine(alone, scene, {}).outcomes["relation"] == "missing"
    there = replace(scene, relation=None, place="candyland")
    assert judge.examine(image, there, {}).outcomes["candyland"] == "missing"
    styled = replace(scene, relation=None, style="sepia")
    assert judge.examine(image, styled, {}).outcomes["sepia"] == "missing"


def test_where_boxes_stand():
    left, right, high = (0, 0.5, 0.4, 1), (0.6, 0.5, 1, 1), (0.1, 0, 0.4, 0.4)
    assert stands(left, right, "left of")
    assert not stands(left, right, "right of")
    assert stands(high, left, "above")
    with pytest.raises(KeyError):
        stands(left, right, "inside")


def test_scores_of_a_drawing(judge):
    """Right drawings score higher than those of others; who is not there has no instance."""
    scene = ConceptScene(("inkcat", "tinrobot"), "meadow", 3)
    right = judge.scores(drawing(scene).image, scene)
    other = replace(scene, names=("tigercat", "boltrobot"))
    wrong = judge.scores(drawing(other).image, scene)
    for kind in ("instance_clip_i", "instance_dino"):
        assert set(right[kind]) == set(scene.names)
        assert min(right[kind].values()) > min(wrong[kind].values())
    alone = judge.scores(drawing(scene.alone("inkcat")).image, scene)
    assert set(alone["instance_dino"]) == {"inkcat"}
    assert set(alone["dino"]) == set(scene.names)
    assert right["clip_t"] > alone["clip_t"], "half of the prompt is not there"


def test_failures_of_drawings_are_named_rightly(monkeypatch):
    """100 drawn scenes with every failure and none, 200 concepts: right or not, and which."""
    monkeypatch.setattr(checks, "through", lambda vae, images: list(images))
    truth, said = [], []
    for injured in injured_scenes(None, "report", 100):
        verdict = load_judge().examine(injured.image, injured.names)
        truth += injured.truth
        said += [verdict.outcomes[name] for name in injured.names]
    right = [[str(o == "right") for o in own] for own in (truth, said)]
    assert kappa(*right) >= 0.95
    assert kappa(truth, said) >= 0.95


def test_words_of_what_comes_on_top():
    scene = ConceptScene(("blackcat", "golddog"), "meadow", 0)
    cat, dog = "[sks cat](blackcat)", "[zwx dog](golddog)"
    for change, marked, plain in (
        ({"relation": "above"}, f"a {cat} above a {dog} in the meadow",
         "a cat above a dog in the meadow"),
        ({"place": "candyland"}, f"a {cat} and a {dog} in the [jqv meadow](candyland)",
         "a cat and a dog in the meadow"),
        ({"worn": ("wizardhat", "golddog")},
         f"a {cat} and a {dog} with a [lvq hat](wizardhat) in the meadow",
         "a cat and a dog with a hat in the meadow"),
        ({"style": "neon"}, f"a {cat} and a {dog} in the meadow <lora:neon:1>",
         "a cat and a dog in the meadow"),
        ({"wording": 2}, f"in the meadow, a {cat} and a {dog}", "in the meadow, a cat and a dog"),
        ({"wording": 3}, f"{cat}, {dog}, in the meadow", "cat, dog, in the meadow"),
        ({"wording": 4}, f"a {cat} with a {dog} in the meadow", "a cat with a dog in the meadow"),
    ):  # fmt: skip
        own = replace(scene, **change)
        assert (own.prompt, own.plain_prompt) == (marked, plain)
        assert set(own.loras) == {"blackcat", "golddog", *own.extras}
    dressed = replace(scene, worn=("wizardhat", "golddog"))
    assert dressed.alone("blackcat").prompt == f"a {cat} in the meadow"
    assert dressed.alone("golddog").prompt == f"a {dog} with a [lvq hat](wizardhat) in the meadow"
    assert dressed.alone("blackcat").worn is None, "nobody asks it for a hat"


def test_wordings_share_scene_and_noise():
    made = read_suite("phrasing").drawn("quick", "report")
    assert len(made) == 3 * len(WORDINGS)
    for start in range(0, len(made), len(WORDINGS)):
        own = made[start : start + len(WORDINGS)]
        assert len({replace(scene, wording=0) for scene in own}) == 1
        assert [scene.wording for scene in own] == list(range(len(WORDINGS)))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"concepts": 3, "classes": "same"}, "classes: same needs 2 concepts"),
        ({"concepts": 3, "adds": "relation"}, "relations and wordings are of 2"),
        ({"concepts": 2, "adds": "style", "wordings": True}, "not both"),
        ({"concepts": 2, "adds": "magic"}, "adds"),
        ({"concepts": 9}, "concepts"),
        ({"concepts": 2, "adds": "style", "placed": True}, "cannot be judged with adds: style"),
        ({"concepts": 5, "adds": "attribute", "placed": True}, "5 subjects at most"),
        ({"concepts": 2, "adds": "attribute"}, "needs placed"),
    ],
)
def test_rules_that_cannot_be(rule, message):
    with pytest.raises(SceneError, match=message):
        SceneRule(name="x", **rule)


def test_a_pool_that_is_too_small():
    with pytest.raises(SceneError, match="more than its pool"):
        scenes(SceneRule(name="x", concepts=2, classes="same", pool="held_out"), "report", 1)


def test_a_coloured_subject_is_of_a_class_of_its_own():
    rule = SceneRule(name="x", concepts=2, adds="attribute", placed=True)
    for scene in scenes(rule, "report", 60):
        assert scene.attribute[0] not in {KNOWN[name].kind for name in scene.names}


def test_the_suite_of_pairs_is_the_one_of_the_checks():
    suite = read_suite("pairs")
    assert SceneRule(**{k: getattr(suite, k) for k in SceneRule.model_fields}) == PAIRS


def test_the_references_that_ship_are_of_the_weights_that_ship():
    with safe_open(REFERENCES, "pt") as file:
        metadata, names = file.metadata(), {key.partition(".")[2] for key in load_file(REFERENCES)}
    assert names == set(KNOWN)
    shipped = [name for name in lora_names() if name in KNOWN]
    assert metadata["version"] == references_version(WEIGHTS, shipped)
