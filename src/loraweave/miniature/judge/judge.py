"""From a picture to a verdict.

An instance is compared with what every known concept would look like as an instance of its class:
a cat with a dog's coat is nearest to the dog, though its shape is a cat's. Its looks are a unit
vector, in part where the encoder puts it and in part its colours. On its own class a concept is
known by drawings, and by the middle of drawings and what its LoRA draws; the nearer counts.

The files of a judge: `segmenter.safetensors` and `encoder.safetensors` (weights),
`looks.safetensors` (each concept's looks on each class as drawn, those on its own that its LoRA
has a part in, and the palette of the colours), `judge.json` (classes, concepts, least areas,
thresholds).
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from ...detect.components import joined_components, parted
from ...errors import ModelNotFound
from ...layout.boxes import tight_box
from ..codec import pixels_of
from ..concepts import KNOWN
from ..half import load_half
from ..segmenter import Segmenter, load_segmenter
from ..shipped import WEIGHTS
from ..world import COLOURS
from .colours import colours_of, signature
from .identity import IdentityEncoder, crop_of
from .verdict import Instance, Thresholds, Verdict, decide

COLOUR_SHARE = 0.6
"""Of colours in the likeness of two looks; chosen on labelled pictures."""
PALETTE, OWN = "palette", "own"


@torch.no_grad()
def seen_as(
    encoder: IdentityEncoder, centres: np.ndarray, image: Image.Image,
    masks: Sequence[Bool[np.ndarray, "h w"]],
) -> tuple[Float[Tensor, "N E"], Float[Tensor, "N K"]]:  # fmt: skip
    """Where the encoder puts the instances under the masks, and their colours; unit vectors."""
    crops = pixels_of([crop_of(image, mask) for mask in masks])
    shares = np.stack([signature(colours_of(image, mask), centres) for mask in masks])
    return encoder(crops), torch.from_numpy(shares).float()


def looks_of(
    encoded: Float[Tensor, "N E"], colours: Float[Tensor, "N K"]
) -> Float[Tensor, "N E_plus_K"]:
    """Unit vectors of both."""
    parts = F.normalize(encoded, dim=1), F.normalize(colours, dim=1)
    return torch.cat([(1 - COLOUR_SHARE) ** 0.5 * parts[0], COLOUR_SHARE**0.5 * parts[1]], 1)


class Judge:
    """Finds instances and says which concepts they are.

    Args:
        segmenter: trained, for `len(kinds) + 1` classes.
        encoder: trained.
        kinds: names of classes 1 and up.
        least_area: by number of subjects, the least share of the picture of an instance.
        concepts: names of all that are known.
        looks: by class (N, E), each concept's looks on that class, as drawn.
        own: (N, E), each concept's looks between drawings and what its LoRA draws; zero where
            that is not known.
        centres: (K, 3), the palette of the colours, in CIELAB.
        thresholds: see `verdict.decide`.
    """

    def __init__(
        self, segmenter: Segmenter, encoder: IdentityEncoder, *, kinds: Sequence[str],
        least_area: Mapping[int, float], concepts: Sequence[str], looks: Mapping[str, Tensor],
        own: Float[Tensor, "N E"], centres: np.ndarray, thresholds: Thresholds,
    ):  # fmt: skip
        self.segmenter, self.encoder = segmenter.eval(), encoder.eval()
        self.kinds, self.least_area = list(kinds), dict(least_area)
        self.concepts, self.looks, self.thresholds = list(concepts), dict(looks), thresholds
        self.own, self.centres = own, centres

    def classes(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Class at each place, (B, h, w); 0 is background, k is `kinds[k - 1]`."""
        return self.segmenter.classes(images)

    def instances(
        self, image: Image.Image, subjects: int, wanted: Mapping[str, int] | None = None
    ) -> list[Instance]:
        """Connected components of one class, large enough for a scene of so many subjects.

        Args:
            image: what is looked at.
            subjects: how many there should be.
            wanted: how many of some classes; where fewer are found, those that touch are parted.
        """
        found = self.found(image, subjects, wanted)
        likeness = self.identify(image, found)
        instances = [_instance(*pair, near) for pair, near in zip(found, likeness)]
        return sorted(instances, key=lambda instance: instance.box[0])

    def found(
        self, image: Image.Image, subjects: int, wanted: Mapping[str, int] | None = None
    ) -> list[tuple[str, Bool[np.ndarray, "h w"]]]:
        """Class and mask of each instance, class by class; see `instances`.

        In a picture that is not square, areas are those of a square of its shorter side with as
        many subjects as there are to it.
        """
        wanted = wanted or {}
        classes = self.classes([image])[0]
        short, long = sorted(classes.shape)
        crowd = math.ceil(max(subjects, 1) * short / long)
        least = self.least_area[min(crowd, max(self.least_area))] * short**2
        found = []
        for k, kind in enumerate(self.kinds, start=1):
            masks = parted(joined_components(classes == k, least), wanted.get(kind, 0), least)
            found += [(kind, mask) for mask in masks]
        return found

    def examine(
        self, image: Image.Image, concepts: Sequence[str], subjects: int | None = None
    ) -> Verdict:
        """Judge a picture that should show these concepts and no other subject of their classes.

        An instance is compared with the concepts of the scene and with all of its own class. What
        other concepts look like on its class is not asked: their LoRAs are not there.

        Args:
            image: what shall show them.
            concepts: their names.
            subjects: how many there are in the scene, if more than the concepts: it decides how
                small an instance may be.
        """
        kinds = {name: KNOWN[name].kind for name in concepts}
        found = [
            replace(i, similarities={
                name: similarity for name, similarity in i.similarities.items()
                if name in kinds or KNOWN[name].kind == i.kind
            })
            for i in self.instances(image, subjects or len(kinds), Counter(kinds.values()))
        ]  # fmt: skip
        return decide(found, kinds, self.thresholds, self.alike)

    def alike(self, one: str, other: str, kind: str) -> float:
        """Cosine between the looks of two concepts on a class, in [-1, 1]."""
        looks = self.looks[kind]
        return float(looks[self.concepts.index(one)] @ looks[self.concepts.index(other)])

    def looks_under(
        self, image: Image.Image, masks: Sequence[Bool[np.ndarray, "h w"]]
    ) -> Float[Tensor, "N E"]:
        """Looks of the instances under the masks; unit vectors."""
        return looks_of(*seen_as(self.encoder, self.centres, image, masks))

    def dominant_colour(self, image: Image.Image, kind: str) -> str | None:
        """Name of the world's colour that most pixels of a class are nearest to; None without any.

        As the palette of captions has it, in RGB.
        """
        mask = self.classes([image])[0] == 1 + self.kinds.index(kind)
        if not mask.any():
            return None
        pixels = np.asarray(image.resize(mask.shape[::-1], Image.Resampling.BOX), float)[mask]
        nearest = ((pixels[:, None] - np.array(list(COLOURS.values()), float)) ** 2).sum(2)
        return list(COLOURS)[int(np.bincount(nearest.argmin(1)).argmax())]

    def identify(
        self, image: Image.Image, found: Sequence[tuple[str, np.ndarray]]
    ) -> list[dict[str, float]]:
        """Per (class, mask) the cosine with every known concept's looks, in [-1, 1]."""
        if not found:
            return []
        vectors = self.looks_under(image, [mask for _, mask in found])
        return [self.likeness(kind, vector) for (kind, _), vector in zip(found, vectors)]

    def likeness(self, kind: str, looks: Float[Tensor, " E"]) -> dict[str, float]:
        """The cosine of looks on a class with every known concept's."""
        drawn, own = (self.looks[kind] @ looks).tolist(), (self.own @ looks).tolist()
        return {
            name: max(a, b) if KNOWN[name].kind == kind else a
            for name, a, b in zip(self.concepts, drawn, own)
        }


def _instance(kind: str, mask: np.ndarray, similarities: Mapping[str, float]) -> Instance:
    x0, y0, x1, y1 = (round(edge, 4) for edge in tight_box(mask))
    return Instance(kind, (x0, y0, x1, y1), round(float(mask.mean()), 4), similarities)


@cache
def load_judge(folder: Path = WEIGHTS / "judge") -> Judge:
    """The judge that ships with the miniature.

    Raises:
        ModelNotFound: this installation came without it.
    """
    if not (folder / "judge.json").is_file():
        raise ModelNotFound(f"no judge in {folder}; make it with `loraweave miniature train`")
    data = json.loads((folder / "judge.json").read_text())
    segmenter = load_segmenter(folder / "segmenter.safetensors", len(data["kinds"]) + 1)
    encoder = IdentityEncoder()
    encoder.load_state_dict(load_half(folder / "encoder.safetensors"))
    looks = load_half(folder / "looks.safetensors")
    centres, own = looks.pop(PALETTE).numpy(), looks.pop(OWN)
    return Judge(
        segmenter, encoder, kinds=data["kinds"], concepts=data["concepts"],
        least_area={int(n): a for n, a in data["least_area"].items()},
        looks=looks, own=own, centres=centres,
        thresholds=Thresholds(data["least_similarity"], data["least_lead"]),
    )  # fmt: skip
