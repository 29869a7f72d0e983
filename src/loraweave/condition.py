"""How a scene speaks of a picture that it is drawn after: a sketch, a pose map."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from loraweave.errors import SceneError
from loraweave.lora_ref import Data, Fraction, Weight
from loraweave.messages import close_match


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


def weighed_concepts(conditions: Iterable[Condition]) -> list[str]:
    """The concepts inside whose regions some condition has a weight of its own."""
    return [name for condition in conditions for name in condition.regions]


def check_concepts(conditions: Sequence[Condition], concepts: Sequence[str]) -> None:
    """Raise SceneError for a weight inside the region of something that is no concept.

    Args:
        conditions: of a scene.
        concepts: their names.
    """
    for name in weighed_concepts(conditions):
        if name not in concepts:
            raise SceneError(
                f"a condition has a weight inside the region of {name!r}, which is no concept of "
                f"the prompt{close_match(name, concepts)}; mark its words: [trigger noun]({name})"
            )
