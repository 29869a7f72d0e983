"""Words that several error messages share."""

import difflib
from collections.abc import Collection, Iterable, Sequence

from pydantic import ValidationError


def close_match(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name nearest to `name`; empty if none is near."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def readable(
    error: ValidationError, keys: Sequence[str], hidden: Collection[str | int] = ()
) -> str:
    """The first three complaints of pydantic on one line.

    Args:
        error: what pydantic raised.
        keys: what is known where an unknown key was found.
        hidden: parts of the place that are names of ours, not of the data.
    """
    lines = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"] if part not in hidden)
        if item["type"] == "extra_forbidden":
            close = close_match(place, keys)
            lines.append(f"unknown key {place!r}{close}; known: {', '.join(keys)}")
        elif item["type"] == "missing":
            lines.append(f"{place} is missing")
        else:
            lines.append(": ".join(filter(None, (place, item["msg"]))))
    more = [f"and {len(lines) - 3} more"] if len(lines) > 3 else []
    return "; ".join(lines[:3] + more)
