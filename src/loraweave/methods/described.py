"""What the settings of a method mean, for people and programs: from their types and docstrings."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from .base import MethodSettings

_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to",
           "exclusiveMaximum": "below"}  # fmt: skip


def described(settings: type[MethodSettings]) -> dict[str, dict[str, Any]]:
    """By name of a setting its `default`, what it `takes` in words, and what it `means`."""
    defaults = settings().model_dump(mode="json")
    known = settings.model_json_schema()["properties"]
    texts = {}
    for kind in reversed(settings.__mro__):  # what a subclass says again, it says better
        texts |= _attributes(inspect.getdoc(kind) or "" if "__doc__" in vars(kind) else "")
    return {
        name: {"default": value, "takes": _takes(known[name]), "means": texts.get(name, "")}
        for name, value in defaults.items()
    }


def _attributes(doc: str) -> dict[str, str]:
    """Of the section `Attributes:` of a docstring the text of each."""
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for line in doc.partition("Attributes:\n")[2].splitlines():
        if entry := _ENTRY.match(line):
            own = [entry[2]]
            found |= dict.fromkeys(entry[1].split(", "), own)
        elif line.startswith(" " * 8):
            own.append(line.strip())
        elif line.strip():
            break
    return {name: " ".join(lines) for name, lines in found.items()}


def _takes(schema: Mapping[str, Any]) -> str:
    """Of a JSON Schema what values there may be."""
    if "anyOf" in schema:
        return " | ".join(_takes(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    match schema.get("type"):
        case "boolean":
            return "true | false"
        case "null":
            return "null"
        case "integer" | "number" as kind:
            bounds = [f"{word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema]
            return " ".join(["a whole number" if kind == "integer" else "a number", *bounds])
        case "array":
            return f"a list, each {_takes(schema.get('items', {}))}"
        case "object":
            return "values by step, such as {0: 0.05}"
        case "string":
            return "a text"
    raise ValueError(f"nobody has said how to describe {schema}")
