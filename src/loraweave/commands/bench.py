"""`loraweave bench`: suites of scenes, run so that they resume, and reported."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import options
from .for_each import by_method
from .job import check_device

app = typer.Typer(no_args_is_help=True, help="Run suites of scenes by several methods.")

Suite = Annotated[
    str,
    typer.Argument(help="pairs, same_class, three, four, five, style, boxes2 to 5, attributes."),
]
Methods = Annotated[
    str, typer.Option(help="Names with commas; base, alone and true_masks are yardsticks.")
]
Size = Annotated[
    Literal["quick", "full"],
    typer.Option(help="30 or 40 scene-seeds; with boxes 4 to 8, or 20 to 40."),
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
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A setting of one method; repeatable."),
]


@app.command()
def run(
    suite: Suite = "pairs",
    methods: Methods = "merge,clora",
    size: Size = "quick",
    split: Split = "report",
    steps: Steps = 50,
    settings: Settings = None,
    scenes: First = None,
    results: Results = Path("results"),
    device: Annotated[
        str, typer.Option(help="That draws. Results of another one are other results.")
    ] = "cpu",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")
    ] = "local",
    workers: Annotated[int, typer.Option(min=1, help="How many jobs at a time.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Draw and judge what is not finished yet; one file a method in RESULTS/SUITE.

    A job that fails does not stop the others; they are listed at the end, and the exit status
    is 1.
    """
    from ..bench import run_jobs, suite_jobs
    from ..progress import silence_libraries

    if engine == "local":
        check_device(device)
    names = _names(methods)
    jobs = suite_jobs(
        suite, names, size, split=split, steps=steps, settings=_settings(names, settings),
        first=scenes, device=device,
    )  # fmt: skip
    silence_libraries()
    counts = run_jobs(jobs, results, engine, workers)
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo(f"{counts['run']} jobs run, {counts['found']} were finished before")
    for job in counts["failed"]:
        scene = f"{', '.join(job['names'])} in {job['background']}, seed {job['seed']}"
        typer.echo(f"failed: {job['method']}, {scene}: {job['fault']}", err=True)
    if counts["failed"]:
        raise typer.Exit(1)


@app.command()
def report(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suites.", show_default="all with results")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names with commas.", show_default="all with results")
    ] = None,
    size: Size = "full",
    split: Split = "report",
    steps: Steps = 50,
    settings: Settings = None,
    scenes: First = None,
    results: Results = Path("results"),
    device: Annotated[str, typer.Option(help="That drew.")] = "cpu",
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare the others with this one, scene by scene.",
            show_default="the first",
        ),
    ] = None,
    form: Annotated[
        Literal["table", "markdown", "latex", "csv"],
        typer.Option("--format", help="What to print."),
    ] = "table",
    as_json: options.AsJson = False,
) -> None:
    """Rates of what is finished, with 95 % bootstrap intervals and paired differences."""
    from ..bench import NothingFinished, finished, suite_jobs, tables
    from ..bench import report as made
    from ..errors import SceneError
    from .report import show_table

    there = finished(results)
    if not (wanted := suites or list(there)):
        raise SceneError(f"no results in {results}; use `loraweave bench run`")
    own = {suite: _names(methods) if methods else there.get(suite, []) for suite in wanted}
    every = list(dict.fromkeys(name for names in own.values() for name in names))
    given = _settings(every, settings)
    found = {}
    for suite, names in own.items():
        if not names:
            raise SceneError(f"no results of {suite!r} in {results}; use `loraweave bench run`")
        jobs = suite_jobs(
            suite, names, size, split=split, steps=steps, settings=given, first=scenes,
            device=device,
        )  # fmt: skip
        try:
            found[suite] = made(jobs, results, against or names[0])
        except NothingFinished:
            if suites or len(own) == 1:  # else the others are shown
                raise
    if not found:
        raise SceneError(f"nothing of this is finished in {results}; use `loraweave bench run`")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif form == "table":
        for suite, rows in found.items():
            show_table(*tables.cells(rows), title=suite)
    else:
        written = {
            "markdown": tables.markdown,
            "latex": tables.latex,
            "csv": tables.comma_separated,
        }
        typer.echo(written[form](found), nl=False)


def _names(methods: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in methods.split(",")))


def _settings(names: list[str], settings: list[str] | None) -> dict[str, dict[str, Any]]:
    from ..miniature.judged import YARDSTICKS

    return by_method(names, options.read_settings(settings), YARDSTICKS)
