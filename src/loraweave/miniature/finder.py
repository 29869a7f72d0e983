"""The segmenter for methods that look at a picture while they draw it; not the judge's."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ..detect.components import components
from ..errors import ModelNotFound
from .segmenter import Segmenter, load_segmenter
from .shipped import WEIGHTS
from .world import KINDS

LEAST = 0.004  # share of the picture that an instance covers at least


class Finder:
    """Finds the instances of a noun.

    Args:
        segmenter: trained, for `len(kinds) + 1` classes.
        kinds: names of classes 1 and up.
    """

    def __init__(self, segmenter: Segmenter, kinds: Sequence[str] = KINDS):
        self.segmenter, self.kinds = segmenter, list(kinds)

    def find(self, image: Image.Image, noun: str) -> list[Bool[np.ndarray, "h w"]]:
        """Masks of the instances of a noun at half the resolution, from left to right.

        Raises:
            KeyError: a noun that the world does not have.
        """
        if noun not in self.kinds:
            raise KeyError(f"{noun!r} is no class of the world; there are: {', '.join(self.kinds)}")
        (classes,) = self.segmenter.classes([image])
        return components(classes == 1 + self.kinds.index(noun), LEAST * classes.size)


@cache
def load_finder(path: Path = WEIGHTS / "finder.safetensors") -> Finder:
    """The finder that ships with the miniature.

    Raises:
        ModelNotFound: this installation came without it.
    """
    if not path.is_file():
        raise ModelNotFound(f"no finder at {path}; make it with `loraweave miniature train`")
    return Finder(load_segmenter(path, len(KINDS) + 1))
