"""One method with its settings changed one after the other, on the same scenes and seeds."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..data_file import read_data
from ..errors import MethodError, SceneError
from ..lora_ref import Data
from ..precision import DType
from .jobs import Job, suite_jobs
from .rates import Row
from .report import compared, finished_scenes, report
from .suites import Size

FOLDER = Path(__file__).parent / "ablations"
DEFAULT, RUN = "default", "run"


class Run(Data):
    """How a variant is drawn, beside its settings.

    Attributes:
        steps, scheduler, dtype: see `suite_jobs`.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    scheduler: str | None = None
    dtype: DType = "float32"


class Ablation(Data):
    """What is compared.

    Attributes:
        method: of which.
        suite: on whose report scenes.
        variants: settings by the variant's name; `default` has none and is what the others are
            compared with. Under `run` may be how else it is drawn: steps, scheduler, dtype.
    """

    method: str
    suite: str
    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=2)]


@cache
def ablation_names() -> tuple[str, ...]:
    """Of those that ship."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_ablation(name: str) -> Ablation:
    """One that ships, by its name, or one of a file, by its path.

    Raises:
        MethodError: no such ablation.
        SceneError: something is wrong with the file.
    """
    path = FOLDER / f"{name}.yaml" if name in ablation_names() else Path(name)
    if not path.is_file():
        raise MethodError(f"no ablation {name!r}; there are: {', '.join(ablation_names())}")
    try:
        found = Ablation.model_validate(read_data(path))
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from None
    if found.variants.get(DEFAULT) != {}:
        raise SceneError(f"{path}: an ablation has a variant {DEFAULT!r} without settings")
    return found


def ablation_jobs(
    ablation: Ablation, size: Size = "full", *, steps: int = 50, first: int | None = None
) -> dict[str, list[Job]]:
    """By variant its jobs.

    Raises:
        MethodError: an unknown suite, method or setting.
    """
    return {
        name: suite_jobs(
            ablation.suite, [ablation.method], size, first=first,
            settings={ablation.method: {k: v for k, v in settings.items() if k != RUN}},
            **{"steps": steps, **_how(name, settings.get(RUN, {}))},
        )
        for name, settings in ablation.variants.items()
    }  # fmt: skip


def _how(variant: str, given: Any) -> dict[str, Any]:
    """What a variant says under `run`.

    Raises:
        MethodError: something else than is known.
    """
    try:
        return Run.model_validate(given).model_dump(exclude_unset=True)
    except SceneError as error:
        raise MethodError(f"{variant!r}, {RUN}: {error}") from None


def in_common(jobs: Mapping[str, Sequence[Job]], folder: Path) -> dict[str, list[Job]]:
    """Of all variants that have results the jobs of those scene-seeds that all of them have.

    Side by side, as in a chart, only these can be compared.

    Raises:
        SceneError: a file of results is damaged.
    """
    finished = {name: finished_scenes(own, folder) for name, own in jobs.items()}
    shared = set.intersection(*(own for own in finished.values() if own), finished[DEFAULT])
    return {
        name: [job for job in own if job.scene_key in shared]
        for name, own in jobs.items() if finished[name]
    }  # fmt: skip


def ablation_report(jobs: Mapping[str, Sequence[Job]], folder: Path) -> dict[str, Row]:
    """By variant what `report` says, and its difference to the default, paired by scene-seed.

    Variants of which nothing is finished are left out.

    Raises:
        NothingFinished: of the default.
        SceneError: a file of results is damaged.
    """
    rows = {}
    report(jobs[DEFAULT], folder)  # raises where there is nothing to compare with
    for name, own in jobs.items():
        found = compared({name: own, DEFAULT: jobs[DEFAULT]}, folder, DEFAULT)
        if found[name]["scenes"]:
            rows[name] = found[name]
    return rows
