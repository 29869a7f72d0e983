"""Prompts and scenes with the miniature's concepts, for demos, checks and benchmarks.

Scenes for choosing settings and scenes for reporting are split here, once, by seed.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..layout.boxes import Box, tight_box
from .concepts import CONCEPTS, KNOWN, draw_subjects
from .world import BACKGROUNDS, COLOURS, Rendering, Subject
from .world.captions import PLACES
from .world.styles import STYLES

Split = Literal["tuning", "report"]
SPLIT_SEEDS: dict[Split, int] = {"tuning": 4242, "report": 31_000}
SUITES: dict[str, int] = {
    "pairs": 2, "same_class": 2, "three": 3, "four": 4, "five": 5, "style": 2,
    "boxes2": 2, "boxes3": 3, "boxes4": 4, "boxes5": 5, "attributes": 1,
}  # fmt: skip
"""Number of concepts in the scenes of each suite."""
PLACED = ("boxes2", "boxes3", "boxes4", "boxes5", "attributes")
"""Suites whose scenes say where each concept is to be."""
PLAIN_SUBJECT = "other"
"""What the subject without a LoRA is called."""
ATTRIBUTES = tuple(name for name in COLOURS if name not in ("gray", "brown"))
"""Colours that no background and no part of a subject has by itself."""


@dataclass(frozen=True)
class ConceptScene:
    """Concepts in one place, left to right, the seed of the noise, and a style LoRA or none.

    A `placed` one has a box for each concept; where they are depends on the seed. One with an
    `attribute`, class and colour, has besides its concepts a subject without a LoRA of that class
    and colour.
    """

    names: tuple[str, ...]
    background: str
    seed: int
    style: str | None = None
    placed: bool = False
    attribute: tuple[str, str] | None = None

    @property
    def loras(self) -> tuple[str, ...]:
        """All LoRAs of the prompt."""
        return self.names if self.style is None else (*self.names, self.style)

    @property
    def prompt(self) -> str:
        """The prompt with its markup."""
        return self.prompt_of(self.names)

    @property
    def width(self) -> int:
        """Of the picture, 128 pixels high; a placed scene is wide enough for its concepts.

        Subjects of a square picture with three or more are smaller than what the model draws well;
        LoRA-Composer's own pictures are up to twice as wide as high, too.
        """
        return max(128, 64 * len(self.names)) if self.placed else 128

    def drawing(self) -> Rendering:
        """What the scene looks like when it is drawn."""
        subjects = [KNOWN[name].subject for name in self.names]
        if self.attribute is not None:
            kind, colour = self.attribute
            body = COLOURS[colour]
            subjects.append(Subject(kind, body, body, colour_name=colour))
        return draw_subjects(subjects, self.background, self.seed, width=self.width)

    def boxes(self) -> dict[str, Box]:
        """Of each concept's subject in the drawing, as tight as it gets: left, top, right, bottom
        as fractions of the picture."""
        names = self.names if self.attribute is None else (*self.names, PLAIN_SUBJECT)
        return {name: tight_box(mask) for name, mask in zip(names, self.drawing().masks)}

    @property
    def _plain(self) -> list[str]:
        """The words of the subject without a LoRA."""
        if self.attribute is None:
            return []
        return [f"[{self.attribute[1]} {self.attribute[0]}]({PLAIN_SUBJECT})"]

    def prompt_of(self, names: Sequence[str]) -> str:
        """The prompt with some of the concepts."""
        text = listed([*marked(names), *self._plain], self.background)
        return text if self.style is None else f"{text} <lora:{self.style}:1>"


def marked_prompt(names: Sequence[str], background: str | None) -> str:
    """`a [sks cat](blackcat) and a [zwx dog](golddog) in the meadow`."""
    return listed(marked(names), background)


def marked(names: Sequence[str]) -> list[str]:
    """`[sks cat](blackcat)`, ..."""
    return [f"[{KNOWN[n].trigger} {KNOWN[n].kind}]({n})" for n in names]


def plain_prompt(names: Sequence[str], background: str | None) -> str:
    """The same prompt without LoRAs: the bare nouns."""
    return listed([KNOWN[n].kind for n in names], background)


def own_prompt(name: str, background: str | None) -> str:
    """One concept's prompt as other programs write it, without markup."""
    return listed([f"{KNOWN[name].trigger} {KNOWN[name].kind}"], background)


def listed(things: Sequence[str], background: str | None) -> str:
    """`a cat, a dog and a bird in the meadow`; no class of the world needs an "an"."""
    spans = [f"a {thing}" for thing in things]
    text = spans[0] if len(spans) == 1 else ", ".join(spans[:-1]) + " and " + spans[-1]
    return f"{text} {PLACES[background]}" if background else text


def scenes(suite: str, split: Split, count: int, seeds: int = 1) -> list[ConceptScene]:
    """`count` random scenes of a suite, each with `seeds` noises: the same for every caller.

    Concepts are of different classes, but in `same_class`; held-out concepts are in none.

    Raises:
        KeyError: unknown suite or split.
    """
    rng = random.Random(f"{suite} {SPLIT_SEEDS[split]}")
    kinds: dict[str, list[str]] = {}
    for name, concept in CONCEPTS.items():
        kinds.setdefault(concept.kind, []).append(name)
    n, made = SUITES[suite], []
    for _ in range(count):
        if suite == "same_class":
            several = [names for names in kinds.values() if len(names) > 1]
            names = rng.sample(rng.choice(several), n)
        else:
            names = [rng.choice(kinds[kind]) for kind in rng.sample(list(kinds), n)]
        place = rng.choice(BACKGROUNDS)
        style = rng.choice(list(STYLES)) if suite == "style" else None
        noises = itertools.islice(iter(lambda: rng.randrange(2**31), None), seeds)
        placed, attribute = suite in PLACED, None
        if suite == "attributes":
            others = [kind for kind in kinds if kind != KNOWN[names[0]].kind]
            attribute = rng.choice(others), rng.choice(ATTRIBUTES)
        made += [
            ConceptScene(tuple(names), place, seed, style, placed, attribute) for seed in noises
        ]
    return made
