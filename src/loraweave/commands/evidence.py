"""What results say: agreement, ablations, searches, the papers' tables, one page."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .bench_options import (
    First,
    Format,
    Results,
    Size,
    Steps,
    Workers,
    failed_line,
    manifest_of,
    names_of,
    refuse,
)


def agreement(
    context: typer.Context,
    suites: Annotated[
        list[str] | None,
        typer.Argument(help="Suites, or a manifest.", show_default="all with results"),
    ] = None,
    size: Size = "full",
    results: Results = Path("results"),
    form: Format = "table",
    as_json: options.AsJson = False,
) -> None:
    """How far the papers' scores say what the judge says, over all pictures with scores."""
    from ..bench import agreement as of
    from ..bench import finished, methods_there, suite_jobs
    from ..bench.agreement import agreement_of as of_rows
    from ..bench.manifests import read_manifest
    from ..bench.report import manifest_rows
    from ..bench.tables import OWN_BASE, WHERE

    if (manifest := manifest_of(suites or ())) is not None:
        refuse(context, ("size",), f"of {manifest} all pictures count")
        rows = manifest_rows(results, read_manifest(manifest)[0]).values()
        every = [row for own in rows for row in own.values()]
        hint = f"{results}; `bench run` does so with --references, --clip or --dino, --segmenter"
        found, where = of_rows(every, hint), f"{OWN_BASE}, {manifest}"
    else:
        named = {suite: methods_there(results, suite) for suite in suites or finished(results)}
        jobs = [job for suite, names in named.items() for job in suite_jobs(suite, names, size)]
        found, where = of(jobs, results), WHERE
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    counts = found.pop("pictures")
    kinds = ["missing", "duplicated", "swapped", "blended"]
    lines = [
        [name, f"{row['rank']:.2f} [{row['rank_ci'][0]:.2f}, {row['rank_ci'][1]:.2f}]",
         *("" if row[kind] is None else f"{row[kind]:.2f}" for kind in kinds)]
        for name, row in found.items()
    ]  # fmt: skip
    lines.append(["pictures", str(counts["all"]), *(str(counts[kind]) for kind in kinds)])
    title = f"what the papers' scores see, {where}"
    _show(form, title, ["score", "rank correlation", *kinds], lines)


def ablation(
    name: Annotated[str, typer.Argument(help="clora, or a file with method, suite, variants.")],
    run_first: Annotated[
        bool, typer.Option("--run", help="Draw what is not finished yet, first.")
    ] = False,
    size: Size = "full",
    steps: Steps = 50,
    scenes: First = None,
    results: Results = Path("results/ablation"),
    workers: Workers = 1,
    chart: Annotated[Path | None, typer.Option(help="Also write a chart (PNG).")] = None,
    form: Format = "table",
    as_json: options.AsJson = False,
) -> None:
    """One method with its settings changed one after the other, against its default."""
    from ..bench import NothingFinished, run_jobs, tables
    from ..bench.ablation import DEFAULT, ablation_jobs, ablation_report, read_ablation
    from ..bench.page import ablated
    from ..errors import SceneError
    from ..files import write_atomically
    from ..output import check_output_path
    from .report import show_table

    if chart is not None:
        check_output_path(chart)
    read = read_ablation(name)
    jobs = ablation_jobs(read, size, steps=steps, first=scenes)
    failed = []
    if run_first:
        each = [job for own in zip(*jobs.values()) for job in own]
        each.sort(key=lambda job: str(job.setting))  # a worker has one model at a time
        failed = run_jobs(each, results, workers=workers)["failed"]
    for job in failed:
        typer.echo(failed_line(job), err=True)
    try:
        rows = ablation_report(jobs, results)
    except NothingFinished:
        if failed:
            raise typer.Exit(1) from None
        raise
    title = f"{read.method} on {read.suite}, one thing changed at a time"
    if chart is not None:
        made = ablated(jobs, results, f"{read.method} on {read.suite}")
        if made is None:
            raise SceneError(f"nothing but {DEFAULT!r} is finished, so there is no chart of it")
        write_atomically(chart, made[1])
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif form == "table":
        show_table(*tables.cells(rows), title=f"{title}, {tables.WHERE}")
    else:
        written = {"markdown": tables.markdown, "latex": tables.latex,
                   "csv": tables.comma_separated}  # fmt: skip
        typer.echo(written[form]({title: rows}), nl=False)
    if failed:
        raise typer.Exit(1)


def tune(
    method: Annotated[str, typer.Argument(help="Whose settings are searched.")],
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=LOW:HIGH[:log] | KEY=A,B", help="What to search; repeatable."),
    ] = None,
    suite: Annotated[str, typer.Option(help="Whose tuning scenes are searched.")] = "pairs",
    trials: Annotated[int, typer.Option(min=1, help="Settings that are tried.")] = 20,
    scenes: Annotated[int, typer.Option(min=1, help="Scene-seeds of each.")] = 12,
    steps: Steps = 50,
    results: Annotated[Path, typer.Option("--results", help="Folder of the results.")] = Path(
        "results/tuning"
    ),
    workers: Workers = 1,
    as_json: options.AsJson = False,
) -> None:
    """Search a method's settings on tuning scenes, and report on others what they are worth."""
    from ..bench.tune import JobsFailed, read_search, tune
    from ..errors import MethodError
    from ..progress import silence_libraries
    from .report import show_values

    if wrong := [item for item in search or () if "=" not in item]:
        raise MethodError(f"--search {wrong[0]!r} has no values; write KEY=LOW:HIGH or KEY=A,B")
    given = {key: text for key, _, text in (item.partition("=") for item in search or ())}
    silence_libraries()
    try:
        found = tune(
            method, read_search(method, given), results, suite=suite, trials=trials, scenes=scenes,
            steps=steps, workers=workers,
        )  # fmt: skip
    except JobsFailed as error:
        for job in error.jobs:
            typer.echo(failed_line(job), err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(found, indent=2)) if as_json else show_values(found)


def grid(
    suite: Annotated[str, typer.Argument(help="A name of `bench suites`, or a suite's file.")],
    out: Annotated[Path, typer.Argument(help="A .png file.")],
    methods: Annotated[str, typer.Option(help="Names with commas.")] = "merge,clora,weave",
    size: Size = "full",
    steps: Steps = 50,
    scenes: Annotated[
        int, typer.Option("--scenes", min=1, help="The first so many scene-seeds.")
    ] = 6,
    results: Results = Path("results"),
) -> None:
    """Pictures that `bench run --pictures` kept, side by side, with what the judge finds."""
    import io

    from ..bench import suite_jobs
    from ..bench.grid import grid as made
    from ..files import write_atomically
    from ..output import check_output_path

    check_output_path(out)
    jobs = suite_jobs(suite, names_of(methods), size, steps=steps, first=scenes)
    buffer = io.BytesIO()
    made(jobs, results).save(buffer, "PNG")
    write_atomically(out, buffer.getvalue())
    typer.echo(f"written to {out}")


def page(
    out: Annotated[Path, typer.Argument(help="An .html file.")],
    size: Size = "full",
    results: Results = Path("results"),
) -> None:
    """Everything that RESULTS say, with charts, as one HTML page."""
    from ..bench.page import page as made
    from ..errors import SceneError
    from ..files import write_atomically

    if out.suffix.lower() != ".html" or not out.parent.is_dir():
        raise SceneError(f"cannot write {out}; give the name of an .html file in a folder")
    write_atomically(out, made(results, size).encode())
    typer.echo(f"written to {out}")


def papers(
    context: typer.Context,
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="1a, 1b, 2 or 3 of CLoRA's paper.", show_default="all"),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names with commas.", show_default="the papers'")
    ] = None,
    size: Size = "full",
    manifest: Annotated[
        str | None,
        typer.Option(help="Ours are what this one's results say, instead of the miniature's."),
    ] = None,
    results: Results = Path("results"),
    form: Format = "table",
    as_json: options.AsJson = False,
) -> None:
    """The papers' tables in their layout: ours from RESULTS, and beside it what they state."""
    from ..bench.manifests import read_manifest
    from ..bench.papers import of_manifest, on_suites, paper_tables, side_by_side
    from ..bench.report import manifest_rows
    from ..bench.tables import OWN_BASE, WHERE
    from ..errors import MethodError, SceneError

    known, named = paper_tables(), names_of(methods)
    shown, found, where, empty = {}, None, WHERE, True
    if manifest is not None:
        refuse(context, ("size",), f"of {manifest} all pictures count")
        found = manifest_rows(results, read_manifest(manifest)[0], named or None)
        where = f"{OWN_BASE}, {manifest}"
    for name in [name if " " in name else f"clora {name}" for name in tables or known]:
        if name not in known:
            raise MethodError(f"no table {name!r}; there are: {', '.join(known)}")
        table = known[name][1]
        if found is None:
            ours = on_suites(table, results, size, named)
        else:
            ours = of_manifest(table, found, named)
        empty = empty and not ours
        shown[name] = side_by_side(*known[name], ours, where)
    if empty and not any(results.glob("*/*.json")):
        raise SceneError(f"no results in {results}; use `loraweave bench run`")
    if as_json:
        typer.echo(json.dumps({name: asdict(cells) for name, cells in shown.items()}, indent=2))
        return
    for name, cells in shown.items():
        _show(form, f"{name}: {cells.title}", cells.head, cells.lines)


def _show(form: str, title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """One table in the form that is asked for."""
    from ..bench.tables import csv_text, latex_table, markdown_table
    from .report import show_table

    if form == "table":
        show_table(list(head), *map(list, lines), title=title)
    elif form == "latex":
        typer.echo(latex_table(title, head, lines) + "\n")
    elif form == "csv":
        typer.echo(f"# {title}\n{csv_text(head, lines)}")
    else:
        typer.echo(f"### {title}\n\n{markdown_table(head, lines)}\n")
