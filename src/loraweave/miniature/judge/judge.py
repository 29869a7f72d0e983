"""From a picture to a verdict.

An instance is compared with what every known concept would look like as an instance of its class:
a cat with a dog's coat is nearest to the dog, though its shape is a cat's.

The files of a judge: `segmenter.safetensors` and `encoder.safetensors` (weights),
`looks.safetensors` (where the encoder puts each concept's looks on each class), `judge.json`
(classes, concepts, least areas, thresholds).
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor, nn

from ...errors import ModelNotFound
from ..concepts import KNOWN
from ..shipped import WEIGHTS
from .identity import IdentityEncoder, crop_of, crops_tensor
from .segmenter import Segmenter
from .verdict import Instance, Thresholds, Verdict, decide

SIDE = 128  # pixels a side at which the judge looks


class Judge:
    """Finds instances and says which concepts they are.

    Args:
        segmenter: trained, for `len(kinds) + 1` classes.
        encoder: trained.
        kinds: names of classes 1 and up.
        least_area: by number of subjects, the least share of the picture of an instance.
        concepts: names of all that are known.
        looks: by class (N, E), where the encoder puts each concept's looks on that class.
        thresholds: see `verdict.decide`.
    """

    def __init__(
        self, segmenter: Segmenter, encoder: IdentityEncoder, *, kinds: Sequence[str],
        least_area: Mapping[int, float], concepts: Sequence[str], looks: Mapping[str, Tensor],
        thresholds: Thresholds,
    ):  # fmt: skip
        self.segmenter, self.encoder = segmenter.eval(), encoder.eval()
        self.kinds, self.least_area = list(kinds), dict(least_area)
        self.concepts, self.looks, self.thresholds = list(concepts), dict(looks), thresholds

    @torch.no_grad()
    def classes(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Class at each place, (B, SIDE/2, SIDE/2); 0 is background, k is `kinds[k - 1]`."""
        scores = self.segmenter(_pixels(images))
        return scores.argmax(1).numpy()

    def instances(self, image: Image.Image, subjects: int) -> list[Instance]:
        """Connected components of one class, large enough for a scene of so many subjects."""
        return self._instances(image, self.classes([image])[0], subjects)

    def examine(self, image: Image.Image, concepts: Sequence[str]) -> Verdict:
        """Judge a picture that should show these concepts and no other subject."""
        kinds = {name: KNOWN[name].kind for name in concepts}
        return decide(self.instances(image, len(kinds)), kinds, self.thresholds)

    @torch.no_grad()
    def identify(
        self, image: Image.Image, found: Sequence[tuple[str, np.ndarray]]
    ) -> list[dict[str, float]]:
        """Per (class, mask) the cosine with every known concept's looks, in [-1, 1]."""
        if not found:
            return []
        vectors = self.encoder(crops_tensor([crop_of(image, mask) for _, mask in found]))
        scores = [self.looks[kind] @ vector for (kind, _), vector in zip(found, vectors)]
        return [dict(zip(self.concepts, row.tolist())) for row in scores]

    def _instances(self, image: Image.Image, classes: np.ndarray, subjects: int) -> list[Instance]:
        side = classes.shape[-1]
        least = self.least_area[min(max(subjects, 1), max(self.least_area))] * side**2
        found: list[tuple[str, np.ndarray]] = []
        for k, kind in enumerate(self.kinds, start=1):
            components, count = cast(tuple[np.ndarray, int], ndimage.label(classes == k))
            masks = (components == c for c in range(1, count + 1))
            found += [(kind, mask) for mask in masks if mask.sum() >= least]
        likeness = self.identify(image, found)
        instances = [_instance(*pair, near) for pair, near in zip(found, likeness)]
        return sorted(instances, key=lambda instance: instance.box[0])


def _instance(kind: str, mask: np.ndarray, similarities: Mapping[str, float]) -> Instance:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / len(mask)
    x0, y0, x1, y1 = (float(round(v, 4)) for v in box)
    return Instance(kind, (x0, y0, x1, y1), round(float(mask.mean()), 4), similarities)


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    resized = [np.asarray(i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
               for i in images]  # fmt: skip
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


@cache
def load_judge(folder: Path = WEIGHTS / "judge") -> Judge:
    """The judge that ships with the miniature.

    Raises:
        ModelNotFound: this installation came without it.
    """
    if not (folder / "judge.json").is_file():
        raise ModelNotFound(f"no judge in {folder}; make it with `loraweave miniature train`")
    data = json.loads((folder / "judge.json").read_text())
    segmenter = Segmenter(len(data["kinds"]) + 1)
    _fill(segmenter, folder / "segmenter.safetensors")
    encoder = IdentityEncoder()
    _fill(encoder, folder / "encoder.safetensors")
    looks = load_file(folder / "looks.safetensors")
    return Judge(
        segmenter, encoder, kinds=data["kinds"], concepts=data["concepts"],
        least_area={int(n): a for n, a in data["least_area"].items()},
        looks={kind: found.float() for kind, found in looks.items()},
        thresholds=Thresholds(data["least_similarity"], data["least_lead"]),
    )  # fmt: skip


def _fill(module: nn.Module, path: Path) -> None:
    module.load_state_dict({name: value.float() for name, value in load_file(path).items()})
