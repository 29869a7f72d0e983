"""Write the tables of results.md, methods.md and performance.md again (`make docs`).

By the commands that stand above them; those of performance.md also from the files that `loraweave
bench speed -o` wrote.
"""

import json
import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from loraweave.cli import app
from loraweave.commands.speed import table_of

PAGE = Path(__file__).parent / "results.md"
METHODS = Path(__file__).parent / "methods.md"
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
    folder = results / "ablation" if words[1] == "ablation" else results
    out = CliRunner().invoke(app, [*words, "--format", "markdown", "--results", str(folder)])
    if out.exit_code:
        raise RuntimeError(f"{found[2]}: {out.stderr}")
    table = TITLE.sub("", out.stdout).strip()
    return f"{found[1]}\n`loraweave {found[2]}`\n\n{table}\n\n{found[3]}"


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
    for page in (PAGE, METHODS):
        page.write_text(filled(page.read_text(), results))
    SPEED.write_text(with_speed(filled(SPEED.read_text(), results)))
