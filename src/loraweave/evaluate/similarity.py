"""The papers' scores: how like each concept's own pictures a composition is, and how like its text.

As in CLoRA's tables 1 and 3 (arXiv 2403.19776): mean cosine of a picture's features with those of a
concept's reference pictures, then the least, the mean and the largest over the concepts. Features
of DINO give its "DINO", of CLIP its "CLIP-I"; CLIP-T is the cosine with the prompt's features.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..detect import Segmenter
from ..errors import SceneError
from ..layout.boxes import Box, tight_box


class Encoder(Protocol):
    """What makes features of pictures: `Clip`, `Dino`."""

    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "N D"]:
        """Of unit length."""
        ...


@dataclass(frozen=True)
class Similarity:
    """How like its concepts a picture is.

    Attributes:
        by_concept: mean cosine with the concept's references, in [-1, 1].
        missing: concepts of which no instance was found, which have no value.
    """

    by_concept: Mapping[str, float]
    missing: Sequence[str] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain data with the papers' min, avg and max; None where every concept is missing."""
        values = list(self.by_concept.values())
        return {
            "min": min(values, default=None),
            "avg": sum(values) / len(values) if values else None,
            "max": max(values, default=None),
            "by_concept": dict(self.by_concept),
            "missing": list(self.missing),
        }


def to_references(
    features: Float[Tensor, " D"], references: Mapping[str, Float[Tensor, "R D"]]
) -> Similarity:
    """Of one picture, whose features are of unit length as the references' are.

    Raises:
        SceneError: a concept without references.
    """
    if empty := [name for name, own in references.items() if not len(own)]:
        raise SceneError(f"no reference picture of {empty[0]!r}")
    return Similarity({name: (own @ features).mean().item() for name, own in references.items()})


def to_text(features: Float[Tensor, " D"], text: Float[Tensor, " D"]) -> dict[str, float]:
    """CLIP-T as papers give it: the `cosine`, and the `score` 2.5 max(cosine, 0)."""
    cosine = (features @ text).item()
    return {"cosine": cosine, "score": 2.5 * max(cosine, 0.0)}


@dataclass(frozen=True)
class Instance:
    """One that a segmenter has found.

    Attributes:
        image: it alone, see `cut_out`.
        box: in the whole picture.
    """

    image: Image.Image
    box: Box


def cut_out(image: Image.Image, mask: Bool[np.ndarray, "h w"]) -> Image.Image | None:
    """The smallest square around the middle of a mask's box, white where the mask is not.

    The paper does not say how instances are cut; this keeps the whole of a long one.

    Args:
        image: the picture.
        mask: of the same proportions.

    Returns:
        None if the mask covers no pixel of the picture.
    """
    inside = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    alone = np.where(inside[..., None], np.asarray(image.convert("RGB")), np.uint8(255))
    tight = Image.fromarray(alone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    side = max(tight.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(tight, ((side - tight.width) // 2, (side - tight.height) // 2))
    return square


def instances_of(image: Image.Image, noun: str, segmenter: Segmenter) -> list[Instance]:
    """Every instance of a noun.

    Raises:
        SceneError: a noun that the segmenter cannot look for.
    """
    try:
        masks = segmenter.find(image, noun)
    except KeyError:
        raise SceneError(f"the segmenter cannot look for {noun!r}") from None
    return [
        Instance(cut, tight_box(np.asarray(mask, bool)))
        for mask in masks
        if (cut := cut_out(image, mask)) is not None
    ]


def instances_by_noun(
    image: Image.Image, nouns: Collection[str], segmenter: Segmenter
) -> dict[str, list[Instance]]:
    """Every instance of some nouns; nouns without any are left out.

    Raises:
        SceneError: a noun that the segmenter cannot look for.
    """
    found = {noun: instances_of(image, noun, segmenter) for noun in dict.fromkeys(nouns)}
    return {noun: own for noun, own in found.items() if own}


def shared_out(
    found: Mapping[str, Float[Tensor, "I D"]], nouns: Mapping[str, str],
    references: Mapping[str, Float[Tensor, "R D"]],
) -> dict[str, tuple[int, float]]:  # fmt: skip
    """By concept the number of its instance, and how like its references that is.

    Concepts of one noun share its instances out so that they are most alike in all; who gets none
    is left out.

    Args:
        found: by noun the features of its instances; a noun without any may be left out.
        nouns: by concept.
        references: by concept the features of instances.

    Raises:
        SceneError: a concept without references.
    """
    assigned: dict[str, tuple[int, float]] = {}
    for noun, features in found.items():
        names = [name for name, own in nouns.items() if own == noun]
        scores = np.array([
            [to_references(one, {name: references[name]}).by_concept[name] for one in features]
            for name in names
        ]).reshape(len(names), len(features))  # fmt: skip
        rows, columns = linear_sum_assignment(scores, maximize=True)
        assigned |= {names[i]: (int(k), float(scores[i, k])) for i, k in zip(rows, columns)}
    return {name: assigned[name] for name in nouns if name in assigned}


def instance_similarity(
    found: Mapping[str, Float[Tensor, "I D"]], nouns: Mapping[str, str],
    references: Mapping[str, Float[Tensor, "R D"]],
) -> Similarity:  # fmt: skip
    """Each concept's instance against its references (table 3); see `shared_out`."""
    assigned = shared_out(found, nouns, references)
    ordered = {name: like for name, (_, like) in assigned.items()}
    return Similarity(ordered, [name for name in nouns if name not in assigned])
