"""Where a concept may be, as a scene says it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Discriminator, Tag, model_validator

from loraweave.errors import RegionError, SceneError
from loraweave.lora_ref import Data, Number

BOX = "left, top, right, bottom as fractions from 0 to 1, or as whole pixels"


class Region(Data):
    """A box or an image, exactly one of them.

    `box` is (x0, y0, x1, y1) from the picture's top left corner, the last two just outside of it:
    fractions of the picture if none is above 1, pixels otherwise. `image` is a grey picture, white
    where the concept may be.
    """

    error: ClassVar[type[SceneError]] = RegionError

    box: tuple[Number, Number, Number, Number] | None = None
    image: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.box is None) == (self.image is None):
            found = "neither" if self.box is None else "both"
            raise RegionError(f"a region has either a box or an image, this has {found}; give one")
        if self.box is None:
            return self
        x0, y0, x1, y1 = self.box
        if not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise RegionError(f"the box {self.box} is outside the picture or empty; give {BOX}")
        if self.in_pixels and not all(float(side).is_integer() for side in self.box):
            raise RegionError(
                f"the box {self.box} is beyond 1 and not in whole pixels, so outside the picture; "
                f"give {BOX}"
            )
        return self

    @property
    def in_pixels(self) -> bool:
        """Whether the box is given in pixels."""
        return self.box is not None and max(self.box) > 1

    def fractions(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box in a picture of this size (pixels), as fractions of it.

        Raises:
            RegionError: it is given in pixels, and reaches beyond the picture.
        """
        assert self.box is not None
        if not self.in_pixels:
            return self.box
        x0, y0, x1, y1 = self.box
        if x1 > width or y1 > height:
            raise RegionError(
                f"the box {self.box} is outside the picture of {width}x{height} pixels; give {BOX}"
            )
        return x0 / width, y0 / height, x1 / width, y1 / height


def _tag(value: Any) -> str:
    return "several" if isinstance(value, tuple | list) else "one"


# The tags say which it is: a union would ask Region first, whose error is no pydantic one.
Regions = Annotated[
    Annotated[Region, Tag("one")] | Annotated[tuple[Region, ...], Tag("several")],
    Discriminator(_tag),
]
"""Of one concept: one, or several that it is to be in."""


def several(regions: Regions) -> tuple[Region, ...]:
    """All of them."""
    return regions if isinstance(regions, tuple) else (regions,)


def read_regions(data: Any) -> Regions:
    """The regions of one concept from plain data.

    Raises:
        RegionError: no region, or an empty list of them.
    """
    if not isinstance(data, list | tuple):
        return Region.model_validate(data)
    if not data:
        raise RegionError("no region in this list; give one, or leave the concept out")
    made = tuple(Region.model_validate(item) for item in data)
    return made[0] if len(made) == 1 else made


def in_order(given: Sequence[Any], names: Sequence[str]) -> Mapping[str, Any]:
    """Regions that came without names, by concept, in the order of the prompt.

    Raises:
        RegionError: there are not as many as concepts.
    """
    if len(given) != len(names):
        example = f"{names[0]}=0,0,0.5,1" if names else "NAME=0,0,0.5,1"
        raise RegionError(
            f"{len(given)} regions without names for {len(names)} concepts "
            f"({', '.join(names) or 'none'}); say whose each is, for example {example}"
        )
    return dict(zip(names, given))
