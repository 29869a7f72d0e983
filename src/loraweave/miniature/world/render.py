"""From a drawing to pixels and instance masks."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backgrounds import draw_background
from .spec import Drawing
from .subjects import draw_subject

SUPERSAMPLING = 2


@dataclass(frozen=True)
class Rendering:
    """A drawn scene.

    Attributes:
        image: RGB picture.
        masks: (n, height, width) booleans, the visible part of each subject, in the order of
            `drawing.subjects`.
        drawing: what was drawn.
    """

    image: Image.Image
    masks: np.ndarray
    drawing: Drawing


def render(drawing: Drawing, width: int = 128, height: int | None = None) -> Rendering:
    """Draw a scene, anti-aliased, at any size (pixels).

    Sizes and places of subjects are fractions of the shorter side and of the whole picture.
    """
    height = height or width
    w, h = width * SUPERSAMPLING, height * SUPERSAMPLING
    canvas = draw_background(drawing.background, w, h, drawing.seed)
    alphas = []
    for subject in drawing.subjects:
        side = max(8, round(subject.size * min(w, h)))
        layer = draw_subject(subject, side)
        place = (round(subject.x * w - side / 2), round(subject.y * h) - layer.height)
        canvas.paste(layer, place, layer)
        alpha = Image.new("L", (w, h), 0)
        alpha.paste(layer.getchannel("A"), place)
        alphas.append(np.asarray(alpha.reduce(SUPERSAMPLING)) > 127)
    masks = np.zeros((len(alphas), height, width), dtype=bool)
    covered = np.zeros((height, width), dtype=bool)
    for i in reversed(range(len(alphas))):  # the last one drawn is in front
        masks[i] = alphas[i] & ~covered
        covered |= alphas[i]
    return Rendering(canvas.reduce(SUPERSAMPLING), masks, drawing)
