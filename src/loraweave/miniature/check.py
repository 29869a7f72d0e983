"""How good the miniature is: figures of its base, its LoRAs and its judge."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..loading import load
from .checks import base, loras
from .checks import judge as judging
from .checks.encoders import encoder_figures
from .concepts import KNOWN
from .judge import load_judge
from .scoring import load_scorer
from .shipped import WEIGHTS, lora_file, native_side
from .style_reader import load_style_reader

COMMITTED = Path(__file__).parent / "check.json"
"""The figures of the weights that ship."""


def check(quick: bool = False) -> dict[str, Any]:
    """All figures as `{"version", "size", "samples_seen", "figures": {...}}`; rates in [0, 1].

    Args:
        quick: a tenth of the samples, and two pictures a LoRA.
    """
    pipe, judge = load("miniature", device="cpu"), load_judge()
    samples, alone = (30, 2) if quick else (300, 40)
    scorer = load_scorer()
    assert scorer.clip is not None
    assert scorer.dino is not None
    figures: dict[str, Any] = {
        "vae_psnr_db": judging.reconstruction_psnr(pipe.vae, samples),
        "judge_class_accuracy": judging.class_accuracy(judge, pipe.vae, samples),
        **judging.concept_accuracy(judge, pipe.vae, samples),
        "judge_failure_kappa": judging.failure_agreement(judge, pipe.vae, 200 * samples // 300),
        "judge_style_accuracy": judging.style_accuracy(load_style_reader(), pipe.vae, samples),
        **judging.eye_agreement(judge),
        **encoder_figures(scorer.clip, scorer.dino),
        "base_single_class": base.single_class(pipe, judge, samples),
        "base_single_colour": base.single_colour(pipe, judge, samples),
        **base.pairs(pipe, judge, samples),
        "base_same_class_both": base.same_class(pipe, judge, samples),
        "base_three_all": base.several(pipe, judge, 3, samples),
        "base_five_all": base.several(pipe, judge, 5, samples),
    }
    rates = loras.right_alone(pipe, judge, {name: lora_file(name) for name in KNOWN}, alone)
    figures["lora_alone_mean"] = round(float(np.mean(list(rates.values()))), 4)
    figures["lora_alone_min"] = min(rates.values())
    figures["lora_alone"] = rates
    return {
        "version": __version__, "size": native_side(),
        "samples_seen": samples_seen(), "figures": figures,
    }  # fmt: skip


def samples_seen(weights: Path = WEIGHTS) -> int:
    """How many noisy scenes the base model was trained on, by the log that ships with it."""
    log = json.loads((weights / "log.json").read_text())
    last: dict[str | None, int] = {}
    batch = 32  # of logs that do not say it
    for line in log:
        if line["stage"] == "base":
            last[line.get("part")] = line["step"]
        batch = line.get("batch", batch)
    return sum(last.values()) * batch
