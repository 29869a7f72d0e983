"""`loraweave inspect`, and how reports are printed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options


def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA, or a picture made by LoRAWeave.")],
    base: options.LoraBase = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what a LoRA file is, or how a picture was made."""
    data: dict[str, Any]
    if file.suffix.lower() == ".png":
        from ..output import read_png_record

        data = read_png_record(file)
        # Without a table: a record is nested, and what is printed can be copied into a scene.
        typer.echo(json.dumps(data, indent=2, ensure_ascii=as_json))
        return
    from ..lora.file import read_lora
    from ..lora.inspect import FORMER_NAMES, inspect_file
    from .lora import models_for

    read = read_lora(file, allow_pickle)
    data = inspect_file(read, models_for(read, base)).model_dump(mode="json")
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    show_values({k.replace("_", " "): v for k, v in data.items() if k not in FORMER_NAMES})


def show_values(values: dict[str, Any]) -> None:
    """Print names and values, one a line; nested ones with dots, empty ones as a dash."""
    table = _table()
    for key, value in _flat(values):
        table.add_row(key, value)
    show(table)


def show_table(headings: Sequence[str], *lines: Sequence[str], title: str = "") -> None:
    """Print lines under headings."""
    from rich.text import Text

    table = _table(*headings)
    table.title, table.title_justify = title, "left"
    for line in lines:
        table.add_row(*map(Text, line))
    show(table)


def show(table: Any) -> None:
    """Print a rich table on standard output; as wide as it needs to be in a pipe."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(80, Console(width=1000).measure(table).maximum))
    console.print(table)


def _table(*headings: str) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text: a heading or value with square brackets is not markup.
    table = Table(box=box.SIMPLE_HEAD if headings else None, show_header=bool(headings))
    for heading in headings or ("", ""):
        whole = heading in ("method", "settings (--set)")  # these are to be typed as they stand
        table.add_column(Text(heading), overflow="fold", no_wrap=whole)
    return table


def _flat(values: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    from rich.text import Text

    lines: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += _flat(value, f"{above}{key}.")
        else:
            items = value if isinstance(value, list | tuple) else [value]
            words = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in items if v is not None]
            lines.append((f"{above}{key}", Text(", ".join(words) or "-")))
    return lines
