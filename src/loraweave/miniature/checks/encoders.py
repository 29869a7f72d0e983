"""How much the small CLIP and DINO know, on drawings of which the truth is known."""

from collections.abc import Callable, Mapping

import torch
from PIL import Image

from ...evaluate.encoders import Clip, Dino
from ...evaluate.similarity import Encoder, cut_out
from ..concepts import KNOWN, draw_concepts
from ..world import FULL_WORLD, Rendering, caption_drawing, render, sample_drawing
from .pictures import CHECK_SEED

DETAIL = 0.7
"""How much captions say, see `caption_drawing`."""
CAPTIONS = 100
VIEWS = ("meadow", "night"), ("snow", "city")
"""Places of two drawings of each concept, one of which is to be found by the other."""


def encoder_figures(clip: Clip, dino: Dino) -> dict[str, float]:
    """Shares in [0, 1].

    `clip_caption` is how often the caption nearest to a drawing is its own, of a hundred;
    `..._instance` how often the nearest concept, by an instance cut out of another place, is the
    right one of all; `..._picture` the same by whole pictures.
    """
    drawings = [sample_drawing(CHECK_SEED + seed, FULL_WORLD) for seed in range(CAPTIONS)]
    captions = [caption_drawing(d, CHECK_SEED + n, DETAIL).text for n, d in enumerate(drawings)]
    images = clip.images([render(drawing).image for drawing in drawings])
    nearest = (images @ clip.texts(captions).T).argmax(1)
    figures = {"clip_caption": _share([captions[k] == c for k, c in zip(nearest, captions)])}
    encoders: Mapping[str, Encoder] = {"clip": clip, "dino": dino}
    for name, encoder in encoders.items():
        for what, seen in (("instance", _instance), ("picture", lambda drawn: drawn.image)):
            figures[f"{name}_{what}"] = _found(encoder, seen)
    return figures


def _found(encoder: Encoder, seen: Callable[[Rendering], Image.Image]) -> float:
    right = []
    for seed, places in enumerate(VIEWS):
        one, other = (
            encoder.images([
                seen(draw_concepts([name], place, CHECK_SEED + 1000 * seed + 500 * k + n))
                for n, name in enumerate(KNOWN)
            ])
            for k, place in enumerate(places)
        )  # fmt: skip
        right += ((one @ other.T).argmax(1) == torch.arange(len(KNOWN))).tolist()
    return _share(right)


def _instance(drawn: Rendering) -> Image.Image:
    cut = cut_out(drawn.image, drawn.masks[0])
    assert cut is not None
    return cut


def _share(hits: list[bool]) -> float:
    return round(sum(hits) / len(hits), 4)
