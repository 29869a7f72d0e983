"""From a picture to a verdict.

The files of a judge: `segmenter.safetensors` (weights), `judge.json` (classes, least areas,
descriptors of the concepts, thresholds).
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

from ...errors import ModelNotFound
from ..concepts import CONCEPTS
from ..shipped import WEIGHTS
from .identity import describe, similarity
from .segmenter import Segmenter
from .verdict import Instance, Thresholds, Verdict, decide

SIDE = 128  # pixels a side at which the judge looks


class Judge:
    """Finds instances and says which concepts they are.

    Args:
        segmenter: trained, for `len(kinds) + 1` classes.
        kinds: names of classes 1 and up.
        least_area: by number of subjects, the least share of the picture of an instance.
        descriptors: of every known concept.
        thresholds: see `verdict.decide`.
    """

    def __init__(
        self, segmenter: Segmenter, kinds: Sequence[str], least_area: Mapping[int, float],
        descriptors: Mapping[str, np.ndarray], thresholds: Thresholds,
    ):  # fmt: skip
        self.segmenter, self.kinds = segmenter.eval(), list(kinds)
        self.least_area, self.descriptors = dict(least_area), dict(descriptors)
        self.thresholds = thresholds

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
        kinds = {name: CONCEPTS[name].kind for name in concepts}
        return decide(self.instances(image, len(kinds)), kinds, self.thresholds)

    def _instances(self, image: Image.Image, classes: np.ndarray, subjects: int):
        side = classes.shape[-1]
        pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BOX)) / 255.0
        least = self.least_area[min(max(subjects, 1), max(self.least_area))] * side**2
        found = []
        for k, kind in enumerate(self.kinds, start=1):
            components, count = cast(tuple[np.ndarray, int], ndimage.label(classes == k))
            for c in range(1, count + 1):
                mask = components == c
                if mask.sum() < least:
                    continue
                mine = describe(pixels, mask)
                rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
                box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side
                x0, y0, x1, y1 = (float(round(v, 4)) for v in box)
                likeness = {n: similarity(mine, d) for n, d in self.descriptors.items()}
                area = round(float(mask.mean()), 4)
                found.append(Instance(kind, (x0, y0, x1, y1), area, likeness))
        return sorted(found, key=lambda instance: instance.box[0])


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
    weights = load_file(folder / "segmenter.safetensors")
    segmenter.load_state_dict({name: value.float() for name, value in weights.items()})
    return Judge(
        segmenter, data["kinds"], {int(n): a for n, a in data["least_area"].items()},
        {name: np.array(d) for name, d in data["descriptors"].items()},
        Thresholds(data["least_similarity"], data["least_lead"]),
    )  # fmt: skip
