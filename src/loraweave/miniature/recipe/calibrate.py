"""Stage 5: the judge is told what each LoRA draws alone.

What "blended" is measured by is what a LoRA reaches alone; see `alone.py` for why its pictures
are references, too, and which half of them is which.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..concepts import KNOWN
from ..judge import Judge
from ..judge.judge import looks_of
from .alone import Pictures, halves
from .run import Run

OWN_SHARE = 0.5
"""Of the LoRA's pictures in what its concept is known by beside the drawings; the rest are drawings
again, since shades of small subjects are between the two. Chosen on labelled pictures."""
PERCENTILE = 5
SLACK = 0.15
"""Subjects of a scene are smaller than one alone, and less sharp; chosen on labelled pictures."""


def calibrated(run: Run, judge: Judge, pictures: Pictures) -> Judge:
    """A judge with references and least similarities by pictures of each LoRA alone."""
    told = judge
    for name, images in pictures.items():
        told = with_own(told, name, *(_looks(judge, name, half) for half in halves(images)))
        least = told.thresholds.least_similarity[name]
        run.log("calibrate", name=name, least_similarity=least)
    return told


def with_own(
    judge: Judge, name: str, references: Float[Tensor, "R E"], measured: Float[Tensor, "M E"]
) -> Judge:
    """The judge with looks of one concept's LoRA.

    Args:
        judge: stays as it is.
        name: of the concept.
        references: their middle is known beside the drawings.
        measured: their 5th percentile, less a little, is the least similarity.
    """
    told, row = copy.copy(judge), judge.concepts.index(name)
    if len(references):
        told.own = judge.own.clone()
        drawn = judge.looks[KNOWN[name].kind][row]
        mixed = (1 - OWN_SHARE) * drawn + OWN_SHARE * _middle(judge, references)
        told.own[row] = _middle(judge, mixed[None])
    least = 1.0  # nothing is like a LoRA that never draws its subject
    if len(measured):
        likeness = [told.likeness(KNOWN[name].kind, looks)[name] for looks in measured]
        least = float(np.percentile(likeness, PERCENTILE)) - SLACK
    every = {**judge.thresholds.least_similarity, name: least}
    told.thresholds = replace(judge.thresholds, least_similarity=every)
    return told


def _looks(judge: Judge, name: str, images: Sequence[Image.Image]) -> Float[Tensor, "N E"]:
    """Of the largest instance of the concept's class in each picture that has one."""
    looks = []
    for image in images:
        masks = [mask for kind, mask in judge.found(image, 1) if kind == KNOWN[name].kind]
        if masks:
            looks.append(judge.looks_under(image, [max(masks, key=np.sum)]))
    return torch.cat(looks) if looks else torch.empty(0, 0)


def _middle(judge: Judge, looks: Float[Tensor, "N E"]) -> Float[Tensor, " E"]:
    """The mean direction, of what the encoder says and of the colours each by itself."""
    mean = looks.mean(0, keepdim=True)
    colours = len(judge.centres)
    return looks_of(mean[:, :-colours], mean[:, -colours:])[0]
