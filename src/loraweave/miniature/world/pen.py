"""Drawing one subject into its own transparent layer.

Shapes are given in the unit square of the subject (x to the right, y down), facing right. Body
shapes are collected in a mask, so that a pattern can be laid over the body and nowhere else.
"""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .spec import RGB

Point = tuple[float, float]
HEADROOM = 0.25  # above the unit square, for tall hats; a fraction of its side


def shade(colour: RGB, factor: float) -> RGB:
    """`colour` darkened (factor < 1) or lightened (factor > 1, towards white)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(255 - (255 - c) * (2 - factor)) for c in colour)  # type: ignore[return-value]


class Pen:
    """Draws on a layer of `side` pixels, with `head` pixels of room above the unit square.

    Args:
        side: pixels a side of the unit square, before reduction.
        body, second: the two colours of the subject.
        mirrored: flip left and right.
    """

    def __init__(self, side: int, body: RGB, second: RGB, mirrored: bool):
        self.side, self.body_colour, self.second, self.mirrored = side, body, second, mirrored
        self.head = round(HEADROOM * side)  # pixels above the unit square
        size = (side, side + self.head)
        self.layer = Image.new("RGBA", size, (0, 0, 0, 0))
        self.mask = Image.new("L", size, 0)
        self._draw = ImageDraw.Draw(self.layer)
        self._mask_draw = ImageDraw.Draw(self.mask)

    def _at(self, point: Point) -> Point:
        x = 1 - point[0] if self.mirrored else point[0]
        return x * self.side, point[1] * self.side + self.head

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (a, b), (c, d) = self._at((x0, y0)), self._at((x1, y1))
        return min(a, c), b, max(a, c), d

    def _targets(self, colour: RGB | None):
        if colour is None:
            return ((self._draw, (*self.body_colour, 255)), (self._mask_draw, 255))
        return ((self._draw, (*colour, 255)),)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, colour: RGB | None = None):
        """An ellipse; without `colour` it is part of the patterned body."""
        for draw, fill in self._targets(colour):
            draw.ellipse(self._box(cx - rx, cy - ry, cx + rx, cy + ry), fill=fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: RGB | None = None, r=0.0):
        """A rectangle with corners rounded by `r`."""
        for draw, fill in self._targets(colour):
            draw.rounded_rectangle(self._box(x0, y0, x1, y1), radius=r * self.side, fill=fill)

    def poly(self, *points: Point, colour: RGB | None = None):
        """A filled polygon."""
        for draw, fill in self._targets(colour):
            draw.polygon([self._at(p) for p in points], fill=fill)

    def line(self, *points: Point, width: float, colour: RGB | None = None):
        """A thick line with round ends."""
        pixels = [self._at(p) for p in points]
        w = max(1, round(width * self.side))
        for draw, fill in self._targets(colour):
            draw.line(pixels, fill=fill, width=w, joint="curve")
            for x, y in pixels:
                draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=fill)

    def eye(self, cx: float, cy: float, r: float, iris: RGB):
        """An eye: white, iris and pupil."""
        self.ellipse(cx, cy, r, r, (250, 250, 250))
        self.ellipse(cx + r * 0.15, cy, r * 0.72, r * 0.72, iris)
        self.ellipse(cx + r * 0.2, cy, r * 0.36, r * 0.36, (16, 16, 20))

    def pattern(self, name: str):
        """Lay the second colour over the body drawn so far."""
        if name == "plain":
            return
        paint = Image.new("L", (self.side, self.side), 0)
        draw = ImageDraw.Draw(paint)
        s = self.side
        if name == "striped":
            step, width = 0.155, 0.065
            for i in range(8):
                x = (0.03 + i * step) * s
                draw.polygon([(x, 0), (x + width * s, 0), (x + width * s, s), (x, s)], fill=255)
        elif name == "spotted":
            step, r = 0.19, 0.056
            for row in range(7):
                for col in range(7):
                    x = (col + (row % 2) * 0.5) * step * s
                    y = (row * 0.84 + 0.35) * step * s
                    draw.ellipse((x - r * s, y - r * s, x + r * s, y + r * s), fill=255)
        elif name == "patched":
            for x, y, rx, ry in ((0.22, 0.66, 0.17, 0.15), (0.60, 0.52, 0.13, 0.14),
                                 (0.86, 0.22, 0.15, 0.14), (0.52, 0.88, 0.16, 0.10),
                                 (0.34, 0.28, 0.13, 0.12)):  # fmt: skip
                draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=255)
        elif name == "two-tone":
            draw.rectangle((0, 0.62 * s, s, s), fill=255)
        else:
            raise ValueError(f"unknown pattern {name!r}")
        if self.mirrored:
            paint = paint.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        self._lay((*self.second, 255), paint)

    def shadow(self):
        """A soft darkening of the body's lower edge, so that flat colours have volume."""
        ramp = np.linspace(0, 1, self.side)[:, None] ** 3 * 60
        dark = Image.fromarray(np.broadcast_to(ramp, (self.side, self.side)).astype("uint8"))
        self._lay((0, 0, 0, 255), dark)

    def _lay(self, colour: tuple[int, int, int, int], where: Image.Image):
        """Colour the body where a picture of the unit square is white."""
        paint = Image.new("L", self.mask.size, 0)
        paint.paste(where, (0, self.head))
        self.layer.paste(colour, mask=ImageChops.multiply(paint, self.mask))


def petals(n: int, cx: float, cy: float, radius: float) -> list[Point]:
    """Centres of `n` petals around a point."""
    return [
        (cx + radius * math.cos(2 * math.pi * i / n), cy + radius * math.sin(2 * math.pi * i / n))
        for i in range(n)
    ]
