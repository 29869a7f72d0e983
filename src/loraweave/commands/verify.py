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
    """Say which pictures of MINE came out differently; exit status 1 if it is more than one of a
    method on a suite, or any on the same versions."""
    from ..bench.verify import MOST, verify
    from .report import show_table

    found = verify(mine, theirs)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        lines = [
            [name, str(row["both"]), str(row["same"]), row["versions"],
             "" if row["score"] is None else f"{row['score']:.4f}", "; ".join(row["others"])]
            for name, row in found.items()
        ]  # fmt: skip
        heads = ["results", "in both", "same", "versions", "scores differ by", "other outcome"]
        show_table(heads, *lines)
    for row in found.values():
        if len(row["others"]) > (0 if row["versions"] == "the same" else MOST):
            raise typer.Exit(1)
