"""Tables in the layout of the papers', ours and theirs side by side, never mixed.

What the papers state is in `papers.yaml`. Their figures are of other models, LoRAs and pictures, so
columns of the two sides cannot be compared with one another; the order of methods within each can.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from ..data_file import read_data
from ..lora_ref import Data
from .jobs import suite_jobs
from .rates import Row, rates
from .report import ByScene, NothingFinished, report
from .suites import Size
from .tables import WHERE

FILE = Path(__file__).parent / "papers.yaml"
OURS = "ours"
Figure = Annotated[str, StringConstraints(min_length=1)] | tuple[float, float]


class PaperTable(Data):
    """One table of a paper.

    Attributes:
        title: what it is about.
        suites: whose results stand for it here; several are taken together.
        concepts: how many its pictures have, for results of manifests.
        rows: what is measured, by key, and how the table calls it.
        figures: by the paper's name of a method its figures (mean and spread, or as it writes
            them), and as `ours` the method of that name here; without it there is none here yet.
    """

    title: str
    suites: Annotated[list[str], Field(min_length=1)]
    concepts: Annotated[list[int], Field(min_length=1)]
    rows: dict[str, str]
    figures: dict[str, dict[str, Figure]]

    @property
    def ours(self) -> list[str]:
        """The methods of the table that exist here."""
        return [str(own[OURS]) for own in self.figures.values() if OURS in own]


class Paper(Data):
    """What a paper states.

    Attributes:
        title: name, number, and what its figures are of.
        tables: by the number that the paper gives them.
    """

    title: str
    tables: dict[str, PaperTable]


@dataclass(frozen=True)
class Cells:
    """A table as text.

    Attributes:
        title: above it.
        head: of the columns; the first is of the rows' names.
        lines: one for each row.
    """

    title: str
    head: list[str]
    lines: list[list[str]]


@cache
def read_papers() -> dict[str, Paper]:
    """All papers by name."""
    return {name: Paper.model_validate(paper) for name, paper in read_data(FILE).items()}


def paper_tables() -> dict[str, tuple[Paper, PaperTable]]:
    """All tables by paper and number, `clora 1a`."""
    return {
        f"{name} {number}": (paper, table)
        for name, paper in read_papers().items()
        for number, table in paper.tables.items()
    }


def on_suites(
    table: PaperTable, folder: Path, size: Size = "full", methods: Sequence[str] = ()
) -> dict[str, Row]:
    """By method its row of `report` on a table's suites, of methods with results.

    Args:
        table: of `paper_tables`.
        folder: of results.
        size: of the suites.
        methods: those of the table if none are given.

    Raises:
        SceneError: a file of results is damaged.
    """
    ours = {}
    for method in methods or table.ours:
        jobs = [job for suite in table.suites for job in suite_jobs(suite, [method], size)]
        with suppress(NothingFinished):
            ours |= report(jobs, folder)
    return ours


def of_manifest(
    table: PaperTable, found: Mapping[str, ByScene], methods: Sequence[str] = ()
) -> dict[str, Row]:
    """By method the rates of a manifest's pictures with as many concepts as a table's have.

    Args:
        table: of `paper_tables`.
        found: from `manifest_rows`.
        methods: those of the table if none are given.
    """
    ours = {}
    for method, by_scene in found.items():
        rows = [row for row in by_scene.values() if len(row["job"]["names"]) in table.concepts]
        if rows and method in (methods or table.ours):
            ours[method] = rates(rows, 0)
    return ours


def side_by_side(
    paper: Paper, table: PaperTable, ours: Mapping[str, Row], where: str = WHERE
) -> Cells:
    """A paper's table with what is measured here in the first columns.

    Args:
        paper, table: of `paper_tables`.
        ours: by method its row of `report`, of the table's suites.
        where: ours were measured.
    """
    here = {label: figures.get(OURS) for label, figures in table.figures.items()}
    named = {f"{label} (here)": ours.get(str(method), {}) for label, method in here.items()}
    others = {f"{m} (here)": row for m, row in ours.items() if m not in here.values()}
    columns = named | others
    stated = {label: own for label, own in table.figures.items() if set(own) - {OURS}}
    head = ["", *columns, *(f"{label} (paper)" for label in stated)]
    lines = []
    for key, label in table.rows.items():
        own = [_measured(key, row) for row in columns.values()]
        theirs = [_stated(figures.get(key)) for figures in stated.values()]
        lines.append([label, *own, *theirs])
    counts = sorted({row["scenes"] for row in ours.values()}) or [0]
    scenes = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    title = (
        f"{table.title}. Here: {where}, {scenes} pictures, mean [95 % interval]; "
        f"paper: {paper.title}, mean ± spread"
    )
    return Cells(title, head, lines)


def _measured(key: str, row: Row) -> str:
    cost = row.get("cost", {})
    if not row:
        return ""
    if key == "community":  # every method that exists here reads ordinary LoRA files
        return "yes"
    if key == "gigabytes":
        return f"{cost['peak_mib'] / 1024:.2f}" if "peak_mib" in cost else ""
    if key in ("seconds", "calls"):
        return f"{cost[key]:.1f}" if key in cost else ""
    if f"{key}_ci" in row:
        low, high = row[f"{key}_ci"]
        return f"{row[key]:.3f} [{low:.3f}, {high:.3f}]"
    return f"{row[key]:.3f}" if key in row else ""


def _stated(figure: Any) -> str:
    if figure is None:
        return ""
    return figure if isinstance(figure, str) else f"{figure[0]:.3f} ± {figure[1]:.3f}"
