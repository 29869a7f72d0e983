"""Stage 5: what a LoRA reaches alone, which is what the judge measures "blended" by."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline

from ...progress import track
from ..checks.loras import drawn_alone
from ..concepts import KNOWN
from ..judge import Judge, Thresholds
from .run import Run

SEED = 50_000  # of the first noise
PERCENTILE = 5
SLACK = 0.15
"""Subjects of a scene are smaller than one alone, and less sharp; chosen on labelled pictures."""


def calibrated(
    run: Run, judge: Judge, pipe: StableDiffusionPipeline, loras: Mapping[str, Path],
    pictures: int,
) -> Judge:  # fmt: skip
    """The judge with its least similarities: under the 5th percentile of each LoRA alone."""
    least: dict[str, float] = run.load("calibrate") or {}
    individuals = [name for name in loras if name in KNOWN and name not in least]
    for name in track(individuals, "miniature: calibrate", total=len(individuals)):
        found = []
        for image in drawn_alone(pipe, name, loras[name], pictures, SEED):
            instances = judge.instances(image, 1)
            found += [i.similarities[name] for i in instances if i.kind == KNOWN[name].kind]
        least[name] = float(np.percentile(found, PERCENTILE)) - SLACK if found else 1.0
        run.save("calibrate", least)
        run.log("calibrate", name=name, instances=len(found), least_similarity=least[name])
    judge.thresholds = Thresholds(least, judge.thresholds.least_lead)
    return judge
