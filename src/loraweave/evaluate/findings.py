"""What becomes of each concept of a picture, and whether it is in its box, for any base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..detect import Segmenter
from ..layout.boxes import Box, containment, intersection_over_union
from ..region import several
from ..scene import Scene
from .scores import Features, Scorer
from .similarity import Instance, instances_by_noun, shared_out
from .verdicts import verdicts


@dataclass(frozen=True)
class Found:
    """What there is of a scene's concepts.

    Attributes:
        outcomes: right, missing, duplicated, swapped or blended, by concept; see `verdicts`.
        places: by concept with a box, the intersection over union of its instance's box with it; 0
            if there is no instance. Of several boxes that which suits best.
        contained: likewise the share of the instance's box that lies in the given one.
        blended: whether `blended` can be told: a concept has to have two references at least.
    """

    outcomes: dict[str, str]
    places: dict[str, float]
    contained: dict[str, float]
    blended: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain data; without boxes only outcomes, and that `blended` is not told if so."""
        told: dict[str, Any] = {"outcomes": self.outcomes}
        if not self.blended:
            told["not_told"] = ["blended"]
        return told | ({"iou": self.places, "containment": self.contained} if self.places else {})


def boxes_of(scene: Scene, width: int, height: int) -> dict[str, list[Box]]:
    """The boxes of each concept that has some, in a picture of this size (pixels)."""
    named = {concept.name for concept in scene.concepts}
    boxes = {
        name: [r.fractions(width, height) for r in several(own) if r.box is not None]
        for name, own in scene.regions.items() if name in named
    }  # fmt: skip
    return {name: own for name, own in boxes.items() if own}


def measured(
    scorer: Scorer, image: Image.Image, text: str, nouns: Mapping[str, str],
    segmenter: Segmenter | None, boxes: Mapping[str, Sequence[Box]],
) -> tuple[dict[str, Any], Found | None]:  # fmt: skip
    """The scores of one picture, and what there is in it; see `Scorer.scores` and `look`.

    Args:
        scorer: with or without references.
        image: the picture.
        text: its prompt with plain nouns.
        nouns: of its concepts, by name.
        segmenter: that finds instances; without it nobody looks for them.
        boxes: see `boxes_of`.

    Raises:
        SceneError: a concept without references, or a noun that the segmenter cannot look for.
    """
    cut, instances = {}, {}
    if segmenter is not None:
        cut = instances_by_noun(image, nouns.values(), segmenter)
        instances = scorer.of_instances(cut)
    scores = scorer.scores(image, text, nouns, instances)
    return scores, look(cut, instances, nouns, scorer.known, boxes)


def look(
    cut: Mapping[str, Sequence[Instance]], instances: Mapping[str, Features],
    nouns: Mapping[str, str], known: Mapping[str, Features], boxes: Mapping[str, Sequence[Box]],
) -> Found | None:  # fmt: skip
    """Of one picture; None if no references of instances are known.

    DINO tells instances apart if it is there, else CLIP.

    Args:
        cut: the picture's instances by noun.
        instances: their features, from `Scorer.of_instances`.
        nouns: of its concepts, by name.
        known: features of references, see `Scorer`.
        boxes: see `boxes_of`.
    """
    kind = next((k for k in ("instance_dino", "instance_clip_i") if k in instances), None)
    if kind is None:
        return None
    features, own = instances[kind], {name: known[kind][name] for name in nouns}
    whose = shared_out(features, nouns, own)
    places, contained = dict.fromkeys(boxes, 0.0), dict.fromkeys(boxes, 0.0)
    for name in boxes.keys() & whose.keys():
        box = cut[nouns[name]][whose[name][0]].box
        best = max(boxes[name], key=lambda one: intersection_over_union(box, one))
        places[name] = round(intersection_over_union(box, best), 4)
        contained[name] = round(containment(box, best), 4)
    enough = all(len(several) > 1 for several in own.values())
    return Found(verdicts(features, nouns, own), places, contained, enough)
