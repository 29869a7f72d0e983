"""Random scenes of the miniature's concepts, for checks and benchmarks.

What the scenes of a suite have in common is a `SceneRule`. Scenes for choosing settings and scenes
for reporting are split here, once, by seed.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ..errors import SceneError
from ..layout.boxes import Box, containment, tight_box
from ..lora_ref import Data
from .concepts import CONCEPTS, HELD_OUT, KNOWN, draw_subjects
from .extras import EXTRAS, WEARERS
from .prompts import PLAIN_SUBJECT, enumerated, marked
from .shipped import native_side
from .world import BACKGROUNDS, COLOURS, Rendering, Subject, render
from .world.captions import PLACES
from .world.styles import STYLES

Split = Literal["tuning", "report"]
SPLIT_SEEDS: dict[Split, int] = {"tuning": 4242, "report": 31_000}
ATTRIBUTES = tuple(name for name in COLOURS if name not in ("gray", "brown"))
"""Colours that no background and no part of a subject has by itself."""
RELATIONS = ("left of", "right of", "above")
WORDINGS: tuple[Callable[[Sequence[str], str], str], ...] = (
    lambda things, place: f"{enumerated(things)} {place}",
    lambda things, place: f"{enumerated(things[::-1])} {place}",
    lambda things, place: f"{place}, {enumerated(things)}",
    lambda things, place: ", ".join([*things, place]),
    lambda things, place: f"{' with '.join(f'a {thing}' for thing in things)} {place}",
)
"""Ways to say that some things are somewhere; the first is the usual one."""


class SceneRule(Data):
    """What the scenes of a suite have in common.

    Attributes:
        name: of the suite; decides, with the split, which scenes there are.
        concepts: in each scene.
        classes: whether they are of different classes, or of one.
        pool: `held_out` concepts are in no other suite, so nothing was tuned on them.
        placed: every concept has a box; where it is depends on the scene's seed.
        crowded: of placed scenes with two concepts, that their boxes overlap; they are of the whole
            subjects, of which one may hide a part of the other.
        adds: besides the concepts a `style` LoRA; a `place` or an `accessory` LoRA with words of
            its own; a subject without a LoRA that has an `attribute`, its colour; or a `relation`
            of two concepts ("left of").
        wordings: each scene comes in all `WORDINGS`, with the same noise.
    """

    name: str
    concepts: Annotated[int, Field(ge=1, le=5)]
    classes: Literal["different", "same"] = "different"
    pool: Literal["usual", "held_out"] = "usual"
    placed: bool = False
    crowded: bool = False
    adds: Literal["style", "place", "accessory", "attribute", "relation"] | None = None
    wordings: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.classes == "same" and self.concepts != 2:
            raise SceneError("classes: same needs 2 concepts; no class has three")
        if (self.adds == "relation" or self.wordings) and self.concepts != 2:
            raise SceneError("relations and wordings are of 2 concepts")
        if self.adds is not None and self.wordings:
            raise SceneError("give wordings or something that scenes add, not both")
        if self.crowded and (self.concepts != 2 or not self.placed or self.adds is not None):
            raise SceneError("crowded: true is for placed: true with 2 concepts and no adds")
        if self.placed and self.adds in ("style", "relation"):
            raise SceneError(f"whether boxes are kept cannot be judged with adds: {self.adds}")
        if self.concepts + (self.adds == "attribute") > MOST:
            raise SceneError(f"a scene has {MOST} subjects at most, that without a LoRA included")
        if self.adds == "attribute" and not self.placed:
            raise SceneError("adds: attribute needs placed: true")
        return self


MOST = 5
"""Subjects of a scene."""
LEAST_COMMON, MEASURED_SIDE = 0.1, 128
"""Share of the first box that lies in the second in a crowded scene, and at how many pixels a side
that is measured."""
PAIRS = SceneRule(name="pairs", concepts=2)


@dataclass(frozen=True)
class ConceptScene:
    """Concepts in one place, left to right, the seed of the noise, and what comes on top.

    Attributes:
        names: of the concepts.
        background: where; of the noun's place in a scene with a `place`.
        seed: of the noise, and of where things are in a placed scene.
        style: a style LoRA, everywhere.
        placed: a box for each concept.
        attribute: class and colour of a subject without a LoRA.
        place: a LoRA of a place.
        worn: a LoRA of a thing to wear, and the concept that wears it.
        relation: of the first concept to the second.
        wording: number in `WORDINGS`.
        crowded: see `SceneRule`.
    """

    names: tuple[str, ...]
    background: str
    seed: int
    style: str | None = None
    placed: bool = False
    attribute: tuple[str, str] | None = None
    place: str | None = None
    worn: tuple[str, str] | None = None
    relation: str | None = None
    wording: int = 0
    crowded: bool = False

    @property
    def extras(self) -> tuple[str, ...]:
        """The LoRAs of no concept."""
        worn = None if self.worn is None else self.worn[0]
        return tuple(name for name in (self.style, self.place, worn) if name is not None)

    @property
    def subjects(self) -> int:
        """How many there are, with that without a LoRA."""
        return len(self.names) + (self.attribute is not None)

    @property
    def loras(self) -> tuple[str, ...]:
        """All LoRAs of the prompt."""
        return *self.names, *self.extras

    @property
    def prompt(self) -> str:
        """The prompt with its markup."""
        return self.prompt_of(self.names)

    @property
    def plain_prompt(self) -> str:
        """The same words without LoRAs and triggers."""
        nouns = dict(zip(self.names, (KNOWN[name].kind for name in self.names)))
        if self.attribute is not None:
            nouns[PLAIN_SUBJECT] = " ".join(self.attribute[::-1])
        return self._said(nouns, marked_up=False)

    @property
    def width(self) -> int:
        """Of the picture, as high as the miniature's own; a placed scene is wide enough for its
        concepts.

        Subjects of a square picture with three or more are smaller than what the model draws well;
        LoRA-Composer's own pictures are up to twice as wide as high, too.
        """
        return self._width_at(native_side())

    def _width_at(self, side: int) -> int:
        return max(side, side // 2 * len(self.names)) if self.placed else side

    def drawing(self, side: int | None = None) -> Rendering:
        """What the scene looks like when it is drawn, `side` pixels high, by default like the
        miniature's pictures."""
        side = side or native_side()
        subjects = [KNOWN[name].subject for name in self.names]
        if self.attribute is not None:
            kind, colour = self.attribute
            body = COLOURS[colour]
            subjects.append(Subject(kind, body, body, colour_name=colour))
        return draw_subjects(
            subjects, self.background, self.seed, side, self._width_at(side), float(self.crowded)
        )

    def alone(self, name: str) -> "ConceptScene":
        """The same with one of its concepts only."""
        worn = self.worn if self.worn is not None and self.worn[1] == name else None
        return replace(self, names=(name,), worn=worn, relation=None, wording=0, crowded=False)

    def boxes(self, side: int | None = None) -> dict[str, Box]:
        """Of each concept's subject in the drawing, as tight as it gets: left, top, right, bottom
        as fractions of the picture. `side` as in `drawing`."""
        names = self.names if self.attribute is None else (*self.names, PLAIN_SUBJECT)
        drawing = self.drawing(side)
        masks = _whole(drawing) if self.crowded else drawing.masks
        return {name: tight_box(mask) for name, mask in zip(names, masks)}

    def prompt_of(self, names: Sequence[str]) -> str:
        """The prompt with some of the concepts."""
        things = dict(zip(names, marked(names)))
        if self.attribute is not None:
            things[PLAIN_SUBJECT] = f"[{self.attribute[1]} {self.attribute[0]}]({PLAIN_SUBJECT})"
        text = self._said(things, marked_up=True)
        return text if self.style is None else f"{text} <lora:{self.style}:1>"

    def _said(self, things: Mapping[str, str], marked_up: bool) -> str:
        words, place = dict(things), PLACES[self.background]
        if self.worn is not None and self.worn[1] in words:
            words[self.worn[1]] += f" with a {_words(self.worn[0], marked_up)}"
        if self.place is not None:
            place = f"in the {_words(self.place, marked_up)}"
        if self.relation is not None and len(words) > 1:
            first, second = words.values()
            return f"a {first} {self.relation} a {second} {place}"
        return WORDINGS[self.wording]([*words.values()], place)


def _words(extra: str, marked_up: bool) -> str:
    spec = EXTRAS[extra]
    return f"[{spec.words}]({extra})" if marked_up else spec.noun


def scenes(rule: SceneRule, split: Split, count: int, seeds: int = 1) -> list[ConceptScene]:
    """`count` random scenes, each with `seeds` noises: the same for every caller.

    Raises:
        KeyError: unknown split.
        SceneError: the pool has too few classes for the rule.
    """
    rng = random.Random(f"{rule.name} {SPLIT_SEEDS[split]}")
    kinds = _kinds(rule)
    made = []
    for _ in range(count):
        if rule.classes == "same":
            names = rng.sample(rng.choice(list(kinds.values())), rule.concepts)
        else:
            names = [rng.choice(kinds[kind]) for kind in rng.sample(list(kinds), rule.concepts)]
        bare = ConceptScene(
            tuple(names), rng.choice(BACKGROUNDS), 0, placed=rule.placed, crowded=rule.crowded
        )
        scene = _with_addition(bare, rule, kinds, rng)
        for _ in range(seeds):
            seed = rng.randrange(2**31)
            while scene.crowded and not _overlap(replace(scene, seed=seed)):
                seed = rng.randrange(2**31)
            for wording in range(len(WORDINGS) if rule.wordings else 1):
                made.append(replace(scene, seed=seed, wording=wording))
    return made


def _whole(drawing: Rendering) -> list[np.ndarray]:
    """The mask of each subject as if nobody stood in front of it."""
    height, width = drawing.masks[0].shape
    return [
        render(replace(drawing.drawing, subjects=(one,)), width, height).masks[0]
        for one in drawing.drawing.subjects
    ]


def _overlap(scene: ConceptScene) -> bool:
    # Not at the miniature's size: which noises a suite has is not to change with it.
    first, second = scene.boxes(MEASURED_SIDE).values()
    return containment(first, second) >= LEAST_COMMON


def _kinds(rule: SceneRule) -> dict[str, list[str]]:
    """Names of the concepts that a rule's scenes may have, by class."""
    pool = HELD_OUT if rule.pool == "held_out" else CONCEPTS
    if rule.adds == "accessory":  # everybody can wear it, and nobody wears anything else
        pool = {
            name: concept for name, concept in pool.items()
            if concept.kind in WEARERS and concept.subject.accessory is None
        }  # fmt: skip
    kinds: dict[str, list[str]] = {}
    for name, concept in pool.items():
        kinds.setdefault(concept.kind, []).append(name)
    if rule.classes == "same":
        kinds = {kind: names for kind, names in kinds.items() if len(names) >= rule.concepts}
    needed = 1 if rule.classes == "same" else rule.concepts
    if len(kinds) < needed + (rule.adds == "attribute"):
        raise SceneError(f"the suite {rule.name!r} asks for more than its pool of concepts has")
    return kinds


def _with_addition(
    scene: ConceptScene, rule: SceneRule, kinds: Mapping[str, Sequence[str]], rng: random.Random
) -> ConceptScene:
    if rule.adds == "style":
        return replace(scene, style=rng.choice(list(STYLES)))
    if rule.adds == "attribute":
        there = {KNOWN[name].kind for name in scene.names}
        others = [kind for kind in kinds if kind not in there]
        return replace(scene, attribute=(rng.choice(others), rng.choice(ATTRIBUTES)))
    if rule.adds == "place":
        place = rng.choice([name for name, extra in EXTRAS.items() if extra.kind == "place"])
        return replace(scene, place=place, background=EXTRAS[place].noun)
    if rule.adds == "accessory":
        worn = rng.choice([name for name, extra in EXTRAS.items() if extra.kind == "accessory"])
        return replace(scene, worn=(worn, rng.choice(scene.names)))
    if rule.adds == "relation":
        return replace(scene, relation=rng.choice(RELATIONS))
    return scene
