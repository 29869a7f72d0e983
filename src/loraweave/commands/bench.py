"""`loraweave bench`: suites of scenes, run so that they resume, and reported."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import MethodError, SceneError
from . import evidence, options
from . import speed as speed_command
from . import verify as verify_command
from .bench_options import (
    SIZES,
    Data,
    First,
    Format,
    Methods,
    Results,
    Settings,
    Size,
    Split,
    Steps,
    Suites,
    Workers,
    failed_line,
    manifest_of,
    names_of,
    refuse,
    settings_of,
)
from .job import check_device

app = typer.Typer(no_args_is_help=True, help="Run suites of scenes by several methods.")


@app.command()
def suites(as_json: options.AsJson = False) -> None:
    """What suites there are."""
    from ..bench import read_suite, suite_names
    from .report import show_table

    found = {name: read_suite(name) for name in suite_names()}
    if as_json:
        typer.echo(json.dumps({n: s.model_dump(exclude={"name"}) for n, s in found.items()}))
        return
    lines = [[n, s.summary, *(str(s.count(size)) for size in SIZES)] for n, s in found.items()]
    show_table(["suite", "scenes", *SIZES], *lines)


@app.command()
def run(
    context: typer.Context,
    suites: Suites = None,
    methods: Methods = "merge,clora,weave",
    size: Size = "quick",
    split: Split = "report",
    steps: Steps = 50,
    settings: Settings = None,
    scenes: First = None,
    results: Results = Path("results"),
    scheduler: options.Scheduler = None,
    device: Annotated[
        str, typer.Option(help="That draws. Results of another one are other results.")
    ] = "cpu",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")
    ] = "local",
    workers: Workers = 1,
    keep: Annotated[
        bool, typer.Option("--pictures", help="Keep the pictures, in RESULTS/SUITE/METHOD.")
    ] = False,
    flops: Annotated[
        bool, typer.Option("--flops", help="Draw everything twice, to count its FLOPs.")
    ] = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Also what lacks today's scores or its versions.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Of a manifest's pictures: a folder or a .safetensors file.")
    ] = None,
    lora_dir: options.LoraDir = None,
    data: Data = None,
    dtype: options.Precision = "float32",
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP model, for scores.")] = None,
    dino: Annotated[Path | None, typer.Option(help="Folder of a DINO model, for scores.")] = None,
    references: Annotated[
        Path | None, typer.Option(help="Folder of pictures from `loraweave references`.")
    ] = None,
    segmenter: Annotated[
        str | None, typer.Option(help="For failures and instances: clipseg or grounded_sam.")
    ] = None,
    segmenter_model: Annotated[
        list[Path] | None, typer.Option(help="Folder of the segmenter's model, or two.")
    ] = None,
    allow_partial: options.AllowPartial = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw and judge what is not finished yet; one file a method in RESULTS/SUITE.

    A manifest (`bench manifests`) is drawn on a base of yours, and its pictures are kept.

    A job that fails does not stop the others; they are listed at the end, and the exit status
    is 1.
    """
    from ..bench import run_jobs, suite_jobs
    from ..bench.real import Setting, real_jobs
    from ..progress import silence_libraries

    if engine == "local":
        check_device(device)
    names, jobs = names_of(methods), []
    own = settings_of(names, settings)
    suites = list(dict.fromkeys(suites or ["pairs"]))
    if (suite := manifest_of(suites)) is not None:
        refuse(context, OF_SUITES, f"{suite} says itself what is drawn")
        if base is None or lora_dir is None:
            raise SceneError(f"{suite} needs --base and --lora-dir")
        setting = Setting(
            str(Path(base).resolve()), dtype, _text(clip), _text(dino), _text(references),
            segmenter, tuple(str(path.resolve()) for path in segmenter_model or ()),
            allow_partial,
        )  # fmt: skip
        jobs = real_jobs(
            suite, names, setting, lora_dir.resolve(), data, settings=own, first=scenes,
            device=device,
        )  # fmt: skip
        keep = True
    else:
        refuse(context, OF_MANIFESTS, f"{suites[0]} is drawn on the miniature")
        jobs = [
            job for suite in suites for job in suite_jobs(
                suite, names, size, split=split, steps=steps, settings=own, first=scenes,
                device=device, scheduler=scheduler, dtype=dtype,
            )
        ]  # fmt: skip
        striped = {job.method for job in jobs if job.settings.get("layout") == "strips"}
        if untold := [name for name in names if name in striped and "layout" not in own[name]]:
            typer.echo(
                "note: where scenes have no boxes, the picture is cut into strips from left to "
                f"right for {', '.join(untold)} (layout=strips)",
                err=True,
            )
    silence_libraries()
    counts = run_jobs(jobs, results, engine, workers, keep, flops, refresh)
    if as_json:
        typer.echo(json.dumps(counts))
    else:
        typer.echo(f"{counts['run']} jobs run, {counts['found']} were finished before")
    for job in counts["failed"]:
        typer.echo(failed_line(job), err=True)
    if counts["failed"]:
        raise typer.Exit(1)


@app.command()
def report(
    context: typer.Context,
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
    scheduler: options.Scheduler = None,
    dtype: options.Precision = "float32",
    device: Annotated[str, typer.Option(help="That drew.")] = "cpu",
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare the others with this one, scene by scene.",
            show_default="the first",
        ),
    ] = None,
    form: Format = "table",
    as_json: options.AsJson = False,
) -> None:
    """Rates of what is finished, with 95 % bootstrap intervals and paired differences.

    In the layout of the papers' tables: `bench papers`.
    """
    from ..bench import NothingFinished, finished, methods_there, suite_jobs, tables
    from ..bench import report as made
    from ..bench.manifests import is_manifest
    from ..bench.report import manifests_there, report_all
    from .report import show_table

    if not (wanted := suites or list(finished(results)) or manifests_there(results)):
        raise SceneError(f"no results in {results}; use `loraweave bench run`")
    manifests = {suite for suite in wanted if is_manifest(suite)}
    own = {
        suite: names_of(methods) if methods or suite in manifests else methods_there(results, suite)
        for suite in wanted
    }
    every = list(dict.fromkeys(name for names in own.values() for name in names))
    given = settings_of(every, settings)
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for suite, names in own.items():
        if suite in manifests:
            wrong = (*OF_SUITES, "dtype", "settings", "scenes", "device")
            refuse(context, wrong, f"{suite} is reported whole")
            name = Path(suite).stem
            found[name] = report_all(results, name, names or None, against)
            places[name] = tables.OWN_BASE
            continue
        if not names:
            raise SceneError(f"no results of {suite!r} in {results}; use `loraweave bench run`")
        jobs = suite_jobs(
            suite, names, size, split=split, steps=steps, settings=given, first=scenes,
            device=device, scheduler=scheduler, dtype=dtype,
        )  # fmt: skip
        try:
            found[suite] = made(jobs, results, against or names[0])
        except NothingFinished:
            if suites or len(own) == 1:  # else the others are shown
                raise
    if not found:
        raise SceneError(f"nothing of this is finished in {results}; use `loraweave bench run`")
    places = {suite: places.get(suite, tables.WHERE) for suite in found}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif form == "csv":
        typer.echo(tables.comma_separated(found), nl=False)
    elif form == "table":
        for suite, rows in found.items():
            show_table(*tables.cells(rows), title=f"{suite}, {places[suite]}")
    else:
        written = {
            "markdown": tables.markdown,
            "latex": tables.latex,
        }
        for suite, rows in found.items():
            typer.echo(written[form]({suite: rows}, where=places[suite]), nl=False)


@app.command()
def manifests(as_json: options.AsJson = False) -> None:
    """The papers' benchmarks for real bases, and what you need for them."""
    from ..bench.manifests import manifest_names, read_manifest
    from .report import show_values

    found = {name: read_manifest(name)[1] for name in manifest_names()}
    short = {
        n: {"summary": m.summary, "source": m.source, "needs": m.needs} for n, m in found.items()
    }
    typer.echo(json.dumps(short, indent=2)) if as_json else show_values(short)


@app.command()
def check(
    suite: Annotated[str, typer.Argument(help="A manifest or a suite, by name or file.")],
    lora_dir: options.LoraDir = None,
    data: Data = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what a suite would draw, and what is missing; nothing is drawn or downloaded.

    Exit status 2 if LoRAs are missing.
    """
    from ..bench import read_suite
    from ..bench.manifests import check as checked
    from ..bench.manifests import is_manifest, manifest_names, read_manifest
    from .report import show_values

    if not is_manifest(suite):
        try:
            read = read_suite(suite)
        except MethodError as error:
            known = ", ".join(manifest_names())
            raise MethodError(f"{error}; and the manifests {known}") from None
        for size in read.scenes:
            read.drawn(size, "report")  # what cannot be is said here
        found: dict[str, Any] = {"name": read.name, "summary": read.summary, "base": "miniature",
                                 "scenes": {size: read.count(size) for size in SIZES}}  # fmt: skip
        faults: dict[str, str] = {}
    else:
        name, manifest = read_manifest(suite)
        scenes, faults = checked(manifest, lora_dir, data)
        concepts = {n for scene in scenes for n in scene.loras}
        found = {"name": name, "summary": manifest.summary, "source": manifest.source,
                 "needs": manifest.needs, "pictures": len(scenes), "loras": len(concepts),
                 "first_prompt": scenes[0].prompt, "missing": faults}  # fmt: skip
    typer.echo(json.dumps(found, indent=2)) if as_json else show_values(found)
    if faults:
        raise typer.Exit(2)


OF_SUITES = ("size", "split", "steps", "scheduler")
OF_MANIFESTS = (
    "base", "lora_dir", "data", "clip", "dino", "references", "segmenter", "segmenter_model",
    "allow_partial",
)  # fmt: skip
"""Options that only one kind has."""


def _text(path: Path | None) -> str | None:
    """As a worker in another folder reads it."""
    return None if path is None else str(path.resolve())


for command in (
    evidence.agreement,
    evidence.ablation,
    evidence.tune,
    evidence.page,
    evidence.grid,
    evidence.papers,
    speed_command.speed,
    verify_command.verify,
):
    app.command()(command)
