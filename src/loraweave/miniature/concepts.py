"""The miniature's concepts: fixed individuals, each taught by a LoRA of its own.

No caption of the base model's training describes one of them fully: their body colours have no
name there or come with a pattern, second colour and accessory that the captions leave open.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from .world import BACKGROUNDS, FIRST_WORLD, Drawing, Rendering, Subject, render
from .world.sample import place_subjects


@dataclass(frozen=True)
class ConceptSpec:
    """A concept: its name, its trigger word, and how its individual looks."""

    name: str
    trigger: str
    subject: Subject

    @property
    def kind(self) -> str:
        """The class noun."""
        return self.subject.kind


def _concept(name: str, trigger: str, kind: str, body, second, pattern, **more) -> ConceptSpec:
    return ConceptSpec(name, trigger, Subject(kind, body, second, pattern, **more))


CONCEPTS: dict[str, ConceptSpec] = {
    c.name: c
    for c in (
        _concept("blackcat", "sks", "cat", (38, 36, 52), (244, 196, 60), "two-tone",
                 accessory="collar", accessory_colour=(226, 44, 60), eye=(190, 130, 30)),
        _concept("tigercat", "qvk", "cat", (240, 150, 62), (92, 48, 24), "striped",
                 eye=(60, 120, 60)),
        _concept("golddog", "zwx", "dog", (226, 178, 84), (250, 244, 226), "patched",
                 accessory="collar", accessory_colour=(40, 90, 210), eye=(40, 40, 46)),
        _concept("dotdog", "xjr", "dog", (246, 244, 240), (30, 30, 36), "spotted",
                 accessory="collar", accessory_colour=(214, 40, 48), eye=(40, 40, 46)),
        _concept("lilacrabbit", "ohwx", "rabbit", (190, 158, 222), (104, 58, 140), "striped",
                 eye=(40, 40, 46)),
        _concept("mintbird", "wfz", "bird", (96, 204, 172), (250, 236, 120), "two-tone",
                 eye=(40, 40, 46)),
        _concept("racecar", "bhk", "car", (206, 34, 46), (248, 248, 244), "striped"),
        _concept("skycar", "vqp", "car", (104, 176, 226), (250, 222, 90), "spotted"),
    )
}  # fmt: skip


def draw_concepts(names: Sequence[str], background: str, seed: int, size: int = 128) -> Rendering:
    """A scene with these concepts, left to right, placed by `seed`."""
    rng = random.Random(f"concepts {seed}")
    chosen = [CONCEPTS[name].subject for name in names]
    subjects = place_subjects(rng, chosen, mirrored=FIRST_WORLD.mirrored)
    return render(Drawing(subjects, background, rng.randrange(2**31)), size)


def training_drawings(name: str, count: int, size: int = 128, seed: int = 0) -> list[Rendering]:
    """`count` pictures of one concept alone, in varied places, for training its LoRA."""
    backgrounds = BACKGROUNDS[:4]
    return [
        draw_concepts([name], backgrounds[i % len(backgrounds)], 1000 * seed + i, size)
        for i in range(count)
    ]
