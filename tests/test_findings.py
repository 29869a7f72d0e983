"""What becomes of concepts, and whether they are in their boxes, by any segmenter and encoder."""

import numpy as np
import pytest
import torch
from PIL import Image

from loraweave.evaluate.findings import boxes_of, look
from loraweave.evaluate.scores import Scorer
from loraweave.evaluate.similarity import instances_by_noun
from loraweave.scene import scene_from_dict

NOUNS = {"rex": "dog", "tom": "cat"}
RED, BLUE = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 0, 1.0]])


class Colours:
    """The mean colour of what is not white, of unit length."""

    def images(self, images):
        pixels = [np.asarray(image, float).reshape(-1, 3) for image in images]
        means = np.array([own[own.min(1) < 255].mean(0) for own in pixels])
        return torch.nn.functional.normalize(torch.tensor(means, dtype=torch.float32))


class Halves:
    """A cat in the left half and a dog in the right one."""

    def find(self, image, noun):
        mask = np.zeros((20, 20), bool)
        mask[:, slice(0, 10) if noun == "cat" else slice(10, 20)] = True
        return [mask]


@pytest.fixture
def scorer():
    sides = torch.tensor([[0, 0.1, 0], [0, -0.1, 0]])
    twice = {name: torch.nn.functional.normalize(own + sides)
             for name, own in (("rex", RED), ("tom", BLUE))}  # fmt: skip
    return Scorer(dino=Colours(), known={"instance_dino": twice})


def found(scorer, left, right, boxes):
    image = Image.new("RGB", (20, 20), left)
    image.paste(right, (10, 0, 20, 20))
    return seen_by(scorer, instances_by_noun(image, NOUNS.values(), Halves()), boxes)


def seen_by(scorer, cut, boxes):
    return look(cut, scorer.of_instances(cut), NOUNS, scorer.known, boxes)


def test_right_and_in_place_by_hand(scorer):
    """The dog's instance is the right half; of two boxes that counts which suits best."""
    boxes = {"rex": [(0, 0, 0.5, 1), (0.5, 0, 1, 0.5)], "tom": [(0, 0, 1, 1)]}
    seen = found(scorer, "blue", "red", boxes)
    assert seen.outcomes == {"rex": "right", "tom": "right"}
    assert seen.places == {"rex": 0.5, "tom": 0.5}
    assert seen.contained == {"rex": 0.5, "tom": 1}
    assert set(seen.as_dict()) == {"outcomes", "iou", "containment"}


def test_swapped_colours_are_seen(scorer):
    seen = found(scorer, "red", "blue", {})
    assert seen.as_dict() == {"outcomes": {"rex": "swapped", "tom": "swapped"}}


def test_that_blended_cannot_be_told_is_said():
    one = Scorer(dino=Colours(), known={"instance_dino": {"rex": RED, "tom": BLUE}})
    assert found(one, "blue", "red", {}).as_dict()["not_told"] == ["blended"]


def test_nobody_looks_without_references_of_instances(scorer):
    assert seen_by(Scorer(dino=Colours()), {}, {}) is None
    seen = seen_by(scorer, {}, {"rex": [(0, 0, 1, 1)]})
    assert seen.outcomes == {"rex": "missing", "tom": "missing"}
    assert seen.places == seen.contained == {"rex": 0}


def test_boxes_of_a_scene_in_fractions():
    regions = {"rex": [{"box": [0, 0, 64, 64]}, {"box": [0.5, 0, 1, 1]}]}
    scene = scene_from_dict(
        {"prompt": "a [sks dog](rex) and a [zwx cat](tom)", "regions": regions,
         "loras": {"rex": "rex.safetensors", "tom": "tom.safetensors"}}
    )  # fmt: skip
    assert boxes_of(scene, 128, 64) == {"rex": [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]}
