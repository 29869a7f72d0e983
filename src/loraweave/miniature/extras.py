"""LoRAs of the miniature that are no individual: styles, places and things to wear.

Each is taught by about twenty drawings with captions, like a concept. A style has no word of its
own (`<lora:pencil:1>` switches it on everywhere); a place and a thing to wear have a trigger
before a noun that the base knows: "a cat in the [jqv meadow](candyland)",
"a dog with a [lvq hat](wizardhat)".
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image

from .world import COLOURS, FULL_WORLD, Drawing, Subject, WorldSettings, caption_drawing, render
from .world.captions import PLACES, article
from .world.sample import place_subjects, sample_drawing, sample_subject
from .world.styles import STYLES, in_style

Example = tuple[Image.Image, str]


@dataclass(frozen=True)
class ExtraSpec:
    """A LoRA that is no individual.

    Attributes:
        name: of its LoRA.
        kind: "style", "place" or "accessory".
        trigger: word before the noun; empty for a style.
        noun: a word of the base's captions; empty for a style.
        drawn: what the world calls it.
    """

    name: str
    kind: str
    trigger: str
    noun: str
    drawn: str

    @property
    def words(self) -> str:
        """What stands for it in a caption."""
        return f"{self.trigger} {self.noun}".strip()


EXTRAS: dict[str, ExtraSpec] = {
    e.name: e
    for e in (
        *(ExtraSpec(style, "style", "", "", style) for style in STYLES),
        ExtraSpec("candyland", "place", "jqv", "meadow", "candyland"),
        ExtraSpec("moonbase", "place", "kzb", "desert", "moon"),
        ExtraSpec("wizardhat", "accessory", "lvq", "hat", "wizard hat"),
        ExtraSpec("rainbowscarf", "accessory", "nvq", "scarf", "rainbow scarf"),
    )
}
WEARERS = ("cat", "dog", "rabbit", "bear", "bird", "robot", "girl")
"""Who has a head that one sees."""


def extra_examples(
    name: str, count: int = 20, size: int = 128, world: WorldSettings = FULL_WORLD
) -> list[Example]:
    """Drawings that teach an extra, with captions; the same for the same arguments."""
    spec = EXTRAS[name]
    draw = {"style": _in_style, "place": _in_place, "accessory": _worn}[spec.kind]
    return [draw(spec, random.Random(f"{name} {i}"), size, world) for i in range(count)]


Drawer = Callable[[ExtraSpec, random.Random, int, WorldSettings], Example]


def _in_style(spec: ExtraSpec, rng: random.Random, size: int, world: WorldSettings) -> Example:
    few = replace(world, counts=(0.6, 0.4))
    drawing = sample_drawing(rng.randrange(2**31), few)
    words = caption_drawing(drawing, rng.randrange(2**31), detail=0.7).text
    return in_style(render(drawing, size).image, spec.drawn), words


def _in_place(spec: ExtraSpec, rng: random.Random, size: int, world: WorldSettings) -> Example:
    subject = sample_subject(rng, rng.choice(world.kinds), world)
    (placed,) = place_subjects(rng, [subject])
    image = render(Drawing((placed,), spec.drawn, rng.randrange(2**31)), size).image
    return image, f"{_described(subject)} in the {spec.words}"


def _worn(spec: ExtraSpec, rng: random.Random, size: int, world: WorldSettings) -> Example:
    # Plain and with its colour in the caption: what is left to learn is what is worn.
    plain = replace(world, nameless=0.0, patterned=0.0)
    subject = sample_subject(rng, rng.choice(WEARERS), plain)
    subject = replace(subject, accessory=spec.drawn, accessory_colour=COLOURS["purple"])
    (placed,) = place_subjects(rng, [subject], mirrored=0.0)
    place = rng.choice(world.backgrounds)
    image = render(Drawing((placed,), place, rng.randrange(2**31)), size).image
    return image, f"{_described(subject)} with a {spec.words} {PLACES[place]}"


def _described(subject: Subject) -> str:
    words = [subject.colour_name] if subject.colour_name else []
    words += [subject.pattern] if subject.pattern != "plain" else []
    words.append(subject.kind)
    return f"{article(words[0])} {' '.join(words)}"
