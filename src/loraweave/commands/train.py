"""`loraweave train`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import TrainingError
from ..scene import MINIATURE
from . import options
from .job import load_model


def train(
    folder: Annotated[Path, typer.Argument(help="Pictures, each with an optional .txt caption.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors to write.")],
    trigger: Annotated[
        str,
        typer.Option(
            help="The word that shall stand for the subject; none for a style. "
            "An ed-lora makes the tokens <WORD1> and <WORD2> of it."
        ),
    ] = "",
    class_noun: Annotated[
        str, typer.Option("--class", help="What the subject is, e.g. cat; none for a style.")
    ] = "",
    base: Annotated[str, typer.Option(help="As for `generate`.")] = MINIATURE,
    rank: Annotated[int | None, typer.Option(help="Of every update.", show_default="8")] = None,
    alpha: Annotated[float | None, typer.Option(show_default="the rank")] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default="1e-4")] = None,
    text_learning_rate: Annotated[
        float | None, typer.Option(show_default="the learning rate")
    ] = None,
    steps: Annotated[int | None, typer.Option(show_default="800")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="1")] = None,
    size: Annotated[
        int | None,
        typer.Option("--size", "--resolution", help="Pixels a side.", show_default="the model's"),
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0")] = None,
    kind: Annotated[
        Literal["lora", "ed-lora"],
        typer.Option(help="ed-lora: with two tokens that have a vector for each layer."),
    ] = "lora",
    text_encoder: Annotated[
        bool | None,
        typer.Option(help="Also train the text encoder.", show_default="for an ed-lora"),
    ] = None,
    embedding_learning_rate: Annotated[
        float | None, typer.Option(help="Of an ed-lora's tokens.", show_default="1e-3")
    ] = None,
    flip: Annotated[bool, typer.Option(help="Also train on mirrored pictures.")] = False,
    prior: Annotated[
        float | None,
        typer.Option(help="Weight of the prior-preservation loss.", show_default="0, none"),
    ] = None,
    prior_folder: Annotated[
        Path | None, typer.Option(help="Class pictures for it, instead of drawing some.")
    ] = None,
    prior_count: Annotated[
        int | None, typer.Option(help="Class pictures to draw for it.", show_default="100")
    ] = None,
    min_snr: Annotated[
        float | None, typer.Option(help="Gamma of the min-SNR loss weight.", show_default="none")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps; 0 for none.", show_default="100")
    ] = None,
    preview_every: Annotated[
        int | None, typer.Option(help="Steps; 0 for none.", show_default="0")
    ] = None,
    format: Annotated[
        Literal["kohya", "diffusers"], typer.Option(help="Names in the file.")
    ] = "kohya",
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run.")] = True,
    dtype: options.Precision = "float32",
    device: options.Device = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a LoRA of one subject, or of a style, or an ED-LoRA, from a folder of pictures."""
    from ..train import TrainSettings, train_lora
    from ..train.inputs import checked_examples

    given = {
        "rank": rank, "alpha": alpha, "learning_rate": learning_rate, "steps": steps,
        "text_learning_rate": text_learning_rate, "batch_size": batch_size, "size": size,
        "seed": seed, "prior": prior, "class_folder": prior_folder, "class_images": prior_count,
        "min_snr": min_snr, "checkpoint_every": checkpoint_every, "preview_every": preview_every,
        "kind": kind, "embedding_learning_rate": embedding_learning_rate,
        "text_encoder": text_encoder, "flip": flip, "dtype": dtype,
    }  # fmt: skip
    settings = TrainSettings(**{key: value for key, value in given.items() if value is not None})
    _check_output(out)
    checked_examples(folder, trigger, class_noun, settings)
    # The updates and the frozen model stay float32; `dtype` is that of the forward pass.
    pipe = load_model(base, "float32", device)
    report = train_lora(
        pipe, folder, trigger=trigger, class_noun=class_noun, out=out, settings=settings,
        format=format, resume=resume, progress=not quiet and sys.stderr.isatty(),
    )  # fmt: skip
    if as_json:
        data = {
            "path": str(report.path), "steps": report.steps,
            "seconds": round(report.seconds, 3), "losses": report.losses,
        }  # fmt: skip
        typer.echo(json.dumps(data))
    elif not quiet:
        typer.echo(f"{report.path}  {report.steps} steps, {report.seconds:.1f} s")


def _check_output(out: Path) -> None:
    """An hour of training must not end at a path that cannot be written."""
    if out.suffix != ".safetensors" or out.is_dir():
        raise TrainingError(f"The LoRA is written as a .safetensors file, but out is {out}.")
    if not out.parent.is_dir():
        raise TrainingError(f"The folder {out.parent} does not exist; create it first.")
    if not os.access(out.parent, os.W_OK):
        raise TrainingError(f"The folder {out.parent} cannot be written.")
