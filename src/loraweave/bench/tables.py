"""Reports as tables, for people (Markdown, LaTeX) and for programs (CSV)."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
WHERE = "on the miniature"
OWN_BASE = "on a base of one's own"


def _percent_ci(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        if key not in row:
            return ""
        low, high = row[f"{key}_ci"]
        return f"{100 * row[key]:.0f} [{100 * low:.0f}, {100 * high:.0f}]"

    return text


def _ahead(row: Row) -> str:
    """The method that the others are compared with minus this one, in points."""
    for key, minus in row.items():
        if key.startswith("minus_"):
            kind = "in_place" if "in_place" in minus else "right"
            if kind not in minus:
                return ""
            low, high = minus[f"{kind}_ci"]
            mean, low, high = (round(-100 * value) for value in (minus[kind], high, low))
            return f"{mean:+d} [{low:+d}, {high:+d}]"
    return ""


def _cost(key: str, digits: int) -> Callable[[Row], str]:
    return lambda row: f"{row['cost'][key]:.{digits}f}" if key in row.get("cost", {}) else ""


def _score(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:.3f}" if key in row else ""


def _of_all(row: Row) -> str:
    return f" of {row['scenes'] + row['open']}" if row["open"] else ""


COLUMNS: dict[str, Callable[[Row], str]] = {
    "scenes": lambda row: f"{row['scenes']}{_of_all(row)}",
    "in place": _percent_ci("in_place"),
    "right": _percent_ci("right"),
    "pictures": _percent_ci("success"),
    "missing": _percent_ci("missing"),
    "duplicated": _percent_ci("duplicated"),
    "swapped": _percent_ci("swapped"),
    "blended": _percent_ci("blended"),
    "extra": _percent_ci("extra"),
    "box IoU": lambda row: f"{row['layout_iou']:.2f}" if "layout_iou" in row else "",
    "in the box": lambda row: f"{row['containment']:.2f}" if "containment" in row else "",
    "likeness": lambda row: f"{row['likeness']:.2f}" if "likeness" in row else "",
    "CLIP-T": _score("clip_t"),
    "CLIP-I": _score("clip_i_avg"),
    "DINO": _score("dino_avg"),
    "DINO of instances": _score("instance_dino_avg"),
    "seconds": _cost("seconds", 1),
    "calls": _cost("calls", 0),
    "TFLOPs": _cost("tflops", 2),
    "MiB": _cost("peak_mib", 0),
    "ahead": _ahead,
}
"""Headings, and how a row's cell is written. Shares are in percent, with 95 % intervals; `ahead`
is the method compared with minus this one in points (in place if there are boxes, else right)."""


def cells(rows: Mapping[str, Row], columns: Iterable[str] = COLUMNS) -> list[list[str]]:
    """Heading and lines of one suite's table; columns in which nobody has anything are left out.

    Args:
        rows: by method, from `report`.
        columns: names of `COLUMNS`.
    """
    used = {head: [COLUMNS[head](row) for row in rows.values()] for head in columns}
    used = {head: column for head, column in used.items() if any(column)}
    return [["method", *used], *([name, *line] for name, line in zip(rows, zip(*used.values())))]


def markdown(
    tables: Mapping[str, Mapping[str, Row]], columns: Iterable[str] = COLUMNS, where: str = WHERE
) -> str:
    """A heading and a table for each suite."""
    parts = []
    for suite, rows in tables.items():
        head, *lines = cells(rows, columns)
        lines = [[f"`{line[0]}`", *line[1:]] for line in lines]
        parts.append(f"### {suite}, {where}\n\n{markdown_table(head, lines)}")
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """One table, without a line break at its end."""
    table = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def latex(
    tables: Mapping[str, Mapping[str, Row]], columns: Iterable[str] = COLUMNS, where: str = WHERE
) -> str:
    """A `table` with booktabs' rules for each suite."""
    parts = []
    for suite, rows in tables.items():
        head, *lines = cells(rows, columns)
        caption = f"{suite}, {where}; percent with 95 % intervals"
        parts.append(latex_table(caption, head, lines))
    return "\n\n".join(parts) + "\n"


def latex_table(caption: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """One table with booktabs' rules, without a line break at its end."""
    body = [" & ".join(map(_escaped, line)) + r" \\" for line in lines]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule",
        " & ".join(map(_escaped, head)) + r" \\", r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}", r"\end{table}",
    ])  # fmt: skip


def _escaped(text: str) -> str:
    named = {"±": r"$\pm$", "×": r"$\times$"}
    return "".join(rf"\{sign}" if sign in "_%&#$" else named.get(sign, sign) for sign in text)


def comma_separated(tables: Mapping[str, Mapping[str, Row]]) -> str:
    """One line for each suite and method, with every number of `report` in a column of its own."""
    flat = [
        {"suite": suite, "method": method, **dict(_flat(row))}
        for suite, rows in tables.items()
        for method, row in rows.items()
    ]
    written = io.StringIO()
    heads = dict.fromkeys(key for line in flat for key in line)
    writer = csv.DictWriter(written, list(heads), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return written.getvalue()


def csv_text(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """One table of cells."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows([head, *lines])
    return written.getvalue()


def _flat(row: Row, above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, list):
            low, high = value
            yield from ((f"{above}{key}_low", low), (f"{above}{key}_high", high))
        else:
            yield f"{above}{key}", value
