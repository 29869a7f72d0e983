"""All of the papers' scores of a picture at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..errors import SceneError
from .encoders import Clip, Dino
from .similarity import Encoder, Instance, instance_similarity, to_references, to_text

Features = Mapping[str, Float[Tensor, "R D"]]
"""Of each concept's references. Where only means over all of them are asked for, the mean of their
unit vectors (R = 1) says the same; how like one another they are it does not say (`verdicts`)."""
SCORES = ("clip_i", "dino", "instance_clip_i", "instance_dino")
"""Those against references, each over the concepts of a picture."""


def features_of(images: Mapping[str, Sequence[Image.Image]], encoder: Encoder) -> Features:
    """Of some pictures for each concept."""
    return {name: encoder.images(own) for name, own in images.items()}


@dataclass(frozen=True)
class Scorer:
    """What measures pictures.

    Attributes:
        clip, dino: encoders, each of which may be left out.
        known: features of references by score: `clip_i` and `dino`, and of instances in them
            `instance_clip_i` and `instance_dino`; without any there is `clip_t` alone.
    """

    clip: Clip | None = None
    dino: Dino | None = None
    known: Mapping[str, Features] = field(default_factory=dict)

    @property
    def encoders(self) -> dict[str, Encoder]:
        """By the score that they give."""
        named: dict[str, Encoder | None] = {"clip_i": self.clip, "dino": self.dino}
        return {name: one for name, one in named.items() if one is not None}

    def of_instances(self, cut: Mapping[str, Sequence[Instance]]) -> dict[str, Features]:
        """Features of a picture's instances by noun, for every score of instances that is known.

        Args:
            cut: the instances by noun, see `instances_by_noun`.
        """
        alone = {noun: [one.image for one in own] for noun, own in cut.items()}
        scores = {f"instance_{name}": encoder for name, encoder in self.encoders.items()}
        return {n: features_of(alone, one) for n, one in scores.items() if n in self.known}

    def scores(
        self, image: Image.Image, text: str, nouns: Mapping[str, str],
        instances: Mapping[str, Features] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Of one picture.

        Args:
            image: the picture.
            text: its prompt with plain nouns.
            nouns: of its concepts, by name.
            instances: from `of_instances`; without it there are no scores of them.

        Raises:
            SceneError: a concept without references.
        """
        scores: dict[str, Any] = {}
        features = {name: one.images([image])[0] for name, one in self.encoders.items()}
        if self.clip is not None:
            whole = {} if self.clip.fits(text) else {"truncated": True}
            like = to_text(features["clip_i"], self.clip.texts([text])[0])
            scores["clip_t"] = {**like, **whole}
        for name in self.encoders:
            if name in self.known:
                scores[name] = to_references(features[name], self._of(name, nouns)).as_dict()
        for name, found in (instances or {}).items():
            scores[name] = instance_similarity(found, nouns, self._of(name, nouns)).as_dict()
        return scores

    def _of(self, score: str, names: Mapping[str, str]) -> Features:
        known = self.known[score]
        if strangers := [name for name in names if name not in known]:
            raise SceneError(f"no reference picture of {strangers[0]!r}")
        return {name: known[name] for name in names}
