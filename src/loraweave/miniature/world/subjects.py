"""How each class of subject looks: one function a class, drawn in its own unit square.

Each function draws the body, lays the pattern over it, then adds what no pattern covers. The
anchors say where accessories go: the neck (a line) and the top of the head (a point and a width).
"""

from collections.abc import Callable

from PIL import Image

from .accessories import Anchors, wear
from .pen import Pen, petals, shade
from .spec import Subject

DARK = (40, 34, 36)
NOSE = (226, 120, 130)


def _cat(p: Pen, s: Subject) -> Anchors:
    far = shade(s.body, 0.78)
    p.line((0.16, 0.62), (0.07, 0.42), (0.12, 0.22), width=0.075)
    p.rect(0.24, 0.70, 0.33, 0.98, far, 0.03)
    p.rect(0.56, 0.70, 0.65, 0.98, far, 0.03)
    p.ellipse(0.41, 0.66, 0.30, 0.20)
    p.rect(0.15, 0.70, 0.25, 0.99, r=0.04)
    p.rect(0.64, 0.64, 0.74, 0.99, r=0.04)
    p.poly((0.56, 0.34), (0.57, 0.02), (0.74, 0.20))
    p.poly((0.80, 0.20), (0.96, 0.02), (0.98, 0.34))
    p.ellipse(0.77, 0.36, 0.215, 0.195)
    p.pattern(s.pattern)
    p.poly((0.605, 0.22), (0.61, 0.10), (0.68, 0.19), colour=NOSE)
    p.poly((0.86, 0.19), (0.925, 0.10), (0.935, 0.22), colour=NOSE)
    p.eye(0.71, 0.34, 0.058, s.eye)
    p.eye(0.87, 0.34, 0.058, s.eye)
    p.poly((0.765, 0.42), (0.825, 0.42), (0.795, 0.455), colour=NOSE)
    for y in (0.44, 0.48):
        p.line((0.86, y), (0.99, y + (y - 0.46)), width=0.012, colour=(250, 250, 250))
        p.line((0.73, y), (0.60, y + (y - 0.46)), width=0.012, colour=(250, 250, 250))
    return Anchors(((0.63, 0.545), (0.88, 0.565)), (0.775, 0.18), 0.26)


def _dog(p: Pen, s: Subject) -> Anchors:
    far = shade(s.body, 0.78)
    p.line((0.14, 0.56), (0.05, 0.34), width=0.085)
    p.rect(0.22, 0.70, 0.32, 0.98, far, 0.03)
    p.rect(0.52, 0.70, 0.62, 0.98, far, 0.03)
    p.rect(0.10, 0.48, 0.70, 0.78, r=0.14)
    p.rect(0.10, 0.66, 0.215, 0.99, r=0.04)
    p.rect(0.585, 0.62, 0.70, 0.99, r=0.04)
    p.ellipse(0.69, 0.33, 0.19, 0.20)
    p.rect(0.70, 0.32, 0.98, 0.50, r=0.08)
    p.pattern(s.pattern)
    ear = shade(s.body, 0.6)
    p.ellipse(0.545, 0.36, 0.085, 0.20, ear)
    p.ellipse(0.955, 0.355, 0.05, 0.045, DARK)
    p.eye(0.745, 0.27, 0.058, s.eye)
    p.line((0.83, 0.455), (0.94, 0.445), width=0.016, colour=DARK)
    p.rect(0.85, 0.46, 0.90, 0.56, (236, 110, 124), 0.025)
    return Anchors(((0.53, 0.545), (0.79, 0.545)), (0.68, 0.135), 0.25)


def _rabbit(p: Pen, s: Subject) -> Anchors:
    p.ellipse(0.56, 0.17, 0.065, 0.19)
    p.ellipse(0.75, 0.17, 0.065, 0.19)
    p.ellipse(0.42, 0.73, 0.29, 0.24)
    p.ellipse(0.655, 0.44, 0.20, 0.18)
    p.ellipse(0.32, 0.94, 0.17, 0.055)
    p.rect(0.56, 0.70, 0.67, 0.99, r=0.05)
    p.pattern(s.pattern)
    p.ellipse(0.12, 0.72, 0.085, 0.085, (252, 252, 250))
    p.ellipse(0.56, 0.17, 0.03, 0.135, NOSE)
    p.ellipse(0.75, 0.17, 0.03, 0.135, NOSE)
    p.eye(0.61, 0.41, 0.052, s.eye)
    p.eye(0.76, 0.41, 0.052, s.eye)
    p.ellipse(0.69, 0.485, 0.026, 0.02, NOSE)
    p.rect(0.668, 0.51, 0.712, 0.565, (252, 252, 250), 0.008)
    return Anchors(((0.53, 0.615), (0.76, 0.625)), (0.655, 0.28), 0.22)


def _bird(p: Pen, s: Subject) -> Anchors:
    beak = (246, 170, 40)
    for x in (0.44, 0.56):
        p.line((x, 0.80), (x, 0.97), width=0.035, colour=beak)
        p.line((x, 0.97), (x + 0.08, 0.97), width=0.03, colour=beak)
    p.poly((0.24, 0.52), (0.0, 0.40), (0.02, 0.62))
    p.ellipse(0.46, 0.60, 0.32, 0.24)
    p.ellipse(0.70, 0.32, 0.185, 0.185)
    p.pattern(s.pattern)
    p.ellipse(0.38, 0.58, 0.18, 0.125, shade(s.body, 0.68))
    p.poly((0.86, 0.26), (1.0, 0.34), (0.86, 0.41), colour=beak)
    p.eye(0.745, 0.28, 0.058, s.eye)
    return Anchors(((0.56, 0.475), (0.83, 0.485)), (0.70, 0.14), 0.24)


def _fish(p: Pen, s: Subject) -> Anchors:
    p.poly((0.26, 0.62), (0.02, 0.42), (0.02, 0.84))
    p.poly((0.38, 0.46), (0.56, 0.24), (0.68, 0.46))
    p.ellipse(0.56, 0.63, 0.40, 0.245)
    p.pattern(s.pattern)
    p.poly((0.50, 0.66), (0.38, 0.80), (0.58, 0.76), colour=shade(s.body, 0.66))
    p.eye(0.80, 0.57, 0.06, s.eye)
    p.line((0.88, 0.70), (0.94, 0.68), width=0.018, colour=DARK)
    return Anchors(((0.68, 0.42), (0.68, 0.86)), (0.62, 0.40), 0.22)


def _bear(p: Pen, s: Subject) -> Anchors:
    p.ellipse(0.31, 0.13, 0.09, 0.09)
    p.ellipse(0.69, 0.13, 0.09, 0.09)
    p.ellipse(0.5, 0.72, 0.30, 0.26)
    p.ellipse(0.20, 0.66, 0.085, 0.16)
    p.ellipse(0.80, 0.66, 0.085, 0.16)
    p.ellipse(0.34, 0.93, 0.12, 0.065)
    p.ellipse(0.66, 0.93, 0.12, 0.065)
    p.ellipse(0.5, 0.30, 0.25, 0.22)
    p.pattern(s.pattern)
    p.ellipse(0.5, 0.385, 0.105, 0.08, shade(s.body, 1.5))
    p.ellipse(0.5, 0.35, 0.04, 0.03, DARK)
    p.eye(0.40, 0.26, 0.048, s.eye)
    p.eye(0.60, 0.26, 0.048, s.eye)
    return Anchors(((0.32, 0.505), (0.68, 0.505)), (0.5, 0.10), 0.3)


def _car(p: Pen, s: Subject) -> Anchors:
    p.poly((0.20, 0.56), (0.30, 0.33), (0.68, 0.33), (0.82, 0.56))
    p.rect(0.03, 0.53, 0.97, 0.84, r=0.08)
    p.pattern(s.pattern)
    glass = (196, 226, 240)
    p.poly((0.265, 0.54), (0.335, 0.38), (0.475, 0.38), (0.475, 0.54), colour=glass)
    p.poly((0.52, 0.54), (0.52, 0.38), (0.655, 0.38), (0.745, 0.54), colour=glass)
    p.rect(0.90, 0.60, 0.97, 0.68, (255, 240, 150), 0.02)
    p.rect(0.03, 0.60, 0.075, 0.68, (220, 50, 40), 0.015)
    for x in (0.25, 0.75):
        p.ellipse(x, 0.85, 0.125, 0.125, DARK)
        p.ellipse(x, 0.85, 0.06, 0.06, (190, 192, 196))
    return Anchors(((0.03, 0.71), (0.97, 0.71)), (0.48, 0.35), 0.3)


def _boat(p: Pen, s: Subject) -> Anchors:
    p.rect(0.475, 0.08, 0.515, 0.70, (120, 84, 52))
    p.poly((0.54, 0.12), (0.54, 0.62), (0.92, 0.62), colour=(250, 248, 240))
    p.poly((0.45, 0.22), (0.45, 0.62), (0.16, 0.62), colour=(232, 230, 222))
    p.poly((0.03, 0.68), (0.97, 0.68), (0.82, 0.97), (0.18, 0.97))
    p.pattern(s.pattern)
    return Anchors(((0.07, 0.73), (0.93, 0.73)), (0.5, 0.08), 0.2)


def _house(p: Pen, s: Subject) -> Anchors:
    p.rect(0.12, 0.42, 0.88, 0.98)
    p.pattern(s.pattern)
    p.rect(0.68, 0.12, 0.79, 0.36, (120, 70, 60))
    p.poly((0.02, 0.45), (0.5, 0.06), (0.98, 0.45), colour=shade(s.body, 0.55))
    p.rect(0.42, 0.66, 0.60, 0.98, (96, 62, 40))
    p.rect(0.20, 0.54, 0.35, 0.70, (255, 236, 150))
    p.rect(0.66, 0.54, 0.81, 0.70, (255, 236, 150))
    return Anchors(((0.12, 0.5), (0.88, 0.5)), (0.5, 0.10), 0.3)


def _flower(p: Pen, s: Subject) -> Anchors:
    green = (40, 132, 58)
    p.line((0.5, 0.5), (0.5, 0.97), width=0.055, colour=green)
    p.ellipse(0.63, 0.80, 0.12, 0.05, green)
    p.ellipse(0.37, 0.86, 0.12, 0.05, green)
    for x, y in petals(7, 0.5, 0.34, 0.205):
        p.ellipse(x, y, 0.125, 0.125)
    p.ellipse(0.5, 0.34, 0.2, 0.2)
    p.pattern(s.pattern)
    p.ellipse(0.5, 0.34, 0.115, 0.115, s.eye if sum(s.eye) > 200 else (250, 206, 60))
    return Anchors(((0.44, 0.66), (0.56, 0.66)), (0.5, 0.06), 0.25)


def _mushroom(p: Pen, s: Subject) -> Anchors:
    p.rect(0.38, 0.46, 0.62, 0.98, (246, 236, 216), 0.07)
    p.ellipse(0.5, 0.38, 0.42, 0.30)
    p.pattern(s.pattern)
    p.rect(0.06, 0.50, 0.94, 0.57, shade(s.body, 0.7), 0.03)
    return Anchors(((0.38, 0.66), (0.62, 0.66)), (0.5, 0.09), 0.3)


def _cup(p: Pen, s: Subject) -> Anchors:
    handle = shade(s.body, 0.8)
    p.ellipse(0.76, 0.60, 0.19, 0.21, handle)
    p.ellipse(0.76, 0.60, 0.10, 0.12, (0, 0, 0))
    p.poly((0.14, 0.26), (0.78, 0.26), (0.70, 0.97), (0.22, 0.97))
    p.pattern(s.pattern)
    p.ellipse(0.46, 0.26, 0.32, 0.075, shade(s.body, 0.7))
    p.ellipse(0.46, 0.27, 0.26, 0.05, (92, 56, 36))
    return Anchors(((0.17, 0.45), (0.75, 0.45)), (0.46, 0.2), 0.3)


def _robot(p: Pen, s: Subject) -> Anchors:
    steel = (120, 128, 138)
    p.line((0.5, 0.14), (0.5, 0.04), width=0.03, colour=steel)
    p.ellipse(0.5, 0.04, 0.04, 0.035, (230, 60, 50))
    for x in (0.34, 0.58):
        p.rect(x, 0.80, x + 0.09, 0.97, steel)
    p.line((0.24, 0.56), (0.10, 0.72), width=0.07, colour=steel)
    p.line((0.76, 0.56), (0.90, 0.72), width=0.07, colour=steel)
    p.rect(0.24, 0.46, 0.76, 0.84, r=0.05)
    p.rect(0.27, 0.12, 0.73, 0.42, r=0.06)
    p.pattern(s.pattern)
    p.rect(0.30, 0.95, 0.46, 0.99, steel, 0.02)
    p.rect(0.55, 0.95, 0.71, 0.99, steel, 0.02)
    p.eye(0.40, 0.26, 0.065, s.eye)
    p.eye(0.60, 0.26, 0.065, s.eye)
    p.rect(0.38, 0.35, 0.62, 0.375, DARK)
    return Anchors(((0.36, 0.44), (0.64, 0.44)), (0.5, 0.12), 0.3)


def _girl(p: Pen, s: Subject) -> Anchors:
    skin, hair = (244, 204, 170), shade(s.second, 0.7)
    p.ellipse(0.5, 0.24, 0.21, 0.22, hair)
    p.rect(0.29, 0.24, 0.71, 0.44, hair, 0.05)
    for x in (0.40, 0.54):
        p.rect(x, 0.82, x + 0.07, 0.97, skin)
        p.rect(x - 0.01, 0.95, x + 0.10, 0.99, DARK, 0.015)
    p.line((0.40, 0.50), (0.24, 0.66), width=0.07, colour=skin)
    p.line((0.60, 0.50), (0.76, 0.66), width=0.07, colour=skin)
    p.poly((0.40, 0.44), (0.60, 0.44), (0.76, 0.86), (0.24, 0.86))
    p.pattern(s.pattern)
    p.ellipse(0.5, 0.27, 0.155, 0.17, skin)
    p.rect(0.34, 0.10, 0.66, 0.18, hair, 0.04)
    p.eye(0.44, 0.28, 0.036, s.eye)
    p.eye(0.56, 0.28, 0.036, s.eye)
    p.line((0.46, 0.37), (0.54, 0.37), width=0.016, colour=(200, 80, 80))
    return Anchors(((0.42, 0.455), (0.58, 0.455)), (0.5, 0.06), 0.28)


_DRAWERS: dict[str, Callable[[Pen, Subject], Anchors]] = {
    "cat": _cat, "dog": _dog, "rabbit": _rabbit, "bird": _bird, "fish": _fish, "bear": _bear,
    "car": _car, "boat": _boat, "house": _house, "flower": _flower, "mushroom": _mushroom,
    "cup": _cup, "robot": _robot, "girl": _girl,
}  # fmt: skip


def draw_subject(subject: Subject, side: int) -> Image.Image:
    """The subject alone on a transparent layer (RGBA) whose lower `side` pixels are its square."""
    pen = Pen(side, subject.body, subject.second, subject.mirrored)
    anchors = _DRAWERS[subject.kind](pen, subject)
    pen.shadow()
    if subject.accessory is not None:
        wear(pen, subject.accessory, anchors, subject.accessory_colour)
    if subject.kind == "cup":  # the hole of the handle shows what is behind
        _punch_black(pen.layer)
    return pen.layer


def _punch_black(layer: Image.Image) -> None:
    red, green, blue, alpha = layer.split()
    anything = red.point(lambda v: 255 if v else 0)
    for band in (green, blue):
        anything.paste(255, mask=band.point(lambda v: 255 if v else 0))
    alpha.paste(0, mask=anything.point(lambda v: 255 - v))
    layer.putalpha(alpha)
