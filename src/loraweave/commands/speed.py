"""`loraweave bench speed`: what methods cost beside a plain picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import SceneError
from ..precision import DType
from . import options
from .bench_options import Settings, names_of, settings_of
from .job import check_device

COLUMNS = {
    "method": "method", "loras": "LoRAs", "steps": "steps", "calls": "calls",
    "flops_ratio": "FLOPs / plain", "seconds_ratio": "seconds / plain",
    "memory_ratio": "memory / plain", "naive_flops_ratio": "FLOPs / naive",
    "naive_seconds_ratio": "seconds / naive", "tflops": "TFLOPs", "seconds": "seconds",
    "spread": "spread", "mib": "MiB",
}  # fmt: skip


def speed(
    base: Annotated[
        Literal["miniature", "sd15-random"],
        typer.Option(help="The miniature, or SD 1.5's architecture with random weights."),
    ] = "miniature",
    methods: Annotated[
        str, typer.Option(help="Names with commas; naive is CLoRA in the plain way.")
    ] = "merge,clora,naive,weave",
    loras: Annotated[
        str | None,
        typer.Option(
            help="Numbers of LoRAs, with commas.",
            show_default="1,2,4,8; 2,8 of sd15-random on a CPU",
        ),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, max=128, help="Of each LoRA.")] = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        DType | None,
        typer.Option(help="Arithmetic.", show_default="float32; bfloat16 of sd15-random on cuda"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", help="In pixels.",
            show_default="as the miniature's pictures; of sd15-random 512x512, on a CPU 256x256, "
            "or 192x192 for many graphs at once",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Denoising steps.", show_default="50; 10 of sd15-random on a CPU"
        ),
    ] = None,
    guided_steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, show_default="as the others; 2 of sd15-random on a CPU",
            help="Of clora and naive; under 50 there is one step with updates.",
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            min=0, max=100, help="Extra updates of clora and naive.",
            show_default="20; 1 of sd15-random on a CPU",
        ),
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, max=100, help="Timed runs of each.")] = 3,
    settings: Settings = None,
    pass_batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows of one call of the methods.", show_default="all passes in one call"
        ),
    ] = None,
    flops_only: Annotated[
        bool, typer.Option("--flops-only", help="Count, without drawing anything.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also say which operations take most of the time.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the rows there (JSON).")
    ] = None,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Seconds, denoiser calls, FLOPs and memory as ratios to a plain picture with one LoRA.

    All in one process and one run, taking turns. `--flops-only` counts the operations of whole
    pictures on any machine, without values.
    """
    from ..bench.speed import GUIDED, Plan, counted, measure
    from ..files import write_atomically
    from ..miniature.shipped import native_side
    from .report import show_table

    if flops_only and profile:
        raise SceneError("--flops-only draws nothing that --profile could look at; leave one out")
    if flops_only and pass_batch:
        raise SceneError(
            "--pass-batch changes calls and memory, not FLOPs; leave it or --flops-only out"
        )
    if not flops_only:
        check_device(device)
    names = tuple(names_of(methods))
    large = base != "miniature"
    # What half an hour of two cores is enough for.
    short = large and not flops_only and not device.startswith("cuda")
    counts = _numbers(loras or ("2,8" if short else "1,2,4,8"))
    usual = 512 if large else native_side()
    if short:  # all graphs of eight LoRAs do not fit into 24 GB at 256
        usual = 192 if max(counts) > 4 and set(names) & set(GUIDED) else 256
    plan = Plan(
        base=base, device=device, size=_size(size) if size else (usual, usual), methods=names,
        dtype=dtype or ("bfloat16" if large and device.startswith("cuda") else "float32"),
        counts=counts, rank=rank, steps=steps or (10 if short else 50),
        guided_steps=guided_steps or steps or (2 if short else 50),
        updates=(1 if short else 20) if updates is None else updates,
        repetitions=repetitions, pass_batch=pass_batch, profile=profile,
        settings=settings_of([n for n in names if n not in ("naive", "plain")], settings),
    )  # fmt: skip
    rows = counted(plan, progress=True) if flops_only else measure(plan, progress=True)
    text = json.dumps({"rows": rows}, indent=1)
    if output is not None:
        write_atomically(output, f"{text}\n".encode())
    if as_json:
        typer.echo(text)
        return
    headings, lines = table_of(rows)
    how = "counted" if flops_only else f"{device}, {plan.dtype}"
    title = f"{plan.size[0]}x{plan.size[1]}, {base}, {how}"
    show_table(headings, *lines, title=title)
    if profile:
        headings, lines = slowest_of(rows)
        show_table(headings, *lines, title="most of the time, of one more picture each")


def table_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines; columns in which no row has anything are left out."""
    shown = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [["" if row.get(key) is None else str(row[key]) for key in shown] for row in rows]
    return [COLUMNS[key] for key in shown], lines


def slowest_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings, and lines of the operations that took most of the time."""
    lines = [
        [row["method"], str(row["loras"]), *(str(part[key]) for key in SLOWEST)]
        for row in rows for part in row["slowest"]
    ]  # fmt: skip
    return ["method", "LoRAs", *SLOWEST], lines


SLOWEST = ("part", "calls", "seconds", "share")


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise SceneError(f"--size {text!r} is no size; give width and height, such as 512x512")
    return int(width), int(height)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise SceneError(f"--loras {text!r} is no list of numbers; give some, such as 1,2,4,8")
    return tuple(dict.fromkeys(int(part) for part in parts))
