"""Write the tables of results.md and performance.md again (`make docs`).

Those of results.md by the commands that stand above them, those of performance.md also from the
files that `loraweave bench speed -o` wrote.
"""

import json
import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from loraweave.cli import app
from loraweave.commands.speed import table_of

PAGE = Path(__file__).parent / "results.md"
SPEED = Path(__file__).parent / "performance.md"
BLOCK = re.compile(r"(<!-- loraweave (.*?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
MEASURED = re.compile(r"(<!-- speed (.*?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
TITLE = re.compile(r"^### .*\n\n", flags=re.MULTILINE)


def filled(text: str, results: Path) -> str:
    """A page with its tables made from results.

    Args:
        text: of the page.
        results: folder of them.

    Raises:
        RuntimeError: a command failed.
    """
    return BLOCK.sub(lambda found: _block(found, results), text)


def _block(found: re.Match[str], results: Path) -> str:
    words = shlex.split(found[2])
    given = str(results / words.pop()) if words[-2:-1] == ["--results"] else str(results)
    words = words[:-1] if words[-1] == "--results" else words
    out = CliRunner().invoke(app, [*words, "--format", "markdown", "--results", given])
    if out.exit_code:
        raise RuntimeError(f"{found[2]}: {out.stderr}")
    return found[1] + "\n" + TITLE.sub("", out.stdout).strip() + "\n\n" + found[3]


def with_speed(text: str) -> str:
    """A page with its tables of speed made from the files named above them, beside the page."""
    return MEASURED.sub(_measured, text)


def _measured(found: re.Match[str]) -> str:
    rows = json.loads((SPEED.parent / found[2]).read_text())["rows"]
    headings, lines = table_of(rows)
    table = [headings, ["---"] * len(headings), *lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in table)
    return f"{found[1]}\n{text}\n\n{found[3]}"


if __name__ == "__main__":
    results = PAGE.parents[1] / "results"
    PAGE.write_text(filled(PAGE.read_text(), results))
    SPEED.write_text(with_speed(filled(SPEED.read_text(), results)))
