"""One kind of progress bar for the whole package, silent where nobody looks; no other bars."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


def progress_bar(enabled: bool = True) -> Progress:
    """A rich progress bar on standard error, with room for live figures (`figures` field)."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        disable=not (enabled and sys.stderr.isatty()),
    )


def track(items: Iterable[T], description: str, total: int, enabled: bool = True) -> Iterator[T]:
    """Iterate over `items` with a progress bar."""
    with progress_bar(enabled) as bar:
        task = bar.add_task(description, total=total, figures="")
        for item in items:
            yield item
            bar.advance(task)


def silence_libraries() -> None:
    """No progress bars and no advice from the libraries while they load models."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
