"""How a scene speaks of a picture that it is drawn after: a sketch, a pose map."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from loraweave.errors import SceneError
from loraweave.lora_ref import Data, Fraction, Weight


class Condition(Data):
    """A picture that the scene is drawn after, and the T2I-Adapter that reads it.

    `adapter` is a local folder of a diffusers `T2IAdapter`, or `miniature:sketch`, which ships.
    `image` is a picture of the canvas's size, grey or RGB as the adapter was made for.

    `weight`, in [-4, 4], holds everywhere but in `regions`: there it is by concept what holds
    inside that concept's region of the scene. Where such regions overlap the largest one holds.
    `until` is the fraction of the run after which the picture is no longer followed.
    """

    adapter: Path
    image: Path
    weight: Weight = 1.0
    regions: dict[str, Weight] = Field(default_factory=dict)
    until: Fraction = 1.0


def made_conditions(given: Any) -> Any:
    """Conditions from plain data; an error says which one of the list is wrong.

    What is no list is handed back, for pydantic to complain about.

    Raises:
        SceneError: a condition with something missing, unknown or out of range.
    """
    if not isinstance(given, list | tuple):
        return given
    made = []
    for n, item in enumerate(given):
        try:
            made.append(Condition.model_validate(item))
        except SceneError as error:
            raise SceneError(f"conditions.{n}: {error}") from None
    return made


def unknown_concept(conditions: list[Condition], known: Mapping[str, Any] | list[str]) -> str:
    """The first concept with a weight inside its region that is none of the known; or empty."""
    named = [name for condition in conditions for name in condition.regions]
    return next((name for name in named if name not in known), "")
