"""All that is known from results, as charts and as one HTML page.

The charts are those of the papers' figures that can be made from results: success and cost by the
number of concepts, failures, styles, places and things worn, one class; and what the papers' scores
see of it.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..evaluate.charts import Estimate, colours, curves, intervals, matrix, outcomes
from ..methods import METHODS
from ..miniature.judged import YARDSTICKS
from .ablation import (
    DEFAULT,
    ablation_jobs,
    ablation_names,
    ablation_report,
    in_common,
    read_ablation,
)
from .agreement import agreement
from .grid import grid
from .jobs import Job, suite_jobs
from .papers import on_suites, paper_tables, side_by_side
from .rates import FAILURES, Row
from .report import NothingFinished, finished, report
from .run import picture_files
from .suites import Size
from .tables import WHERE, cells

NUMBERS = {"pairs": 2, "three": 3, "four": 4, "five": 5}
BOXES = {f"boxes{n}": n for n in (2, 3, 4, 5)}


def gathered(folder: Path, size: Size = "full") -> dict[str, dict[str, Row]]:
    """By suite and method what `report` finds; only what has results with default settings."""
    found: dict[str, dict[str, Row]] = {}
    for suite, methods in finished(folder).items():
        for method in methods:
            try:
                rows = report(suite_jobs(suite, [method], size), folder)
            except NothingFinished:
                continue
            found.setdefault(suite, {}).update(rows)
    return found


def charts(found: Mapping[str, Mapping[str, Row]]) -> dict[str, tuple[str, bytes]]:
    """By name a caption and a PNG of each chart that there are results for."""
    every = [m for m in (*METHODS, *YARDSTICKS) if any(m in rows for rows in found.values())]
    hues, made = colours(every), {}
    for name, suites, key, what in (
        ("success", NUMBERS, "right", "concepts right, percent"),
        ("boxes", BOXES, "in_place", "right and in their boxes, percent"),
    ):
        if series := _by_number(found, suites, key):
            title = f"{what.split(',')[0]} by the number of concepts, {WHERE}"
            made[name] = title, curves(
                series, title=title, across="concepts", up=what, hues=hues,
            )  # fmt: skip
    if series := _costs(found):
        title = f"denoiser rows of a picture by the number of concepts, {WHERE}"
        made["cost"] = title, curves(
            series, title=title, across="concepts", up="rows, and with gradients thrice",
            share=False, logarithmic=True, hues=hues,
        )  # fmt: skip
    for suite, rows in found.items():
        fates = {m: {"right": 1 - sum(row[f] for f in FAILURES), **{f: row[f] for f in FAILURES}}
                 for m, row in rows.items() if row["scenes"]}  # fmt: skip
        if fates:
            title = f"{suite}: what becomes of the concepts, {WHERE}"
            made[f"failures_{suite}"] = title, outcomes(fates, title=title)
    shares = {m: {s: rows[m]["right"] for s, rows in found.items() if m in rows} for m in every}
    if shares:
        title = f"right, percent of what a scene asks for, by suite, {WHERE}"
        made["suites"] = title, matrix(shares, title=title)
    return made


def agreement_chart(jobs: Sequence[Job], folder: Path) -> tuple[str, bytes] | None:
    """What the papers' scores see of each failure, if anything is scored."""
    try:
        known = agreement(jobs, folder, ranks=False)
    except NothingFinished:
        return None
    counts = known.pop("pictures")
    seen = {name: {kind: row[kind] for kind in FAILURES} for name, row in known.items()}
    suites = ", ".join(dict.fromkeys(job.suite for job in jobs))
    title = (
        f"{suites}: chance that a right picture has a higher score than one with a failure, "
        f"{WHERE}; {counts['all']} pictures"
    )
    return title, matrix(seen, title=title, middle=True)


def ablation_chart(rows: Mapping[str, Row], title: str, mark: str) -> bytes:
    """Estimates of what is right, variant by variant, with a line at one of them."""
    points = {name: _estimate(row, "right") for name, row in rows.items()}
    across = "concepts right, percent"
    return intervals(points, title=title, across=across, mark=points[mark][0])


def ablation_charts(folder: Path, size: Size = "full") -> dict[str, tuple[str, bytes]]:
    """A caption and a PNG of each ablation that ships and has results in a folder."""
    made = {}
    for name in ablation_names():
        read = read_ablation(name)
        if found := ablated(ablation_jobs(read, size), folder, f"{read.method} on {read.suite}"):
            made[f"ablation_{name}"] = found
    return made


def ablated(jobs: Mapping[str, Sequence[Job]], folder: Path, what: str) -> tuple[str, bytes] | None:
    """A caption and a PNG of an ablation's variants, over the scene-seeds that all of them have;
    None if that are none, or nothing is varied."""
    shared = in_common(jobs, folder)
    if len(shared) < 2 or not shared.get(DEFAULT):
        return None
    title = f"{what}, one thing changed at a time, {WHERE}, {len(shared[DEFAULT])} scene-seeds"
    return title, ablation_chart(ablation_report(shared, folder), title, DEFAULT)


def _kept_grid(
    suite: str, methods: Sequence[str], folder: Path, size: Size, rows: int = 3
) -> tuple[str, bytes] | None:
    """The first scene-seeds of a suite by those methods whose pictures were kept."""
    jobs = suite_jobs(suite, [m for m in methods if m != "alone"], size, first=rows)
    lost = {
        job.method for job in jobs
        if not all(path.is_file() for path in picture_files(folder, job))
    }  # fmt: skip
    shown = [job for job in jobs if job.method not in lost]
    if not shown:
        return None
    buffer = io.BytesIO()
    grid(shown, folder).save(buffer, "PNG")
    return f"{suite}, with what the judge finds; green: right, {WHERE}", buffer.getvalue()


def page(folder: Path, size: Size = "full") -> str:
    """One HTML page with all tables and charts, that needs no other file.

    Raises:
        NothingFinished: there are no results.
    """
    found = gathered(folder, size)
    if not found:
        raise NothingFinished(f"no results in {folder}; use `loraweave bench run`")
    parts = [
        "<h1>LoRAWeave: the evidence</h1>",
        f"<p>Measured {WHERE}: a small Stable Diffusion that ships with the package. It speaks for "
        "how methods work, not for pictures of Stable Diffusion 1.5. Rates have 95 % bootstrap "
        "intervals over scenes.</p>",
    ]
    shown = charts(found)
    for suite, rows in found.items():
        if (chart := agreement_chart(suite_jobs(suite, list(rows), size), folder)) is not None:
            shown[f"agreement_{suite}"] = chart
    shown |= ablation_charts(folder / "ablation", size)
    for suite, rows in found.items():
        if (made := _kept_grid(suite, list(rows), folder, size)) is not None:
            shown[f"grid_{suite}"] = made
    for caption, png in shown.values():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    parts += [_table(f"{suite}, {WHERE}", *cells(rows)) for suite, rows in found.items()]
    for name, (paper, table) in paper_tables().items():
        made = side_by_side(paper, table, on_suites(table, folder, size))
        parts.append(_table(f"{name}: {made.title}", made.head, *made.lines))
    return _PAGE.format(body="\n".join(parts))


def _by_number(
    found: Mapping[str, Mapping[str, Row]], suites: Mapping[str, int], key: str
) -> dict[str, dict[float, Estimate]]:
    series: dict[str, dict[float, Estimate]] = {}
    for suite, number in suites.items():
        for method, row in found.get(suite, {}).items():
            if f"{key}_ci" in row:
                series.setdefault(method, {})[number] = _estimate(row, key)
    return _lines(series)


def _lines(series: dict[str, dict[float, Estimate]]) -> dict[str, dict[float, Estimate]]:
    """Those of methods that have more than a point."""
    return {method: points for method, points in series.items() if len(points) > 1}


def _costs(found: Mapping[str, Mapping[str, Row]]) -> dict[str, dict[float, Estimate]]:
    """A row with a gradient costs about three: there and back, twice as much back as there."""
    series: dict[str, dict[float, Estimate]] = {}
    for suite, number in NUMBERS.items():
        for method, row in found.get(suite, {}).items():
            if "rows" in row.get("cost", {}):
                cost = row["cost"]["rows"] + 2 * row["cost"]["backward_rows"]
                series.setdefault(method, {})[number] = (cost, cost, cost)
    return _lines(series)


def _estimate(row: Row, key: str) -> Estimate:
    low, high = row[f"{key}_ci"]
    return row[key], low, high


def _table(title: str, head: Sequence[str], *lines: Sequence[str]) -> str:
    def line(tag: str, own: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in own) + "</tr>"

    body = "".join(line("td", own) for own in lines)
    return (
        f"<h2>{html.escape(title)}</h2><div class=wide><table><thead>{line('th', head)}</thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>LoRAWeave: the evidence</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #383a40; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; }}
h2 {{ font-size: 1.05rem; margin-top: 2.2rem; }} figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; }} figcaption {{ font-size: .85rem; color: #666; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #d5d8de; text-align: right;
  white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
</style></head><body>
{body}
</body></html>
"""
