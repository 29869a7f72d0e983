"""`loraweave schema`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SceneError
from ..files import write_atomically
from ..scene import scene_schema


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file instead of standard output.")
    ] = None,
) -> None:
    """Print the JSON Schema of scene files, for editors and other programs."""
    text = json.dumps(scene_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.is_dir() or not out.parent.is_dir():
        raise SceneError(f"{out} cannot be written: it is a folder, or its folder does not exist")
    try:
        write_atomically(out, text.encode())
    except OSError as error:
        raise SceneError(f"{out} cannot be written: {error.strerror}") from None
