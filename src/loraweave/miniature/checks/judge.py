"""How far the judge can be trusted: on drawings, where the truth is known, and by eye."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from ...evaluate.verdicts import OUTCOMES
from ..codec import through
from ..concepts import KNOWN, draw_subjects
from ..judge import Judge
from ..scenes import PAIRS, ConceptScene, Split, scenes
from ..segmenter import at_places
from ..shipped import native_side
from ..style_reader import NAMES, StyleReader, styled
from ..world import FULL_WORLD, Rendering, Subject, render, sample_drawing
from ..world.sample import half_blended
from .pictures import CHECK_SEED

BLEND_APART = 100
"""Least distance of two bodies' colours (8-bit RGB) for half of each to be seen as such."""
LABELS = Path(__file__).parent.parent / "eye"
"""Generated pictures and how many of three viewers said of each concept that it is right."""


def reconstruction_psnr(vae: AutoencoderKL, count: int) -> float:
    """PSNR in dB of encoded and decoded scenes of the world, mean over pictures."""
    values = []
    for seed in range(count):
        image = render(sample_drawing(CHECK_SEED + seed, FULL_WORLD), native_side()).image
        difference = np.asarray(through(vae, [image])[0], float) - np.asarray(image, float)
        values.append(20 * np.log10(255) - 10 * np.log10((difference**2).mean()))
    return round(float(np.mean(values)), 2)


def class_accuracy(judge: Judge, vae: AutoencoderKL, count: int) -> float:
    """Share of drawn subjects most of whose visible places the judge gives to their class.

    On decoded scenes of the world; subjects of which less than the least area of an instance is
    visible do not count.
    """
    hits = []
    for seed in range(count):
        drawn = render(sample_drawing(CHECK_SEED + seed, FULL_WORLD), native_side())
        classes = judge.classes(through(vae, [drawn.image]))[0]
        least = judge.least_area[len(drawn.drawing.subjects)] * classes.size
        for subject, mask in zip(drawn.drawing.subjects, drawn.masks):
            seen = classes[at_places(mask)]
            if len(seen) >= least:
                mode = np.bincount(seen).argmax()
                hits.append(mode == 1 + judge.kinds.index(subject.kind))
    return _mean(hits)


def concept_accuracy(judge: Judge, vae: AutoencoderKL, count: int) -> dict[str, float]:
    """How often the instance nearest to a drawn concept's place has it as nearest concept.

    Among all known concepts, and among those of its class; on decoded drawings of pairs.
    """
    among_all, within_class = [], []
    for scene in scenes(PAIRS, "report", count):
        drawn = _drawn(scene, [KNOWN[name].subject for name in scene.names])
        instances = judge.instances(through(vae, [drawn.image])[0], 2)
        for name in scene.names:
            kind = KNOWN[name].kind
            found = next((i for i in instances if i.kind == kind), None)
            among_all.append(found is not None and found.nearest == name)
            alike = [n for n, concept in KNOWN.items() if concept.kind == kind]
            within_class.append(
                found is not None and max(alike, key=found.similarities.__getitem__) == name
            )
    return {
        "judge_concept_accuracy": _mean(among_all),
        "judge_within_class_accuracy": _mean(within_class),
    }


def _drawn(scene: ConceptScene, subjects: Sequence[Subject]) -> Rendering:
    return draw_subjects(subjects, scene.background, scene.seed, native_side())


@dataclass(frozen=True)
class Injured:
    """A drawing of a pair with a known failure.

    Attributes:
        image: through the autoencoder.
        names: of the two concepts that should be in it.
        truth: the outcome of each.
    """

    image: Image.Image
    names: tuple[str, ...]
    truth: tuple[str, ...]


def injured_scene(scene: ConceptScene, failure: str, vae: AutoencoderKL) -> Injured:
    """A pair with `failure` done to it: to one of the two, or to both if it is "swapped"."""
    rng = random.Random(scene.seed)
    first, second = (KNOWN[name].subject for name in scene.names)
    victim = rng.randrange(2)
    subjects, truth = [first, second], ["right", "right"]
    if failure != "right":
        truth[victim] = failure
    if failure == "missing":
        del subjects[victim]
    elif failure == "duplicated":
        subjects.append(subjects[victim])
        rng.shuffle(subjects)
    elif failure == "swapped":
        subjects = [replace(second, kind=first.kind), replace(first, kind=second.kind)]
        truth = ["swapped", "swapped"]
    elif failure == "blended":
        subjects[victim] = half_blended(subjects[victim], subjects[1 - victim])
    (image,) = through(vae, [_drawn(scene, subjects).image])
    return Injured(image, scene.names, tuple(truth))


def injured_scenes(vae: AutoencoderKL, split: Split, count: int) -> Iterator[Injured]:
    """`count` pairs, with every kind of failure and none in turn.

    Only pairs whose bodies differ enough are blended, or nobody could tell.
    """
    every = iter(scenes(PAIRS, split, 4 * count))
    for number in range(count):
        failure = OUTCOMES[number % len(OUTCOMES)]
        scene = next(every)
        while failure == "blended" and not _apart(scene):
            scene = next(every)
        yield injured_scene(scene, failure, vae)


def _apart(scene: ConceptScene) -> bool:
    first, second = (np.array(KNOWN[name].subject.body, float) for name in scene.names)
    return float(np.linalg.norm(first - second)) >= BLEND_APART


def failure_agreement(judge: Judge, vae: AutoencoderKL, count: int) -> float:
    """Cohen's kappa of the judge's outcomes with the truth, over concepts of injured scenes."""
    truth, said = [], []
    for injured in injured_scenes(vae, "report", count):
        verdict = judge.examine(injured.image, injured.names)
        truth += injured.truth
        said += [verdict.outcomes[name] for name in injured.names]
    return kappa(truth, said)


def kappa(truth: Sequence[str], said: Sequence[str]) -> float:
    """Cohen's kappa: agreement beyond what the two frequencies give by chance; 1 is perfect."""
    labels = sorted({*truth, *said})
    table = np.zeros((len(labels), len(labels)))
    for a, b in zip(truth, said):
        table[labels.index(a), labels.index(b)] += 1
    table /= table.sum()
    chance = float(table.sum(0) @ table.sum(1))
    return round((float(np.trace(table)) - chance) / (1 - chance), 4) if chance < 1 else 1.0


def eye_agreement(judge: Judge, folder: Path = LABELS) -> dict[str, float]:
    """Share of concepts of which the judge says what three viewers said before: right or not.

    Of all concepts, by the majority of the viewers, and of those on which all three agree.
    """
    labels = json.loads((folder / "labels.json").read_text())
    hits, agreed = [], []
    with Image.open(folder / "pictures.png") as sheet:
        side, across = labels["side"], sheet.width // labels["side"]
        for number, (scene, votes) in enumerate(zip(labels["scenes"], labels["votes"])):
            x, y = number % across * side, number // across * side
            verdict = judge.examine(sheet.crop((x, y, x + side, y + side)), scene)
            for name, right in zip(scene, votes):
                hit = (verdict.outcomes[name] == "right") == (right > labels["viewers"] / 2)
                hits.append(hit)
                if right in (0, labels["viewers"]):
                    agreed.append(hit)
    return {"judge_eye_agreement": _mean(hits), "judge_eye_agreement_unanimous": _mean(agreed)}


def style_accuracy(reader: StyleReader, vae: AutoencoderKL, count: int) -> float:
    """How often a decoded drawing in one of the styles, or in none, is read as such."""
    hits = []
    for number in range(count):
        style = NAMES[number % len(NAMES)]
        drawn = render(sample_drawing(CHECK_SEED + number, FULL_WORLD), native_side())
        image = styled(drawn.image, style)
        hits.append(reader.read(through(vae, [image]))[0] == style)
    return _mean(hits)


def _mean(hits: Sequence[bool]) -> float:
    return round(float(np.mean(hits)), 4) if len(hits) else 0.0
