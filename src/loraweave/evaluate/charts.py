"""Charts of rates with their intervals, as PNG bytes.

Methods keep their colour from chart to chart; every line and bar is also named beside it, since
colour alone is not for all eyes.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

Estimate = tuple[float, float, float]
"""Mean, and the ends of its 95 % interval."""
INK, FAINT = "#383a40", "#d5d8de"
PALETTE = (
    "#0b6e99", "#d9601a", "#3a8a3f", "#8a4fb0", "#b8860b", "#c2417c", "#4a6fd0", "#7a5c46",
    "#2aa198", "#999999", "#5b5b8c", "#9c2f2f", "#66812b",
)  # fmt: skip
OUTCOMES = {
    "right": "#3a8a3f", "missing": "#b9bec8", "duplicated": "#e0b04a", "swapped": "#c2417c",
    "blended": "#8a4fb0",
}  # fmt: skip


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def curves(
    series: Mapping[str, Mapping[float, Estimate]], *, title: str, across: str, up: str,
    share: bool = True, logarithmic: bool = False, hues: Mapping[str, str] | None = None,
) -> bytes:  # fmt: skip
    """A line for each name, with its interval as a band and its name at its end.

    Args:
        series: by name the estimates by place on the horizontal axis, which are whole numbers.
        title, across, up: words above, under and beside the chart.
        share: values are shares, shown as percent from 0 to 100.
        logarithmic: the vertical axis.
        hues: colour of each name.
    """
    figure, ax = _new(7.2, 4.2, title)
    own, ends = hues or colours(list(series)), []
    for name, points in series.items():
        places = sorted(points)
        mean, low, high = (np.array([points[x][k] for x in places]) for k in range(3))
        scale = 100 if share else 1
        ax.plot(places, scale * mean, "o-", color=own[name], lw=2, ms=5)
        if len(places) > 1:
            ax.fill_between(places, scale * low, scale * high, color=own[name], alpha=0.12, lw=0)
        ends.append((scale * float(mean[-1]), places[-1], name))
    if logarithmic:
        ax.set_yscale("log")
    if share:
        ax.set_ylim(0, 100)
    every = sorted({x for points in series.values() for x in points})
    ax.set_xticks(every)
    ax.set_xlim(every[0] - 0.15, every[-1] + 0.35 * max(1, every[-1] - every[0]))
    _name_ends(ax, ends, own, logarithmic)
    ax.set_xlabel(across, color=INK)
    ax.set_ylabel(up, color=INK)
    return _png(figure)


def _name_ends(
    ax: Axes, ends: Sequence[tuple[float, float, str]], own: Mapping[str, str], logarithmic: bool
) -> None:
    """Names at the ends of lines, moved apart, as little as it takes, where they would touch, but
    not beyond the axes."""
    low, high = ax.get_ylim()
    if logarithmic:
        low, high = np.log10(low), np.log10(high)
    steps = (high - low) / 19 * np.arange(len(ends))
    ends = sorted(ends)
    values = np.array([value for value, *_ in ends])
    apart = isotonic_regression((np.log10(values) if logarithmic else values) - steps).x
    room = high - low - steps[-1]  # what is beyond the axes is not drawn
    places = steps + np.clip(apart, low, low + max(room, 0.0))
    for (_, x, name), place in zip(ends, places):
        ax.annotate(
            name, (x, 10**place if logarithmic else place), xytext=(7, 0), va="center",
            textcoords="offset points", color=own[name], fontsize=9, parse_math=False,
        )  # fmt: skip


def outcomes(rows: Mapping[str, Mapping[str, float]], *, title: str) -> bytes:
    """A bar for each name, from what is right to the ways to fail.

    Args:
        rows: by name the share of each of `OUTCOMES`, in [0, 1].
        title: above the chart.
    """
    figure, ax = _new(7.2, 1.2 + 0.32 * len(rows), title)
    names = list(rows)
    start = np.zeros(len(rows))
    for kind, colour in OUTCOMES.items():
        width = np.array([100 * rows[name].get(kind, 0.0) for name in names])
        ax.barh(range(len(rows)), width, left=start, color=colour, label=kind, height=0.72)
        for i, (x, w) in enumerate(zip(start, width)):
            if w >= 5:
                ax.text(x + w / 2, i, f"{w:.0f}", ha="center", va="center", color="white",
                        fontsize=8)  # fmt: skip
        start += width
    ax.set_yticks(range(len(rows)), names, parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set_xlabel("percent of the concepts", color=INK)
    ax.legend(ncols=5, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.55 / len(rows) + 0.06),
              frameon=False, fontsize=8)  # fmt: skip
    return _png(figure)


def intervals(
    rows: Mapping[str, Estimate], *, title: str, across: str, mark: float | None = None
) -> bytes:
    """A point with its interval for each name, in percent.

    Args:
        rows: estimates as shares.
        title, across: words above and under the chart.
        mark: a share at which there is a line to compare with.
    """
    figure, ax = _new(7.2, 1.1 + 0.3 * len(rows), title)
    for i, (mean, low, high) in enumerate(rows.values()):
        ax.plot((100 * low, 100 * high), (i, i), color=PALETTE[0], lw=2.5, alpha=0.45)
        ax.plot(100 * mean, i, "o", color=PALETTE[0], ms=6)
    if mark is not None:
        ax.axvline(100 * mark, color=INK, lw=1, ls=":")
    ax.set_yticks(range(len(rows)), list(rows), parse_math=False)
    ax.invert_yaxis()
    ax.set_xlabel(across, color=INK)
    return _png(figure)


def matrix(
    values: Mapping[str, Mapping[str, float | None]], *, title: str, middle: bool = False
) -> bytes:
    """Shares by row and column as a coloured table with numbers.

    Args:
        values: by row and column in [0, 1]; None where there is none.
        title: above the chart.
        middle: colours go apart from .5, where nothing is known, and numbers are no percents.
    """
    rows = list(values)
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    grid = np.array([[_number(values[row].get(column)) for column in columns] for row in rows])
    figure, ax = _new(2.2 + 0.62 * len(columns), 1.6 + 0.34 * len(rows), title)
    ax.imshow(grid, "PuOr" if middle else "YlGnBu", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            if np.isfinite(value):
                dark = abs(value - 0.5) > 0.33 if middle else value > 0.55
                text = f"{value:.2f}" if middle else f"{100 * value:.0f}"
                ax.text(j, i, text, ha="center", va="center", fontsize=8,
                        color="white" if dark else INK)  # fmt: skip
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", parse_math=False)
    ax.set_yticks(range(len(rows)), rows, parse_math=False)
    ax.grid(visible=False)
    return _png(figure)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _new(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    lines = textwrap.wrap(title, max(20, int(14 * width)))
    size = width, height + 0.18 * (len(lines) - 1)
    figure = Figure(size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    heading = "\n".join(lines)
    figure.suptitle(heading, fontsize=10, color=INK, x=0.01, ha="left", parse_math=False)
    ax: Any = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.grid(color=FAINT, lw=0.6, alpha=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, labelsize=9)
    return figure, ax


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
