"""The world that the miniature knows: drawn scenes with everything about them known."""

from .captions import caption_drawing
from .render import Rendering, render
from .sample import (
    BUSY_WORLD,
    CROWDED_WORLD,
    FIRST_WORLD,
    FULL_WORLD,
    TAUGHT_WORLD,
    WorldSettings,
    sample_drawing,
)  # fmt: skip
from .spec import BACKGROUNDS, COLOURS, KINDS, PATTERNS, Caption, Drawing, Subject

__all__ = [
    "BACKGROUNDS", "BUSY_WORLD", "COLOURS", "CROWDED_WORLD", "FIRST_WORLD", "FULL_WORLD", "KINDS",
    "PATTERNS", "TAUGHT_WORLD", "Caption", "Drawing", "Rendering", "Subject", "WorldSettings",
    "caption_drawing", "render", "sample_drawing",
]  # fmt: skip
