"""`loraweave miniature`: its world, its training, its check."""

import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import SceneError
from ..progress import silence_libraries
from . import options

app = typer.Typer(
    help="The small model that ships with the package, and the world that it knows.",
    no_args_is_help=True,
)


@app.command()
def draw(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A .png for one grid, else a folder for all.")
    ],
    count: Annotated[int, typer.Option(min=1, max=100_000)] = 12,
    size: Annotated[
        int | None,
        typer.Option(
            min=16, max=2048, help="Pixels a side.", show_default="as the model's pictures"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    style: Annotated[
        str | None, typer.Option(help="pencil, pixelart, sepia or neon.", show_default="none")
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="One concept alone, as its LoRA is trained from.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw scenes of the world: a grid, or a folder with captions that `train` reads."""
    from ..evaluate.figures import labelled_grid
    from ..miniature.shipped import native_side
    from ..miniature.world.styles import STYLES, in_style
    from ..output import check_output_path

    if style is not None and style not in STYLES:
        raise SceneError(f"no style {style!r}; there are: {', '.join(STYLES)}")
    grid = out.suffix.lower() == ".png"
    if grid:
        check_output_path(out)
    elif out.exists() and not out.is_dir():
        raise SceneError(f"{out} is a file; give a folder, or a name that ends in .png")
    elif not out.is_dir() and not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise SceneError(f"the folder {out.parent} does not exist or cannot be written")
    size = size or native_side()
    images, captions = _drawn(concept, count, size, seed)
    if style is not None:
        images = [in_style(image, style) for image in images]
    paths = [out]
    if grid:
        across = math.ceil(math.sqrt(count * 4 / 3))
        rows = [("", images[i : i + across]) for i in range(0, count, across)]
        labelled_grid(rows, [], out, scale=max(1, 128 // size))
    else:
        paths = _write_folder(out, images, captions)
    if as_json:
        typer.echo(json.dumps({"paths": [str(path) for path in paths], "captions": captions}))
    else:
        typer.echo(f"{out}  {count} pictures")


@app.command()
def train(
    folder: Annotated[Path, typer.Option(help="For checkpoints, logs and the result.")] = Path(
        "runs/miniature"
    ),
    size: Annotated[
        str, typer.Option(help="small (what ships), full (256 pixels) or trial (a moment).")
    ] = "small",
    device: options.Device = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that draw ahead what a GPU learns from.")
    ] = 0,
    until: Annotated[
        str,
        typer.Option(help="The last stage: vae, base, loras, sketch, decoder, judge or all."),
    ] = "all",
    as_json: options.AsJson = False,
) -> None:
    """Train the miniature, its LoRAs and its judge anew; an interrupted run goes on."""
    from ..loading import default_device
    from ..miniature.recipe.train import train_miniature
    from .job import check_device

    where = device or default_device()
    check_device(where)
    report = train_miniature(folder, size=size, device=where, workers=workers, until=until)
    typer.echo(json.dumps(report) if as_json else report["folder"])


@app.command()
def check(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer pictures.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure the miniature that ships: base model, LoRAs, methods, judge."""
    from ..miniature.check import check as check_miniature
    from .report import show_values

    silence_libraries()
    figures: dict[str, Any] = check_miniature(quick=quick)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        show_values(figures)


@app.command()
def compare(
    methods: Annotated[str, typer.Option(help="Names with commas; the first is the yardstick.")] = (
        "merge,clora,weave"
    ),
    suite: Annotated[str, typer.Option(help="See `loraweave bench suites`.")] = "pairs",
    count: Annotated[int, typer.Option("--scenes", min=1, max=1000)] = 60,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Noises of each scene.")] = 2,
    split: Annotated[
        Literal["tuning", "report"],
        typer.Option(help="Choose settings on tuning scenes, report on the others."),
    ] = "report",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 50,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a grid of all pictures (PNG).")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Count what methods get right; `base` and `alone` are yardsticks beside them."""
    from ..bench.suites import read_suite
    from ..miniature.compare import compare_methods, comparison_grid, rates
    from ..miniature.scenes import scenes
    from ..output import check_output_path
    from .report import show_values

    if out is not None:
        check_output_path(out)
    silence_libraries()
    chosen = scenes(read_suite(suite), split, count, seeds)
    results = compare_methods(options.read_methods(methods), chosen, steps=steps)
    if out is not None:
        comparison_grid(results, chosen, out)
    figures = rates(results)
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        show_values(figures)


def _drawn(concept: str | None, count: int, size: int, seed: int) -> tuple[list[Any], list[str]]:
    """Pictures and captions."""
    from ..miniature.concepts import KNOWN, training_drawings
    from ..miniature.world import caption_drawing, render, sample_drawing
    from ..miniature.world.captions import PLACES

    if concept is None:
        drawings = [sample_drawing(seed + i) for i in range(count)]
        captions = [caption_drawing(d, seed + i).text for i, d in enumerate(drawings)]
        return [render(drawing, size).image for drawing in drawings], captions
    if concept not in KNOWN:
        raise SceneError(f"no concept {concept!r}; there are: {', '.join(KNOWN)}")
    spec = KNOWN[concept]
    made = training_drawings(concept, count, size, seed)
    captions = [f"a {spec.trigger} {spec.kind} {PLACES[r.drawing.background]}" for r in made]
    return [rendering.image for rendering in made], captions


def _write_folder(folder: Path, images: list[Any], captions: list[str]) -> list[Path]:
    from ..files import write_atomically
    from ..train.prior import save_png

    paths = [folder / f"{n:05d}.png" for n in range(len(images))]
    for path, image, caption in zip(paths, images, captions):
        # The caption first: a picture without one would be trained under the bare trigger.
        write_atomically(path.with_suffix(".txt"), f"{caption}\n".encode())
        save_png(image, path)
    return paths
