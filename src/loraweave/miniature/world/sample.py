"""Random drawings: which subjects, how they look and where they stand."""

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .spec import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOURS,
    KINDS,
    OWN_ACCESSORIES,
    OWN_BACKGROUNDS,
    PATTERNS,
    RGB,
    Drawing,
    Subject,
)  # fmt: skip

EYES: tuple[RGB, ...] = ((40, 40, 46), (60, 120, 60), (50, 110, 200), (190, 130, 30))

CROWDED = 1.35  # how much larger subjects are that overlap
# A subject's side, as a fraction of the picture's, by the number of subjects in the scene.
SIZES = {1: (0.50, 0.72), 2: (0.36, 0.47), 3: (0.27, 0.33), 4: (0.22, 0.26), 5: (0.18, 0.21)}


@dataclass(frozen=True)
class WorldSettings:
    """Which part of the world to draw from.

    `counts[i]` is the weight of scenes with i + 1 subjects; `same_kind` the probability that a
    scene of several subjects repeats a class (with three or more, as often thrice as twice);
    `overlap` that subjects stand in each other's way; `nameless` that of a body colour without a
    name; `above` that of one subject hovering above another; `mirrored` that of facing left.
    """

    kinds: tuple[str, ...] = KINDS
    backgrounds: tuple[str, ...] = BACKGROUNDS
    patterns: tuple[str, ...] = PATTERNS
    counts: tuple[float, ...] = (0.3, 0.4, 0.15, 0.1, 0.05)
    accessories: tuple[str, ...] = ACCESSORIES
    same_kind: float = 0.2
    overlap: float = 0.1
    nameless: float = 0.25
    patterned: float = 0.45
    accessory: float = 0.2
    above: float = 0.08
    mirrored: float = 0.5


FULL_WORLD = WorldSettings()
TAUGHT_WORLD = WorldSettings(counts=(0.32, 0.4, 0.18, 0.06, 0.04), mirrored=0.0)
"""What the base model learns. All face one way: where a head is to be is what a model of this
size learns last (it draws two)."""
BUSY_WORLD = replace(TAUGHT_WORLD, counts=(0.22, 0.34, 0.2, 0.12, 0.12))
"""The same with more scenes of many: at 256 pixels the smallest subjects can be told."""
CROWDED_WORLD = WorldSettings(
    backgrounds=BACKGROUNDS + OWN_BACKGROUNDS,
    counts=(0.2, 0.25, 0.2, 0.2, 0.15),
    accessories=ACCESSORIES + OWN_ACCESSORIES,
)
"""What segmenters learn: small subjects are the hardest, and LoRAs bring places and accessories."""
FIRST_WORLD = WorldSettings(
    kinds=("cat", "dog", "rabbit", "bird", "car", "flower"),
    backgrounds=("meadow", "beach", "snow", "desert"),
    counts=(0.4, 0.6),
    accessories=("collar", "hat"),
    same_kind=0.12,
    overlap=0.0,
    accessory=0.15,
    above=0.0,
    mirrored=0.0,
)
"""What it learns first."""


def _jitter(rng: random.Random, colour: RGB, amount: int = 12) -> RGB:
    r, g, b = (min(255, max(0, c + rng.randint(-amount, amount))) for c in colour)
    return r, g, b


def _any_colour(rng: random.Random) -> RGB:
    hsv = rng.random(), rng.uniform(0.15, 0.9), rng.uniform(0.25, 0.98)
    r, g, b = (int(255 * c) for c in colorsys.hsv_to_rgb(*hsv))
    return r, g, b


def _distance(a: RGB, b: RGB) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b)) ** 0.5


def sample_subject(rng: random.Random, kind: str, world: WorldSettings) -> Subject:
    """One subject of a class with random attributes, not placed yet."""
    name = None if rng.random() < world.nameless else rng.choice(list(COLOURS))
    body = _any_colour(rng) if name is None else _jitter(rng, COLOURS[name])
    second = body
    while _distance(second, body) < 110:
        second = _jitter(rng, rng.choice(list(COLOURS.values())))
    patterned = [p for p in world.patterns if p != "plain"]
    accessory = rng.choice(world.accessories) if rng.random() < world.accessory else None
    return Subject(
        kind=kind, body=body, second=second,
        pattern=rng.choice(patterned) if rng.random() < world.patterned else "plain",
        accessory=accessory,
        accessory_colour=_jitter(rng, rng.choice(list(COLOURS.values()))),
        eye=rng.choice(EYES), colour_name=name,
    )  # fmt: skip


def half_blended(one: Subject, other: Subject) -> Subject:
    """Half of one and half of another: colours between theirs, the other's accessory."""
    return replace(
        one, body=_between(one.body, other.body), second=_between(one.second, other.second),
        accessory=other.accessory, accessory_colour=other.accessory_colour, colour_name=None,
    )  # fmt: skip


def _between(a: RGB, b: RGB) -> RGB:
    red, green, blue = ((x + y) // 2 for x, y in zip(a, b))
    return red, green, blue


def place_subjects(
    rng: random.Random,
    subjects: Sequence[Subject],
    above: float = 0.0,
    mirrored: float = 0.5,
    overlap: float = 0.0,
    aspect: float = 1.0,
) -> tuple[Subject, ...]:
    """Give each subject a place, left to right, and a size that fits their number.

    Args:
        rng: decides everything.
        subjects: 1 to 5, from left to right; later ones stand in front.
        above, mirrored, overlap: probabilities, see `WorldSettings`.
        aspect: width of the picture over its height, at least 1; subjects are as large as in a
            square picture with as many to a square.

    Raises:
        ValueError: no subject, or more than 5.
    """
    n = len(subjects)
    if not 1 <= n <= max(SIZES):
        raise ValueError(f"a scene has 1 to {max(SIZES)} subjects, not {n}")
    if n == 2 and rng.random() < above:
        return _stack(rng, subjects, mirrored)
    base, placed = rng.uniform(*SIZES[math.ceil(n / aspect)]), []
    if n > 1 and overlap and rng.random() < overlap:
        base *= CROWDED
    for i, subject in enumerate(subjects):
        size = base * rng.uniform(0.93, 1.07)
        wide = size / aspect
        slack = max(0.0, 1 / n - wide)
        x = (i + 0.5) / n + rng.uniform(-0.45, 0.45) * slack
        x = min(1 - wide / 2, max(wide / 2, x))
        y = rng.uniform(0.80, 0.95)
        placed.append(subject.placed(x, y, size, rng.random() < mirrored))
    return tuple(placed)


def _stack(rng: random.Random, subjects: Sequence[Subject], mirrored: float) -> tuple[Subject, ...]:
    size, x = rng.uniform(0.36, 0.42), rng.uniform(0.3, 0.7)
    upper = subjects[0].placed(x + rng.uniform(-0.06, 0.06), 0.46, size, rng.random() < mirrored)
    lower = subjects[1].placed(x, 0.93, size, rng.random() < mirrored)
    return upper, lower


def sample_drawing(seed: int, world: WorldSettings = FULL_WORLD) -> Drawing:
    """A random drawing, the same for the same seed and settings."""
    rng = random.Random(seed)
    n = rng.choices(range(1, len(world.counts) + 1), world.counts)[0]
    if n > 1 and rng.random() < world.same_kind:
        kind = rng.choice(world.kinds)
        alike = 3 if n > 2 and rng.random() < 0.5 else 2
        others = [k for k in world.kinds if k != kind]
        kinds = [kind] * alike + rng.sample(others, n - alike)
    else:
        kinds = rng.sample(world.kinds, n)
    rng.shuffle(kinds)
    subjects = [sample_subject(rng, kind, world) for kind in kinds]
    placed = place_subjects(rng, subjects, world.above, world.mirrored, world.overlap)
    return Drawing(placed, rng.choice(world.backgrounds), rng.randrange(2**31))
