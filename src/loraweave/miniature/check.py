"""How good the miniature is: figures of its base, LoRAs and judge."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import __version__
from ..api import compose
from ..loading import load
from ..progress import track
from .concepts import CONCEPTS, draw_concepts
from .judge import Judge, load_judge
from .prompts import BACKGROUNDS, concept_prompt, pair_scenes, plain_prompt
from .recipe.judge import through
from .shipped import lora_file
from .world import COLOURS

STEPS = 25
CHECK_SEED = 7_000_000


def check(quick: bool = False) -> dict[str, Any]:
    """All figures as `{"version", "size", "figures": {...}}`; rates are in [0, 1].

    Args:
        quick: a tenth of the samples.
    """
    pipe, judge = load("miniature", device="cpu"), load_judge()
    share = 10 if quick else 1
    figures: dict[str, Any] = {
        "vae_psnr_db": reconstruction_psnr(pipe.vae, 60 // share),
        "judge_concept_accuracy": judge_accuracy(judge, pipe.vae, 200 // share),
        "base_single_class": single_class(pipe, judge, 60 // share),
        "base_single_colour": single_colour(pipe, judge, 60 // share),
        "base_pair_both": base_pairs(pipe, judge, 60 // share),
        "attention_pointing": attention_pointing(pipe, judge, 40 // share),
    }
    alone = loras_alone(pipe, judge, max(2, 20 // share))
    figures["lora_alone"] = alone
    figures["lora_alone_mean"] = round(float(np.mean(list(alone.values()))), 4)
    figures["lora_alone_min"] = min(alone.values())
    return {"version": __version__, "size": pipe.unet.config["sample_size"] * 8, "figures": figures}


def _draw(pipe, prompt: str, seed: int, loras=None, method="merge", **more):
    return compose(
        pipe, prompt, loras=loras, method=method, num_inference_steps=STEPS, progress=False,
        generator=torch.Generator().manual_seed(seed), **more,
    )  # fmt: skip


def reconstruction_psnr(vae, count: int) -> float:
    """PSNR in dB of encoded and decoded drawings, mean over pictures."""
    values = []
    for seed in range(count):
        names = [list(CONCEPTS)[seed % len(CONCEPTS)], list(CONCEPTS)[(seed + 3) % len(CONCEPTS)]]
        image = draw_concepts(names, BACKGROUNDS[seed % 4], CHECK_SEED + seed).image
        back = np.asarray(through(vae, [image])[0], float) - np.asarray(image, float)
        values.append(20 * np.log10(255) - 10 * np.log10((back**2).mean()))
    return round(float(np.mean(values)), 2)


def judge_accuracy(judge: Judge, vae, count: int) -> float:
    """Share of concepts that are judged right on decoded drawings of pairs, where all are."""
    right = []
    for scene in pair_scenes(count, CHECK_SEED):
        drawn = draw_concepts(scene.names, scene.background, scene.seed)
        verdict = judge.examine(through(vae, [drawn.image])[0], scene.names)
        right.append(verdict.right / 2)
    return round(float(np.mean(right)), 4)


def single_class(pipe, judge: Judge, count: int) -> float:
    """`a cat in the snow`: exactly one instance, of that class."""

    def shows(kind: str, seed: int) -> bool:
        image = _draw(pipe, f"a {kind} in the {_place(seed)}", CHECK_SEED + seed).images[0]
        return [i.kind for i in judge.instances(image, 1)] == [kind]

    return _rate(shows, judge.kinds, count, "base: classes")


def _place(seed: int) -> str:
    return ("meadow", "snow", "desert")[seed % 3]


def single_colour(pipe, judge: Judge, count: int) -> float:
    """`a red cat`: the body's most frequent colour has that name, among the named ones."""
    names = [n for n in COLOURS if n not in ("gray", "brown")]

    def shows(kind: str, seed: int) -> bool:
        colour = names[seed % len(names)]
        image = _draw(pipe, f"a {colour} {kind} in the {_place(seed)}", CHECK_SEED + seed).images[0]
        return dominant_colour(judge, image, kind) == colour

    return _rate(shows, judge.kinds, count, "base: colours")


def dominant_colour(judge: Judge, image: Image.Image, kind: str) -> str | None:
    """Name of the palette's colour that most pixels of a class are nearest to."""
    classes = judge.classes([image])[0]
    mask = classes == 1 + judge.kinds.index(kind)
    if not mask.any():
        return None
    side = classes.shape[-1]
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BOX), float)[mask]
    palette = np.array(list(COLOURS.values()), float)
    nearest = ((pixels[:, None] - palette) ** 2).sum(2).argmin(1)
    return list(COLOURS)[int(np.bincount(nearest).argmax())]


def _rate(test: Callable[[str, int], bool], kinds: Sequence[str], count: int, label: str) -> float:
    hits = [test(kinds[n % len(kinds)], n) for n in track(range(count), label, total=count)]
    return round(float(np.mean(hits)), 4)


def base_pairs(pipe, judge: Judge, count: int) -> float:
    """Two classes named, no LoRA: exactly one instance of each."""
    hits = []
    for scene in track(pair_scenes(count, CHECK_SEED), "base: pairs", total=count):
        image = _draw(pipe, plain_prompt(scene.names, scene.background), scene.seed).images[0]
        found = sorted(i.kind for i in judge.instances(image, 2))
        hits.append(found == sorted(CONCEPTS[n].kind for n in scene.names))
    return round(float(np.mean(hits)), 4)


def attention_pointing(pipe, judge: Judge, count: int) -> float:
    """Pair prompts: the peak of each noun's mean map over the first half lies on its subject."""
    hits = []
    for scene in track(pair_scenes(count, CHECK_SEED + 1), "base: attention", total=count):
        spans = [f"a [{CONCEPTS[n].kind}]({n})" for n in scene.names]
        prompt = " and ".join(spans)
        loras = {name: lora_file(name) for name in scene.names}
        output = _draw(pipe, prompt.replace(")", ":0)"), scene.seed, loras)
        maps = output.maps[0][: STEPS // 2].mean(0)
        classes = judge.classes([output.images[0]])[0]
        for name, one in zip(scene.names, maps):
            row, column = divmod(int(one.flatten().argmax()), one.shape[-1])
            cell = classes.shape[-1] // one.shape[-1]
            patch = classes[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            hits.append(bool((patch == 1 + judge.kinds.index(CONCEPTS[name].kind)).any()))
    return round(float(np.mean(hits)), 4)


def loras_alone(pipe, judge: Judge, count: int) -> dict[str, float]:
    """Per concept the share of pictures of its LoRA alone in which it is right."""
    rates = {}
    for name in track(CONCEPTS, "LoRAs alone", total=len(CONCEPTS)):
        verdicts = [
            judge.examine(_draw(pipe, concept_prompt([name], seed), CHECK_SEED + seed,
                                {name: lora_file(name)}).images[0], [name])
            for seed in range(count)
        ]  # fmt: skip
        rates[name] = round(float(np.mean([v.success for v in verdicts])), 4)
    return rates
