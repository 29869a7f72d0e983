"""Segmenters by name; each is imported only when it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ..errors import MethodError


class Segmenter(Protocol):
    """What finds instances."""

    def find(self, image: Image.Image, noun: str) -> list[Bool[np.ndarray, "h w"]]:
        """Masks of the instances of a noun, from left to right, at any resolution.

        Raises:
            KeyError: a noun that it cannot look for.
        """
        ...


@dataclass(frozen=True)
class Entry:
    """How a segmenter is made: a callable or `module:name` of one, which takes model folders."""

    make: str | Callable[..., Segmenter]
    folders: int = 0


SEGMENTERS: dict[str, Entry] = {
    "miniature": Entry("loraweave.miniature.finder:load_finder"),
    "clipseg": Entry("loraweave.detect.clipseg:ClipSeg", 1),
    "grounded_sam": Entry("loraweave.detect.grounded_sam:GroundedSam", 2),
}
"""By name. A program may add its own."""


def check_segmenter(name: str, folders: int) -> None:
    """Raise MethodError if there is no such segmenter, or it needs another number of folders."""
    if name not in SEGMENTERS:
        raise MethodError(f"no segmenter {name!r}; there are: {', '.join(SEGMENTERS)}")
    if folders != (needed := SEGMENTERS[name].folders):
        raise MethodError(
            f"the segmenter {name!r} needs {needed} model folders and got {folders}; "
            "name them with --segmenter-model, or with omg's setting segmenter_models"
        )


def get_segmenter(name: str, *folders: Path, device: str = "cpu") -> Segmenter:
    """A segmenter that is ready to look.

    Args:
        name: of `SEGMENTERS`.
        folders: of its models: one for `clipseg`, detector and segmenter for `grounded_sam`.
        device: where those models run.

    Raises:
        MethodError: no such segmenter, or other folders than it needs.
        ModelNotFound: nothing, or something else, in a folder.
    """
    check_segmenter(name, len(folders))
    make = SEGMENTERS[name].make
    if isinstance(make, str):
        module, _, attribute = make.partition(":")
        make = getattr(import_module(module), attribute)
    assert callable(make)
    return cast(Segmenter, make(*folders, device=device) if folders else make())
