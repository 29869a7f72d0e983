"""`loraweave convert`, and the base model that LoRA files are fitted to without its weights."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import LoraError
from ..scene import MINIATURE
from . import options

Formats = Literal["peft", "diffusers", "kohya"]


def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA file, or an adapter folder.")],
    to: Annotated[Formats, typer.Option("--to", help="Whose names and layout to write.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A .safetensors file; a new folder for peft.")
    ],
    base: options.LoraBase = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Reduce to at most this rank.", show_default="as it is"),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", metavar="OLD=NEW", help="Rename an embedding; repeatable."),
    ] = None,
    allow_pickle: options.AllowPickle = False,
    allow_partial: options.AllowPartial = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a LoRA in another program's format."""
    from ..lora.adapter import adapter_from_file
    from ..lora.convert import convert_lora
    from ..lora.file import read_lora

    names = _renaming(token or [])
    read = read_lora(file, allow_pickle)
    models = models_for(read, base)
    if models is None:
        raise LoraError(
            f"{file.name} fits no base model that is known by its shapes; give the one that it is "
            "for with --base FOLDER (a diffusers folder; its configuration files are enough)"
        )
    adapter = adapter_from_file(
        file.stem, read, unet=models.unet, text_encoder=models.text_encoder,
        allow_partial=allow_partial,
    )  # fmt: skip
    report = convert_lora(adapter, out, to, rank=rank, tokens=names)
    if report.dropped:
        typer.echo(f"note: left out {len(report.dropped)} tensors: "
                   f"{', '.join(report.dropped[:3])}", err=True)  # fmt: skip
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2))
        return
    ranks = "-".join(str(r) for r in sorted({report.ranks[0], report.ranks[-1]}))
    line = f"{report.path}  {to}, {report.modules} modules of rank {ranks}"
    if report.approximated:
        line += f", {report.approximated} of them changed with a relative error of "
        line += f"{report.relative_error:.2g} (at most {report.largest_error:.2g})"
    typer.echo(line)


def models_for(file: Any, base: str | None) -> Any:
    """The modules that a LoRA file is fitted to: of the base named, or of the one it seems to fit.

    Args:
        file: a `LoraFile`.
        base: "sd15", "miniature", a diffusers folder, or None.

    Returns:
        A `Skeleton`, or None if nothing is known about the file's base.

    Raises:
        ModelNotFound: no such folder.
    """
    from ..lora.base import guess_base
    from ..lora.skeleton import sd1_skeleton, skeleton
    from ..miniature.shipped import base_folder

    if base is None:
        guess = guess_base({key: tuple(tensor.shape) for key, tensor in file.tensors.items()})
        if guess is not None and not guess.known:
            if 128 not in (guess.width, guess.text_width):
                return None
            base = MINIATURE
    if base == MINIATURE:
        return skeleton(base_folder())
    return sd1_skeleton() if base in (None, "sd15") else skeleton(base)


def _renaming(texts: list[str]) -> dict[str, str]:
    names = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not (equals and old and new) or old in names:
            raise LoraError(f"--token {text!r} is not of the form OLD=NEW, once for each token")
        names[old] = new
    return names
