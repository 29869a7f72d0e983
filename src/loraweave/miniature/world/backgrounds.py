"""Where scenes take place: calm backgrounds, each a sky, a ground and a few details."""

import random

from PIL import Image, ImageDraw

from .spec import RGB

_SKY_AND_GROUND: dict[str, tuple[RGB, RGB, float]] = {
    "meadow": ((156, 206, 252), (112, 188, 84), 0.56),
    "beach": ((142, 214, 248), (238, 216, 158), 0.60),
    "snow": ((204, 220, 236), (248, 250, 254), 0.56),
    "desert": ((252, 214, 158), (220, 166, 100), 0.58),
    "forest": ((138, 180, 160), (70, 104, 58), 0.60),
    "night": ((26, 30, 82), (52, 60, 86), 0.60),
    "city": ((188, 200, 216), (120, 122, 128), 0.66),
    "room": ((236, 218, 196), (176, 128, 88), 0.64),
    "candyland": ((255, 204, 226), (158, 226, 212), 0.58),
    "moon": ((12, 12, 22), (168, 168, 172), 0.60),
}


def draw_background(name: str, width: int, height: int, seed: int) -> Image.Image:
    """The background `name`, RGB, with details placed by `seed`."""
    rng = random.Random(seed)
    sky, ground, horizon = _SKY_AND_GROUND[name]
    image = Image.new("RGB", (width, height), sky)
    draw = ImageDraw.Draw(image)
    line = (horizon + rng.uniform(-0.05, 0.05)) * height
    w, h = width, height

    if name == "meadow":
        for _ in range(rng.randint(1, 3)):
            x, y, r = rng.uniform(0, w), rng.uniform(0.06, 0.26) * h, rng.uniform(0.05, 0.08) * w
            for dx in (-1.1, 0, 1.1):
                draw.ellipse((x + dx * r - r, y - r * 0.6, x + dx * r + r, y + r * 0.6),
                             fill=(238, 246, 254))  # fmt: skip
    elif name in ("desert", "night"):
        x, r = rng.uniform(0.12, 0.88) * w, 0.075 * w
        y = rng.uniform(0.1, 0.22) * h
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 240, 160) if name == "desert" else
                     (250, 244, 210))  # fmt: skip
    elif name == "beach":
        draw.rectangle((0, line - 0.13 * h, w, line), fill=(58, 142, 208))
    elif name == "snow":
        for _ in range(24):
            x, y, r = rng.uniform(0, w), rng.uniform(0, line), 0.008 * w
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(252, 253, 255))
    elif name == "forest":
        for _ in range(9):
            x, top = rng.uniform(0, w), line - rng.uniform(0.22, 0.45) * h
            draw.rectangle((x - 0.012 * w, line - 0.1 * h, x + 0.012 * w, line), fill=(84, 62, 44))
            foot = line - 0.05 * h
            draw.polygon([(x, top), (x - 0.09 * w, foot), (x + 0.09 * w, foot)],
                         fill=rng.choice([(34, 92, 54), (44, 104, 62), (28, 80, 50)]))  # fmt: skip
    elif name == "city":
        x = 0.0
        while x < w:
            wide, top = rng.uniform(0.1, 0.17) * w, line - rng.uniform(0.15, 0.48) * h
            draw.rectangle((x, top, x + wide, line), fill=rng.choice(
                [(150, 162, 182), (132, 144, 166), (164, 174, 190)]))  # fmt: skip
            x += wide + 0.01 * w
    elif name == "room":
        x = rng.uniform(0.1, 0.6) * w
        draw.rectangle((x, 0.12 * h, x + 0.26 * w, 0.40 * h), fill=(180, 218, 240),
                       outline=(250, 250, 246), width=max(1, int(0.018 * w)))  # fmt: skip
    elif name == "candyland":
        for _ in range(4):
            x, top = rng.uniform(0.05, 0.95) * w, line - rng.uniform(0.2, 0.4) * h
            draw.rectangle((x - 0.008 * w, top, x + 0.008 * w, line), fill=(250, 250, 250))
            r, colour = 0.07 * w, rng.choice([(240, 84, 120), (252, 178, 60), (138, 110, 226)])
            draw.ellipse((x - r, top - r, x + r, top + r), fill=colour)
            draw.ellipse((x - r / 2, top - r / 2, x + r / 2, top + r / 2), fill=(255, 244, 248))
    elif name == "moon":
        x, y, r = rng.uniform(0.15, 0.85) * w, rng.uniform(0.14, 0.26) * h, 0.1 * w
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(72, 138, 226))
        draw.ellipse((x - r * 0.5, y - r * 0.7, x + r * 0.6, y + r * 0.2), fill=(96, 178, 96))
    if name in ("night", "moon"):
        for _ in range(26):
            x, y, r = rng.uniform(0, w), rng.uniform(0, line), 0.006 * w
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(240, 240, 250))

    draw.rectangle((0, line, w, h), fill=ground)
    if name == "meadow":
        for _ in range(16):
            x, y = rng.uniform(0, w), rng.uniform(line + 0.05 * h, h)
            draw.line((x, y, x + 0.01 * w, y - 0.035 * h), fill=(82, 154, 62),
                      width=max(1, w // 110))  # fmt: skip
    elif name == "candyland":
        for i in range(7):
            x, r = (i + rng.uniform(0.2, 0.8)) / 7 * w, 0.09 * w
            draw.ellipse((x - r, line - 0.5 * r, x + r, line + 1.5 * r), fill=(158, 226, 212))
    elif name == "moon":
        for _ in range(7):
            x, y = rng.uniform(0, w), rng.uniform(line + 0.05 * h, h)
            r = rng.uniform(0.03, 0.08) * w
            draw.ellipse((x - r, y - r / 3, x + r, y + r / 3), fill=(134, 134, 140))
    elif name == "desert":
        y = rng.uniform(0.8, 0.95) * h
        draw.arc((-0.3 * w, y, 0.9 * w, y + 0.5 * h), 180, 360, fill=(206, 150, 84),
                 width=max(1, w // 90))  # fmt: skip
    return image
