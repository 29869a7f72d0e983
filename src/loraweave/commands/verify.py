"""`loraweave bench verify`: results that were made again, beside those that they should equal."""

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options


def verify(
    mine: Annotated[Path, typer.Argument(help="Folder of results that were made again.")],
    theirs: Annotated[
        Path, typer.Option("--against", help="Folder of those that they should equal.")
    ] = Path("results"),
    as_json: options.AsJson = False,
) -> None:
    """Say which pictures of MINE came out differently.

    Exit status 1 if the judge says something else of more than one of a method on a suite, if
    anything differs at all on the same versions, or if a picture has no counterpart, because its
    settings, weights or scene are others.
    """
    from ..bench.verify import verify
    from .report import show_table

    found = verify(mine, theirs)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        lines = [
            [name, str(row["both"]), str(row["mine_only"]), str(row["same"]), row["versions"],
             f"{row['largest']:.4f}", "; ".join(row["others"])]
            for name, row in found.items()
        ]  # fmt: skip
        heads = [
            "results",
            "in both",
            "in MINE only",
            "same",
            "versions",
            "figures differ by",
            "other outcome",
        ]
        show_table(heads, *lines)
    if not all(row["fine"] for row in found.values()):
        raise typer.Exit(1)
