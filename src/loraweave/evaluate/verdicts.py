"""Right, missing, duplicated, swapped or blended, by a segmenter and an encoder.

The outcomes of the miniature's judge, for any base: instances are what the segmenter finds of a
noun, likeness is the mean cosine with the instances in a concept's own reference pictures. There is
no margin to another concept: how large it should be for such encoders nobody has measured.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .scores import Features

OUTCOMES = ("right", "missing", "duplicated", "swapped", "blended")
LEAST_QUANTILE = 0.05
"""Of the likeness of a concept's own references to one another, under which it is blended."""


def verdicts(
    found: Mapping[str, Float[Tensor, "I D"]], nouns: Mapping[str, str], references: Features
) -> dict[str, str]:
    """The outcome of each concept of a picture.

    Args:
        found: by noun the features of its instances, of unit length; a noun without any may be
            left out.
        nouns: by concept.
        references: by concept the features of instances in its own pictures.
    """
    outcomes: dict[str, str] = {}
    for noun, wanted in Counter(nouns.values()).items():
        names = [name for name, own in nouns.items() if own == noun]
        features = found.get(noun, torch.zeros(0, 1))
        if len(features) != wanted:
            fault = "missing" if len(features) < wanted else "duplicated"
            outcomes |= dict.fromkeys(names, fault)
            continue
        likeness = {name: features @ own.mean(0) for name, own in references.items()}
        scores = np.stack([likeness[name].numpy() for name in names])
        for row, column in zip(*linear_sum_assignment(scores, maximize=True)):
            own = {name: float(likeness[name][column]) for name in nouns}
            nearest = max(own, key=lambda name: own[name])
            name = names[row]
            if nearest != name:
                outcomes[name] = "swapped"
            else:
                alone = own[name] >= least_likeness(references[name])
                outcomes[name] = "right" if alone else "blended"
    return {name: outcomes[name] for name in nouns}


def least_likeness(references: Float[Tensor, "R D"]) -> float:
    """The 5th percentile of the references' mean cosine with the others; -1 with fewer than two."""
    count = len(references)
    if count < 2:
        return -1.0
    alike = references @ references.T
    others = (alike.sum(1) - alike.diagonal()) / (count - 1)
    return float(torch.quantile(others, LEAST_QUANTILE))
