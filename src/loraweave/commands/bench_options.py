"""Arguments that several commands of `bench` share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import SceneError
from . import options
from .for_each import by_method

SIZES = ("quick", "full")

Suites = Annotated[
    list[str] | None,
    typer.Argument(help="Names of `bench suites`, or suites' files.", show_default="pairs"),
]
Methods = Annotated[
    str, typer.Option(help="Names with commas; base, alone and true_masks are yardsticks.")
]
Size = Annotated[
    Literal["quick", "full"],
    typer.Option(help="Mostly 24 or 40 scene-seeds; see `bench suites`."),
]
Split = Annotated[
    Literal["report", "tuning"],
    typer.Option(help="Choose settings on tuning scenes, report on the others."),
]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of the results.")]
First = Annotated[
    int | None,
    typer.Option("--scenes", min=1, help="The first so many scene-seeds only.", show_default="all"),
]
Format = Annotated[
    Literal["table", "markdown", "latex", "csv"], typer.Option("--format", help="What to print.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A setting of one method; repeatable."),
]
Workers = Annotated[int, typer.Option(min=1, help="How many jobs at a time.")]
Data = Annotated[Path | None, typer.Option(help="Folder of a manifest's data files.")]


def names_of(methods: str | None) -> list[str]:
    """Names with commas between them; none of None.

    Raises:
        SceneError: a text without any.
    """
    found = list(dict.fromkeys(n.strip() for n in (methods or "").split(",") if n.strip()))
    if methods is not None and not found:
        raise SceneError(f"--methods {methods!r} names no method; give some, such as merge,weave")
    return found


def settings_of(names: list[str], settings: list[str] | None) -> dict[str, dict[str, Any]]:
    """What `--set METHOD.KEY=VALUE` says, by method."""
    from ..miniature.judged import YARDSTICKS

    return by_method(names, options.read_settings(settings), YARDSTICKS)


def manifest_of(suites: Sequence[str]) -> str | None:
    """The manifest among some suites' names.

    Raises:
        SceneError: it is not alone.
    """
    from ..bench.manifests import is_manifest

    found = next((suite for suite in suites if is_manifest(suite)), None)
    if found is not None and len(suites) > 1:
        raise SceneError(f"{found} is on a base of yours; name the other suites in another command")
    return found


def refuse(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Raise for options that are given though they would not be used."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = {"settings": "set"}.get(name, name).replace("_", "-")
            raise SceneError(f"{reason}; leave --{option} out")


def failed_line(job: Mapping[str, str]) -> str:
    """What is said of a job that failed."""
    return f"failed: {job['suite']}, {job['method']}, {job['scene']}: {job['fault']}"
