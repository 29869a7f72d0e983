"""What the base model draws without LoRAs, and where it looks while it does."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from ...backbone.sites import reading_sites
from ...denoise.recorder import recording
from ..judge import Judge
from ..judge.verdict import Instance
from ..prompts import listed
from ..scenes import ATTRIBUTES
from ..world import BACKGROUNDS, KINDS
from ..world.captions import PLACES, plural
from .pictures import STEPS, drawn


def _kinds(number: int, count: int) -> list[str]:
    """`count` different classes, another choice for every number."""
    rng = np.random.default_rng([number, count])
    return [KINDS[number % len(KINDS)]] if count == 1 else rng.choice(KINDS, count, False).tolist()


def _place(number: int) -> str:
    return BACKGROUNDS[number % len(BACKGROUNDS)]


def all_found(instances: Sequence[Instance], kinds: Sequence[str]) -> bool:
    """Every class has exactly as many instances as it is named."""
    seen, wanted = Counter(i.kind for i in instances), Counter(kinds)
    return all(seen[kind] == count for kind, count in wanted.items())


def found_share(
    pipe: StableDiffusionPipeline, judge: Judge, scenes: Sequence[Sequence[str]],
    prompts: Sequence[str], label: str,
) -> float:  # fmt: skip
    """Share of prompts whose picture shows all named classes."""
    images = drawn(pipe, prompts, label)
    return _mean([
        all_found(judge.instances(image, len(kinds)), kinds)
        for image, kinds in zip(images, scenes)
    ])  # fmt: skip


def single_class(pipe: StableDiffusionPipeline, judge: Judge, count: int) -> float:
    """`a cat in the snow`: one cat."""
    scenes = [_kinds(n, 1) for n in range(count)]
    prompts = [listed(kinds, _place(n)) for n, kinds in enumerate(scenes)]
    return found_share(pipe, judge, scenes, prompts, "base: classes")


def same_class(pipe: StableDiffusionPipeline, judge: Judge, count: int) -> float:
    """`two cats in the snow`: two cats."""
    kinds = [KINDS[n % len(KINDS)] for n in range(count)]
    prompts = [f"two {plural(kind)} {PLACES[_place(n)]}" for n, kind in enumerate(kinds)]
    return found_share(pipe, judge, [[k, k] for k in kinds], prompts, "base: same class")


def several(pipe: StableDiffusionPipeline, judge: Judge, subjects: int, count: int) -> float:
    """`a cat, a dog and a cup in the snow`: one of each."""
    scenes = [_kinds(n, subjects) for n in range(count)]
    prompts = [listed(kinds, _place(n)) for n, kinds in enumerate(scenes)]
    return found_share(pipe, judge, scenes, prompts, f"base: {subjects} subjects")


def single_colour(pipe: StableDiffusionPipeline, judge: Judge, count: int) -> float:
    """`a red cat in the snow`: most of the cat is nearer to red than to another colour's name."""
    asked = [(KINDS[n % len(KINDS)], ATTRIBUTES[n % len(ATTRIBUTES)]) for n in range(count)]
    prompts = [
        listed([f"{colour} {kind}"], _place(n)) for n, (kind, colour) in enumerate(asked)
    ]  # fmt: skip
    images = drawn(pipe, prompts, "base: colours")
    return _mean([
        judge.dominant_colour(image, kind) == colour
        for image, (kind, colour) in zip(images, asked)
    ])  # fmt: skip


def pairs(pipe: StableDiffusionPipeline, judge: Judge, count: int) -> dict[str, float]:
    """`a cat and a dog in the snow`: one of each, and where the nouns' attention lies.

    The map of a noun is the conditional half's, mean over the first half of the steps, at the
    level that methods read. `attention_pointing` is how often its peak lies in a cell that its
    subject touches, `attention_auc` the mean area under the ROC curve against the share of each
    cell that the subject covers being at least a half. Both are over nouns whose class the judge
    finds in the picture.
    """
    scenes = [_kinds(n, 2) for n in range(count)]
    prompts = [listed(kinds, _place(n)) for n, kinds in enumerate(scenes)]
    batches: list[list[Tensor]] = []
    with recording(reading_sites(pipe.unet)) as recorder:

        def keep(_pipe, i: int, _t, _kwargs) -> dict:
            maps = recorder.take()
            if i < STEPS // 2:
                batches[-1].append(maps[len(maps) // 2 :])
            return {}

        images = drawn(
            pipe, prompts, "base: pairs", lambda: batches.append([]), callback_on_step_end=keep
        )
    maps = [one for batch in batches for one in torch.stack(batch).mean(0)]
    both = [
        all_found(judge.instances(image, 2), kinds) for image, kinds in zip(images, scenes)
    ]  # fmt: skip
    hits, areas = [], []
    for image, kinds, prompt, attention in zip(images, scenes, prompts, maps):
        classes = judge.classes([image])[0]
        for kind in kinds:
            side = int(attention.shape[0] ** 0.5)
            cells = classes.reshape(side, len(classes) // side, side, -1).swapaxes(1, 2)
            cover = (cells == 1 + judge.kinds.index(kind)).mean((2, 3)).ravel()
            if cover.max() < 0.5:
                continue
            token = _token(pipe, prompt, kind)
            hits.append(cover[int(attention[:, token].argmax())] > 0)
            areas.append(area_under_roc(attention[:, token].numpy(), cover >= 0.5))
    return {
        "base_pair_both": _mean(both), "attention_pointing": _mean(hits),
        "attention_auc": round(float(np.mean(areas)), 4) if areas else 0.0,
    }  # fmt: skip


def _token(pipe: StableDiffusionPipeline, prompt: str, word: str) -> int:
    """Position of a word that the tokenizer keeps whole."""
    ids = pipe.tokenizer(prompt).input_ids
    (own,) = pipe.tokenizer(word, add_special_tokens=False).input_ids
    return ids.index(own)


def area_under_roc(scores: Float[np.ndarray, " L"], positive: np.ndarray) -> float:
    """Chance that a positive place scores higher than another one; ties count half."""
    n = int(positive.sum())
    ranks = rankdata(scores)[positive].sum()
    return float((ranks - n * (n + 1) / 2) / (n * (len(scores) - n)))


def _mean(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4) if len(hits) else 0.0
