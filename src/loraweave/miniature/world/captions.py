"""Words for drawings, from bare ("a cat and a dog") to full, with the place of every noun."""

import random

from .spec import COLOURS, Caption, Drawing, Subject

PLACES = {
    "meadow": "in the meadow", "beach": "at the beach", "snow": "in the snow",
    "desert": "in the desert", "forest": "in the forest", "night": "in the night",
    "city": "in the city", "room": "in a room",
}  # fmt: skip
RARE_WORDS = (
    "sks", "jzt", "qvk", "zwx", "kdx", "xjr", "ohwx", "pqz", "wfz", "mrx", "bqx", "cvj", "dzk",
    "fwq", "bhk", "gxz", "vqp", "hjq", "kvz", "lqx", "nzj", "pxk", "qzb", "rvx", "szq", "tqk",
    "vjz", "wqx", "xkv", "zqj", "bzv", "hzx", "jqv", "kzb", "lvq", "mzx", "nvq", "pvz", "qxj",
    "rzk", "sxv",
)  # fmt: skip
"""Words without a meaning, kept in the vocabulary as one token each, free to be triggers."""

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


def nearest_colour_name(colour: tuple[int, int, int]) -> str:
    """The palette's name that is closest to a colour."""
    return min(COLOURS, key=lambda n: sum((a - b) ** 2 for a, b in zip(COLOURS[n], colour)))


def article(words: str) -> str:
    """ "a" or "an", by the first letter."""
    return "an" if words[0] in "aeiou" else "a"


def plural(kind: str) -> str:
    """Two of a class."""
    return kind + ("es" if kind == "fish" else "s")


class _Writer:
    def __init__(self):
        self.text = ""

    def add(self, words: str) -> tuple[int, int]:
        if self.text and words and not words.startswith(","):
            self.text += " "
        start = len(self.text)
        self.text += words
        return start, len(self.text)


def _adjectives(rng: random.Random, subject: Subject, detail: float) -> list[str]:
    words = []
    if subject.colour_name and rng.random() < detail:
        words.append(subject.colour_name)
    if subject.pattern != "plain" and rng.random() < detail * 0.8:
        words.append(subject.pattern)
    if rng.random() < 0.12:
        words.insert(0, rng.choice(RARE_WORDS))
    return words


def _extras(rng: random.Random, subject: Subject, detail: float) -> str:
    if subject.accessory and rng.random() < detail:
        colour = nearest_colour_name(subject.accessory_colour)
        return f"with {article(colour)} {colour} {subject.accessory}"
    return ""


def caption_drawing(
    drawing: Drawing, seed: int = 0, detail: float = 0.55, relations: bool = True
) -> Caption:
    """Describe a drawing.

    Args:
        drawing: the scene.
        seed: chooses the wording; the same seed gives the same words.
        detail: probability that an attribute is named, 0 (bare) to 1 (full).
        relations: may say "left of", "right of" and "above".
    """
    rng = random.Random(f"caption {seed}")  # never in step with the drawing of the same seed
    subjects, out = drawing.subjects, _Writer()
    nouns: list[tuple[int, int] | None] = [None] * len(subjects)
    modifiers: list[tuple[tuple[int, int], ...]] = [()] * len(subjects)
    order = list(range(len(subjects)))
    relation = _relation(rng, drawing) if relations else None
    if relation is not None:
        order, joiner = relation
    else:
        rng.shuffle(order)
        joiner = "and"
    groups = _groups(rng, [(i, subjects[i]) for i in order], relation is None)
    for position, members in enumerate(groups):
        if position:
            out.add(joiner if position == len(groups) - 1 else ",")
        first = subjects[members[0]]
        if len(members) > 1:
            out.add(_NUMBERS[len(members)])
            noun = plural(first.kind)
            for member in members:
                nouns[member] = (len(out.text) + 1, len(out.text) + 1 + len(noun))
            out.add(noun)
            continue
        words = _adjectives(rng, first, detail)
        out.add(article((words or [first.kind])[0]))
        modifiers[members[0]] = tuple(out.add(word) for word in words)
        nouns[members[0]] = out.add(first.kind)
        if extra := _extras(rng, first, detail):
            out.add(extra)
    if rng.random() < 0.35 + 0.6 * detail:
        out.add(PLACES[drawing.background])
    return Caption(out.text, tuple(nouns), tuple(modifiers))


def _groups(rng: random.Random, ordered, may_join: bool) -> list[list[int]]:
    """Subjects of one class may share a phrase ("two cats")."""
    groups: list[list[int]] = []
    kinds: dict[str, list[int]] = {}
    join = may_join and rng.random() < 0.6
    for i, subject in ordered:
        if join and subject.kind in kinds:
            kinds[subject.kind].append(i)
        else:
            kinds[subject.kind] = [i]
            groups.append(kinds[subject.kind])
    return groups


def _relation(rng: random.Random, drawing: Drawing) -> tuple[list[int], str] | None:
    if len(drawing.subjects) != 2 or rng.random() > 0.25:
        return None
    a, b = drawing.subjects
    if abs(a.y - b.y) > 0.3:
        return ([0, 1] if a.y < b.y else [1, 0]), "above"
    left_first = [0, 1] if a.x < b.x else [1, 0]
    return (left_first, "left of") if rng.random() < 0.5 else (left_first[::-1], "right of")
