"""Pictures that a scene is drawn after, from `--sketch` and `--condition`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..condition import Condition, made_conditions
from ..errors import SceneError
from ..scene import SHIPPED

Sketch = Annotated[
    Path | None,
    typer.Option(
        "--sketch", metavar="PICTURE",
        help="Outlines, white on black, that the miniature draws after.",
    ),
]  # fmt: skip
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--condition", metavar="adapter=FOLDER,image=PICTURE[,weight=..][,until=..]",
        help="A picture to draw after and the T2I-Adapter that reads it; repeatable.",
    ),
]  # fmt: skip

_FORM = "adapter=FOLDER,image=PICTURE, and if wanted weight=0.8, until=0.5, regions.NAME=1"
# Commas may be in paths: a part begins where a key does.
_PARTS = re.compile(r",\s*(?=(?:adapter|image|weight|until|regions\.[^=,]+)\s*=)")


def read_conditions(texts: Sequence[str] | None, sketch: Path | None) -> list[Condition] | None:
    """The conditions of both options, or None if neither is given.

    Raises:
        SceneError: not of the form, or a value that no condition has.
    """
    if not texts and sketch is None:
        return None
    found = []
    if sketch is not None:
        found.append(Condition(adapter=Path(f"{SHIPPED}sketch"), image=sketch))
    for text in texts or ():
        try:
            found += made_conditions([_fields(text)])
        except SceneError as error:
            reason = str(error).removeprefix("conditions.0: ")
            raise SceneError(f"--condition {text!r}: {reason}") from None
    return found


def _fields(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for part in _PARTS.split(text):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise SceneError(f"{part.strip()!r} is not of the form key=value; write {_FORM}")
        place, dot, name = key.partition(".")
        inside = fields if not dot else fields.setdefault(place, {})
        if (name or key) in inside:
            raise SceneError(f"{key} is given twice; leave one out")
        inside[name or key] = value if key in ("adapter", "image") else _number(key, value)
    return fields


def _number(key: str, text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        raise SceneError(f"{key} is {text!r}, not a number") from None
