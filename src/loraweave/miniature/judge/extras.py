"""Whether a picture has what comes on top of its concepts: a place, a thing worn, a relation."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from ...layout.boxes import Box
from ..concepts import KNOWN, draw_subjects
from ..extras import EXTRAS
from ..segmenter import at_places
from ..shipped import native_side
from ..world import BACKGROUNDS, Drawing, render
from ..world.spec import OWN_BACKGROUNDS
from .colours import cielab
from .judge import Judge

VIEWS = 8
"""Drawings that a place, or somebody with or without something on, is known by."""
TOP, BOTTOM = slice(0.0, 0.45), slice(0.75, 1.0)
"""Parts of the height that are surely sky, or ground."""


def place_in(image: Image.Image, subjects: Bool[np.ndarray, "h w"]) -> str:
    """The place, a background of the world or of a LoRA, whose sky and ground are nearest.

    Args:
        image: the picture.
        subjects: where somebody stands before the place.
    """
    seen = _sky_and_ground(image, ~subjects)
    known = {name: _place_colours(name) for name in (*BACKGROUNDS, *OWN_BACKGROUNDS)}
    return min(known, key=lambda name: float(np.square(known[name] - seen).sum()))


def _sky_and_ground(image: Image.Image, free: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "6"]:
    """Mean colours (CIELAB) of what is free in the upper and in the lower part."""
    small = image.convert("RGB").resize(free.shape[::-1], Image.Resampling.BOX)
    pixels, parts = np.asarray(small, float), []
    for part in (TOP, BOTTOM):
        rows = slice(round(part.start * len(free)), round(part.stop * len(free)))
        own, open_ = pixels[rows], free[rows]
        own = own[open_] if open_.any() else own.reshape(-1, 3)
        parts.append(cielab(own).mean(0))
    return np.concatenate(parts)


@lru_cache
def _place_colours(name: str) -> Float[np.ndarray, "6"]:
    free = np.ones((64, 64), bool)
    images = [render(Drawing((), name, seed), 64).image for seed in range(VIEWS)]
    return np.mean([_sky_and_ground(image, free) for image in images], axis=0)


def wears(
    judge: Judge, image: Image.Image, mask: Bool[np.ndarray, "h w"], concept: str, extra: str
) -> bool:
    """Whether an instance of a concept looks more like drawings of it with an extra than without.

    Args:
        judge: that sees the looks.
        image, mask: the instance.
        concept: who it is.
        extra: a LoRA of a thing to wear.
    """
    looks = judge.looks_under(image, [mask])[0].numpy()
    plain, dressed = _looks(judge, concept, extra)
    return bool(dressed @ looks > plain @ looks)


@lru_cache
def _looks(judge: Judge, concept: str, extra: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean looks without and with it, in varied places."""
    spec = KNOWN[concept].subject
    dressed = replace(spec, accessory=EXTRAS[extra].drawn)
    means = []
    for subject in (spec, dressed):
        drawn = [
            draw_subjects([subject], place, seed, native_side())
            for seed, place in enumerate(BACKGROUNDS[:VIEWS])
        ]
        looks = [judge.looks_under(d.image, [at_places(d.masks[0])])[0].numpy() for d in drawn]
        means.append(np.mean(looks, axis=0))
    return means[0], means[1]


def stands(first: Box, second: Box, relation: str) -> bool:
    """Whether the middle of one box is left of, right of or above that of another.

    Raises:
        KeyError: another relation.
    """
    across = (first[0] + first[2]) - (second[0] + second[2])
    down = (first[1] + first[3]) - (second[1] + second[3])
    return {"left of": across < 0, "right of": across > 0, "above": down < 0}[relation]
