"""Stage 5: what a LoRA reaches alone, which is what the judge measures "blended" by."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from ...api import compose
from ...progress import track
from ..concepts import CONCEPTS
from ..judge import Judge, Thresholds
from ..prompts import concept_prompt
from .run import Run

PICTURES = 20  # per LoRA
PERCENTILE = 5


def calibrated(
    run: Run, judge: Judge, pipe: StableDiffusionPipeline, loras: Mapping[str, Path],
    pictures: int = PICTURES,
) -> Judge:  # fmt: skip
    """The judge with its least similarities: the 5th percentile of each LoRA alone."""
    least = {}
    for name, path in track(loras.items(), "miniature: calibrate", total=len(loras)):
        found = []
        for seed in range(pictures):
            output = compose(
                pipe, concept_prompt([name], seed), loras={name: path}, method="merge",
                num_inference_steps=25, progress=False,
                generator=torch.Generator().manual_seed(50_000 + seed),
            )  # fmt: skip
            instances = judge.instances(output.images[0], 1)
            found += [i.similarities[name] for i in instances if i.kind == CONCEPTS[name].kind]
        least[name] = float(np.percentile(found, PERCENTILE)) if found else 1.0
        run.log("calibrate", name=name, instances=len(found), least_similarity=least[name])
    return Judge(
        judge.segmenter, judge.kinds, judge.least_area, judge.descriptors,
        Thresholds(least, judge.thresholds.least_lead),
    )  # fmt: skip
