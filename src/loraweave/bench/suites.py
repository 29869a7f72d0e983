"""Suites: which scenes a benchmark has, read from YAML files.

Those of the miniature ship in the folder `suites`; another one is given as a path.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..data_file import read_data
from ..errors import MethodError, SceneError
from ..messages import close_match
from ..miniature.scenes import WORDINGS, ConceptScene, SceneRule, Split, scenes

FOLDER = Path(__file__).parent / "suites"
Size = Literal["quick", "full"]
SIZES: tuple[Size, ...] = ("quick", "full")
Count = Annotated[int, Field(ge=1, le=10_000)]


class Suite(SceneRule):
    """Random scenes of the miniature's concepts.

    Attributes:
        summary: what they are, in a line.
        scenes: by size the number of scenes, and of noises for each.
    """

    summary: str
    scenes: dict[Size, tuple[Count, Count]]

    def count(self, size: Size) -> int:
        """How many scene-seeds a size has; 0 if it has none of that size."""
        scenes, noises = self.scenes.get(size, (0, 0))
        return scenes * noises * (len(WORDINGS) if self.wordings else 1)

    def drawn(self, size: Size, split: Split) -> list[ConceptScene]:
        """The scenes, the same for every caller.

        Raises:
            MethodError: the suite has no such size.
        """
        if size not in self.scenes:
            raise MethodError(f"the suite {self.name!r} has no size {size!r}")
        return scenes(self, split, *self.scenes[size])


@cache
def suite_names() -> tuple[str, ...]:
    """Of those that ship, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_suite(name: str) -> Suite:
    """A suite that ships, by its name, or one of a file, by its path.

    Raises:
        MethodError: no such suite.
        SceneError: something is wrong with the file.
    """
    own = name.endswith((".yaml", ".yml", ".json"))
    if own and Path(name).stem in suite_names():
        raise MethodError(f"{name}: there is a suite {Path(name).stem!r}; call yours otherwise")
    path = Path(name) if own else FOLDER / f"{name}.yaml"
    if name not in suite_names() and (path.parent == FOLDER or not path.is_file()):
        hint = close_match(name, suite_names())
        raise MethodError(f"no suite {name!r}{hint}; there are: {', '.join(suite_names())}")
    data = read_data(path)
    if not isinstance(data, dict):
        raise SceneError(f"{path} holds no suite; see docs/benchmark.md for what one looks like")
    try:
        return Suite.model_validate({"name": path.stem, **data})
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from None
