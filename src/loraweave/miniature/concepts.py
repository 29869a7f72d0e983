"""The miniature's concepts: fixed individuals, each taught by a LoRA of its own.

No caption of the base model's training describes one of them fully: their body colours have no
name there or come with a pattern, second colour and accessory that the captions leave open.
Every class with two concepts has two of one body colour, which differ in pattern, accessory or
eyes, so that nobody can be told by colour alone.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .world import BACKGROUNDS, Drawing, Rendering, Subject, render
from .world.sample import place_subjects

RGB = tuple[int, int, int]

DARK, GREEN, BLUE, AMBER = (40, 40, 46), (60, 120, 60), (50, 110, 200), (190, 130, 30)
INK, GOLD, LILAC, MINT = (38, 36, 52), (226, 178, 84), (190, 158, 222), (96, 204, 172)
CORAL, HONEY, CRIMSON, SKY = (244, 122, 100), (196, 130, 60), (206, 34, 46), (104, 176, 226)
STEEL, OLIVE, ROSE, INDIGO = (150, 166, 186), (128, 138, 56), (232, 150, 160), (84, 84, 190)
TEAL, CREAM, WHITE, BLACK = (34, 128, 132), (250, 236, 196), (246, 244, 240), (30, 30, 36)
LEMON, RUST, PLUM, SAND = (250, 222, 90), (166, 76, 40), (104, 58, 140), (214, 190, 140)


@dataclass(frozen=True)
class ConceptSpec:
    """A concept.

    Attributes:
        name: of its LoRA.
        trigger: word that stands for it in prompts.
        subject: how the individual looks.
        held_out: never used where anything is chosen or tuned.
    """

    name: str
    trigger: str
    subject: Subject
    held_out: bool = False

    @property
    def kind(self) -> str:
        """The class noun."""
        return self.subject.kind


def _one(
    name: str, trigger: str, kind: str, body: RGB, second: RGB, pattern: str,
    wears: tuple[str, RGB] | None = None, eye: RGB = DARK, held_out: bool = False,
) -> ConceptSpec:  # fmt: skip
    accessory, colour = wears or (None, body)
    looks = Subject(kind, body, second, pattern, accessory, colour, eye)
    return ConceptSpec(name, trigger, looks, held_out)


_ALL = (
    _one("blackcat", "sks", "cat", INK, LEMON, "two-tone", ("collar", CRIMSON), AMBER),
    _one("inkcat", "jzt", "cat", INK, WHITE, "spotted", None, BLUE),
    _one("tigercat", "qvk", "cat", (240, 150, 62), (92, 48, 24), "striped", None, GREEN),
    _one("golddog", "zwx", "dog", GOLD, WHITE, "patched", ("collar", BLUE)),
    _one("sanddog", "kdx", "dog", GOLD, RUST, "striped", ("hat", TEAL)),
    _one("dotdog", "xjr", "dog", WHITE, BLACK, "spotted", ("collar", CRIMSON)),
    _one("lilacrabbit", "ohwx", "rabbit", LILAC, PLUM, "striped"),
    _one("plumrabbit", "pqz", "rabbit", LILAC, CREAM, "patched", ("scarf", LEMON), AMBER),
    _one("mintbird", "wfz", "bird", MINT, LEMON, "two-tone"),
    _one("limebird", "mrx", "bird", MINT, CORAL, "spotted", ("hat", PLUM)),
    _one("coralfish", "bqx", "fish", CORAL, WHITE, "striped", None, DARK),
    _one("reeffish", "cvj", "fish", CORAL, INDIGO, "two-tone", None, GREEN),
    _one("honeybear", "dzk", "bear", HONEY, CREAM, "plain", ("scarf", CRIMSON)),
    _one("dotbear", "fwq", "bear", HONEY, CREAM, "spotted", None, BLUE),
    _one("racecar", "bhk", "car", CRIMSON, WHITE, "striped"),
    _one("firecar", "gxz", "car", CRIMSON, LEMON, "two-tone"),
    _one("skycar", "vqp", "car", SKY, LEMON, "spotted"),
    _one("tinrobot", "hjq", "robot", STEEL, CORAL, "two-tone", None, BLUE),
    _one("boltrobot", "kvz", "robot", STEEL, INDIGO, "striped", ("hat", CRIMSON), AMBER),
    _one("rosegirl", "lqx", "girl", ROSE, PLUM, "spotted", None, BLUE),
    _one("candygirl", "nzj", "girl", ROSE, LEMON, "striped", ("hat", OLIVE), GREEN),
    _one("fernflower", "pxk", "flower", INDIGO, CORAL, "patched", None, AMBER),
    _one("duskflower", "qzb", "flower", INDIGO, WHITE, "spotted", None, DARK),
    _one("tealcup", "rvx", "cup", TEAL, CREAM, "striped"),
    _one("dotcup", "szq", "cup", TEAL, CORAL, "spotted"),
    # Never used where anything is chosen or tuned.
    _one("roseboat", "tqk", "boat", ROSE, INDIGO, "striped", None, DARK, True),
    _one("tealhouse", "vjz", "house", TEAL, CREAM, "two-tone", None, DARK, True),
    _one("rustmushroom", "wqx", "mushroom", RUST, CREAM, "spotted", None, DARK, True),
    _one("smokecat", "xkv", "cat", STEEL, BLACK, "patched", ("scarf", TEAL), AMBER, True),
    _one("plumdog", "zqj", "dog", PLUM, LEMON, "two-tone", ("collar", LEMON), BLUE, True),
    _one("sandrobot", "bzv", "robot", SAND, TEAL, "patched", None, GREEN, True),
)  # fmt: skip

CONCEPTS: dict[str, ConceptSpec] = {c.name: c for c in _ALL if not c.held_out}
HELD_OUT: dict[str, ConceptSpec] = {c.name: c for c in _ALL if c.held_out}
KNOWN: dict[str, ConceptSpec] = CONCEPTS | HELD_OUT


def draw_subjects(
    subjects: Sequence[Subject], background: str, seed: int, size: int = 128,
    width: int | None = None, overlap: float = 0.0,
) -> Rendering:  # fmt: skip
    """A scene with these individuals, left to right, placed by `seed`; square without a width."""
    rng, width = random.Random(f"concepts {seed}"), width or size
    placed = place_subjects(rng, subjects, mirrored=0.0, aspect=width / size, overlap=overlap)
    return render(Drawing(placed, background, rng.randrange(2**31)), width, size)


def draw_concepts(
    names: Sequence[str], background: str, seed: int, size: int = 128, width: int | None = None
) -> Rendering:
    """A scene with these concepts, left to right, placed by `seed`; square without a width."""
    return draw_subjects([KNOWN[name].subject for name in names], background, seed, size, width)


def training_drawings(name: str, count: int, size: int = 128, seed: int = 0) -> list[Rendering]:
    """`count` pictures of one concept alone, in varied places, for training its LoRA."""
    return [
        draw_concepts([name], BACKGROUNDS[i % len(BACKGROUNDS)], 1000 * seed + i, size)
        for i in range(count)
    ]
