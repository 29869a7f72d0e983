"""What subjects wear: each drawn at the anchors that a class of subject names."""

from collections.abc import Callable
from typing import NamedTuple

from .pen import Pen, Point, shade
from .spec import COLOURS, RGB


class Anchors(NamedTuple):
    """Where accessories go: neck from point to point, top of the head, width of the head."""

    neck: tuple[Point, Point]
    top: Point
    width: float

    @property
    def knot(self) -> Point:
        """Where the end of a scarf hangs from the neck."""
        (x0, y0), (x1, y1) = self.neck
        return x0 + 0.3 * (x1 - x0), y0 + 0.3 * (y1 - y0)


GOLD = (250, 214, 70)


def _collar(p: Pen, at: Anchors, colour: RGB) -> None:
    p.line(*at.neck, width=0.06, colour=colour)
    (x0, y0), (x1, y1) = at.neck
    p.ellipse((x0 + x1) / 2 + 0.03, (y0 + y1) / 2 + 0.045, 0.032, 0.032, GOLD)


def _hat(p: Pen, at: Anchors, colour: RGB) -> None:
    (x, y), w = at.top, at.width
    p.rect(x - w / 2, y - 0.02, x + w / 2, y + 0.03, shade(colour, 0.75), 0.02)
    p.rect(x - w / 3.2, y - 0.13, x + w / 3.2, y + 0.01, colour, 0.02)


def _scarf(p: Pen, at: Anchors, colour: RGB) -> None:
    p.line(*at.neck, width=0.105, colour=colour)
    x, y = at.knot
    p.rect(x - 0.045, y, x + 0.045, min(0.99, y + 0.24), shade(colour, 0.85), 0.02)


def _wizard_hat(p: Pen, at: Anchors, colour: RGB) -> None:
    (x, y), w = at.top, at.width * 1.15
    top = y - 0.30
    p.poly((x - w / 2.6, y + 0.03), (x + 0.10 * w, top), (x + w / 2.6, y + 0.03), colour=colour)
    p.ellipse(x, y + 0.03, w / 1.7, 0.045, shade(colour, 0.8))
    band = y - 0.015
    p.rect(x - w / 2.7, band - 0.02, x + w / 2.7, band + 0.02, GOLD, 0.01)
    p.ellipse(x, (top + band) / 2, 0.03, 0.03, GOLD)


def _rainbow_scarf(p: Pen, at: Anchors, colour: RGB) -> None:
    (x0, y0), (x1, y1) = at.neck
    bands = [COLOURS[name] for name in ("red", "yellow", "green", "blue", "purple")]
    for i, band in enumerate(bands):
        shift = (i - 2) * 0.03
        p.line((x0, y0 + shift), (x1, y1 + shift), width=0.034, colour=band)
    x, y = at.knot
    for i, band in enumerate(bands):
        low = y + 0.05 + 0.055 * i
        if low < 0.97:
            p.rect(x - 0.06, low, x + 0.06, min(0.99, low + 0.055), band)


WORN: dict[str, Callable[[Pen, Anchors, RGB], None]] = {
    "collar": _collar, "hat": _hat, "scarf": _scarf,
    "wizard hat": _wizard_hat, "rainbow scarf": _rainbow_scarf,
}  # fmt: skip


def wear(pen: Pen, accessory: str, anchors: Anchors, colour: RGB) -> None:
    """Draw an accessory onto a finished subject.

    Raises:
        ValueError: no such accessory.
    """
    if accessory not in WORN:
        raise ValueError(f"unknown accessory {accessory!r}; there are: {', '.join(WORN)}")
    WORN[accessory](pen, anchors, colour)
