"""What a drawn scene is made of: subjects with free attributes on a background.

All lengths are fractions of the picture's side; colours are 8-bit RGB triples.
"""

from dataclasses import dataclass, field, replace

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 48),
    "orange": (242, 140, 30),
    "yellow": (246, 216, 52),
    "green": (52, 150, 70),
    "blue": (42, 98, 216),
    "purple": (138, 54, 178),
    "pink": (246, 142, 186),
    "brown": (122, 76, 44),
    "black": (34, 34, 40),
    "white": (244, 244, 240),
    "gray": (140, 144, 150),
}
"""The colours that captions name."""

PATTERNS = ("plain", "striped", "spotted", "patched", "two-tone")
ACCESSORIES = ("collar", "hat", "scarf")
OWN_ACCESSORIES = ("wizard hat", "rainbow scarf")
"""Accessories of single LoRAs, in no scene of the world."""
KINDS = (
    "cat", "dog", "rabbit", "bird", "fish", "bear",
    "car", "boat", "house", "flower", "mushroom", "cup", "robot", "girl",
)  # fmt: skip
BACKGROUNDS = ("meadow", "beach", "snow", "desert", "forest", "night", "city", "room")
OWN_BACKGROUNDS = ("candyland", "moon")
"""Places of single LoRAs, in no scene of the world."""


@dataclass(frozen=True)
class Subject:
    """One thing in a scene.

    `x` is the horizontal centre and `y` the foot of the subject, `size` its side, all in
    fractions of the picture. `colour_name` is None when the body's colour has no name.
    """

    kind: str
    body: RGB
    second: RGB
    pattern: str = "plain"
    accessory: str | None = None
    accessory_colour: RGB = COLOURS["red"]
    eye: RGB = (30, 30, 36)
    mirrored: bool = False
    size: float = 0.6
    x: float = 0.5
    y: float = 0.85
    colour_name: str | None = None

    def placed(self, x: float, y: float, size: float, mirrored: bool) -> "Subject":
        """The same individual somewhere else."""
        return replace(self, x=x, y=y, size=size, mirrored=mirrored)


@dataclass(frozen=True)
class Drawing:
    """A whole scene: subjects from back to front, a background, and a seed for its details."""

    subjects: tuple[Subject, ...]
    background: str
    seed: int = 0


@dataclass(frozen=True)
class Caption:
    """Words for a drawing.

    `nouns[i]` is the character span (start, end) of the noun of `drawing.subjects[i]` in
    `text`; several subjects may share one span ("two cats"). None when it is not named.
    `modifiers[i]` are the spans of the words before that noun that belong to it.
    """

    text: str
    nouns: tuple[tuple[int, int] | None, ...] = field(default=())
    modifiers: tuple[tuple[tuple[int, int], ...], ...] = field(default=())
