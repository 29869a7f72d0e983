"""Figures: pictures in a labelled grid, and what a method looked at while it drew.

A file appears complete or not at all.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageDraw, ImageFont

from ..files import write_atomically
from ..output import ComposeOutput

WHITE, GREY, FAINT = (255, 255, 255), (56, 58, 64), (205, 208, 214)
GREEN, RED = (38, 150, 74), (206, 52, 56)
SHOWN_STEPS = 6
LEAST_COLUMN = 96  # pixels: narrower pictures would leave no room for a label above them

Row = tuple[str, Sequence[Image.Image]]
Marks = Sequence[Sequence[bool | None]]


def labelled_grid(
    rows: Sequence[Row],
    columns: Sequence[str],
    path: str | Path | None = None,
    *,
    title: str = "",
    marks: Marks | None = None,
    scale: int = 1,
) -> Image.Image:
    """Pictures side by side on white, with words for rows and columns.

    Args:
        rows: label and pictures of each row; rows may differ in length and pictures in size. If
            no row has a label, no room is left for one.
        columns: label of each column, or none at all.
        path: also write the grid there, as the kind of picture that the name ends in.
        title: a line above everything.
        marks: for each picture a green frame with a tick (True), a red one with a cross (False)
            or nothing (None); shaped as the rows.
        scale: pictures are enlarged by this whole factor, at least 1, pixel by pixel.

    Raises:
        ValueError: no picture, a scale under 1, or marks that do not fit the rows.
    """
    if scale < 1 or not any(pictures for _, pictures in rows):
        raise ValueError("a grid needs at least one picture and a scale of at least 1")
    if marks is not None and [len(m) for m in marks] != [len(pictures) for _, pictures in rows]:
        raise ValueError("marks must have one entry for each picture of each row")
    enlarged = [
        [p.convert("RGB").resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST)
         for p in pictures]
        for _, pictures in rows
    ]  # fmt: skip
    count = max(len(columns), *(len(line) for line in enlarged))
    widths = [
        max([LEAST_COLUMN, *(line[k].width for line in enlarged if k < len(line))])
        for k in range(count)
    ]
    heights = [max([1, *(picture.height for picture in line)]) for line in enlarged]
    font_size = min(22, max(13, round(sum(widths) / count / 13)))
    gap = margin = font_size
    font = ImageFont.load_default(font_size)
    big = ImageFont.load_default(round(1.25 * font_size))

    side = max(110, 9 * font_size)
    labels = [_wrapped(label, font, side) for label, _ in rows]
    label_width = max((_text_size(text, font)[0] for text in labels), default=0)
    left = margin + (label_width + gap if label_width else 0)
    inner = sum(widths) + gap * (count - 1)
    heading = _wrapped(title, big, left - margin + inner)
    heads = [_wrapped(label, font, width) for label, width in zip(columns, widths)]
    head_height = max((_text_size(text, font)[1] for text in heads), default=0)
    # A row is as high as its label needs when that has more lines than the picture is high.
    heights = [max(h, _text_size(text, font)[1]) for h, text in zip(heights, labels)]

    top = margin + (_text_size(heading, big)[1] + gap if heading else 0)
    first = top + (head_height + gap // 2 if head_height else 0)
    canvas = Image.new(
        "RGB", (left + inner + margin, first + sum(heights) + gap * (len(rows) - 1) + margin), WHITE
    )
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.multiline_text((margin, margin), heading, GREY, big)
    x = left
    for text, width in zip(heads, widths):
        place = (x + width / 2, first - gap // 2)
        draw.multiline_text(place, text, GREY, font, anchor="md", align="center")
        x += width + gap
    y = first
    for r, (line, height) in enumerate(zip(enlarged, heights)):
        draw.multiline_text((margin, y + height / 2), labels[r], GREY, font, anchor="lm")
        x = left
        for k, picture in enumerate(line):
            corner = (x + (widths[k] - picture.width) // 2, y + (height - picture.height) // 2)
            canvas.paste(picture, corner)
            _mark(draw, corner, picture.size, None if marks is None else marks[r][k], font_size)
            x += widths[k] + gap
        y += height + gap
    if path is not None:
        _write(canvas, Path(path))
    return canvas


def with_boxes(
    image: Image.Image, boxes: Sequence[tuple[float, float, float, float]], scale: int = 1
) -> Image.Image:
    """A picture with boxes (fractions: left, top, right, bottom) drawn in.

    Args:
        image: stays as it is.
        boxes: to be drawn.
        scale: the picture is enlarged by this whole factor first.
    """
    size = image.width * scale, image.height * scale
    out = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(out)
    for x0, y0, x1, y1 in boxes:
        sides = x0 * out.width, y0 * out.height, x1 * out.width - 1, y1 * out.height - 1
        draw.rectangle(sides, outline=WHITE, width=3)
        draw.rectangle(sides, outline=RED, width=1)
    return out


def with_findings(
    image: Image.Image, frames: Sequence[tuple[tuple[float, float, float, float], str, bool]],
    below: str = "", scale: int = 1,
) -> Image.Image:  # fmt: skip
    """A picture with framed and named instances, and a line of words under it.

    Args:
        image: stays as it is.
        frames: box (fractions: left, top, right, bottom), words, and whether it is as it should
            be: green, else red.
        below: room is left for it, empty or not, so that pictures stay of one size.
        scale: the picture is enlarged by this whole factor first.
    """
    size = image.width * scale, image.height * scale
    font = ImageFont.load_default(max(9, round(5.5 * scale)))
    line = _text_size("Ag", font)[1] + 2
    out = Image.new("RGB", (size[0], size[1] + line), WHITE)
    out.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(out)
    for (x0, y0, x1, y1), words, right in frames:
        left, top, end, bottom = x0 * size[0], y0 * size[1], x1 * size[0] - 1, y1 * size[1] - 1
        colour = GREEN if right else RED
        draw.rectangle((left, top, end, bottom), outline=colour, width=max(2, scale))
        wide = _text_size(words, font)[0] + 4
        left = min(left, size[0] - wide)
        draw.rectangle((left, top, left + wide, top + line), colour)
        draw.text((left + 2, top), words, WHITE, font)
    draw.text((2, size[1]), below, RED, font)
    return out


def maps_figure(output: ComposeOutput, index: int, path: str | Path, *, title: str = "") -> Path:
    """What picture `index` was made of: each concept's attention and mask over the steps.

    Two rows for each concept, its attention map and under it its mask, both in [0, 1], at up to
    six steps from the first to the last; the picture at the right. Methods without masks have
    the maps alone, a prompt without concepts the picture alone.

    Args:
        output: with PIL pictures.
        index: which picture.
        path: ends in .png, .pdf or .svg.
        title: a line above everything.
    """
    names: Sequence[str] = output.info["concepts"]
    maps, masks = output.maps[index], output.masks[index]
    kinds = [(kind, t.numpy()) for kind, t in (("attention", maps), ("mask", masks)) if t.numel()]
    total = max((len(values) for _, values in kinds), default=0)
    spread = np.linspace(0, total - 1, SHOWN_STEPS) if total else []
    shown = sorted({round(float(step)) for step in spread})
    lines = [(name, n, kind, v) for n, name in enumerate(names) for kind, v in kinds]

    side, cell = 2.9, 1.0  # inches
    width = 1.1 + cell * len(shown) + side + 0.3
    height = max(side, cell * len(lines)) + 0.45 + (0.35 if title else 0.0)
    margins = ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.07)
    figure = Figure((width, height), layout=margins, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=10, color=_hex(GREY), parse_math=False)
    # The picture's own subfigure keeps it from being pressed into the grid of small maps.
    spec = figure.add_gridspec(1, 2, width_ratios=[width - side - 0.2, side + 0.2])
    right = figure.add_subfigure(spec[1] if lines else spec[:])
    if lines:
        axes = figure.add_subfigure(spec[0]).subplots(len(lines), len(shown), squeeze=False)
        for row, (name, n, kind, values) in enumerate(lines):
            for column, step in enumerate(shown):
                ax = axes[row, column]
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_color(_hex(FAINT))
                if step < len(values):
                    colours = "viridis" if kind == "attention" else "gray"
                    ax.imshow(values[step, n], colours, vmin=0, vmax=1, interpolation="nearest")
                if row == 0:
                    ax.set_title(_step(output, step), fontsize=8, color=_hex(GREY))
            label = f"{name}\n{kind}" if kind == kinds[0][0] else kind
            axes[row, 0].set_ylabel(
                label, fontsize=8, color=_hex(GREY), rotation=0, ha="right", va="center",
                parse_math=False,
            )  # fmt: skip
    ax = right.subplots()
    ax.imshow(np.asarray(output.images[index].convert("RGB")), interpolation="nearest")
    ax.set_axis_off()

    path = Path(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:] or "png", dpi=120)
    write_atomically(path, buffer.getvalue())
    return path


def _step(output: ComposeOutput, step: int) -> str:
    times = output.info.get("timesteps")
    return f"step {step}" if not times else f"step {step} (t={float(times[step]):.0f})"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Lines no wider than `width` pixels; a single word that is wider is cut."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width:
            line = longer
            continue
        lines, line = [*lines, line], word
        while font.getlength(line) > width and len(line) > 1:
            fits = (n for n in range(len(line) - 1, 0, -1) if font.getlength(line[:n]) <= width)
            cut = next(fits, 1)
            lines, line = [*lines, line[:cut]], line[cut:]
    return "\n".join(part for part in [*lines, line] if part)


def _text_size(text: str, font) -> tuple[int, int]:
    """Width and height in pixels of lines of text, descenders included."""
    if not text:
        return 0, 0
    left, _, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
        (0, 0), text, font
    )
    return int(right - left + 0.999), int(bottom + 0.999)


def _mark(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int],
    right: bool | None, font_size: int,
) -> None:  # fmt: skip
    """A frame around the picture and a badge on its corner: colour alone is not for all eyes."""
    if right is None:
        return
    (x, y), (w, h), colour = corner, size, GREEN if right else RED
    draw.rectangle((x - 3, y - 3, x + w + 2, y + h + 2), outline=colour, width=3)
    r = 0.5 * font_size
    cx, cy = x + w - 0.5 * r, y + 0.5 * r
    draw.ellipse((cx - r, cy - r, cx + r, cy + r), colour, WHITE, 1)
    q, line = 0.45 * r, max(2, round(0.22 * r))
    if right:
        ticked = [(cx - q, cy), (cx - 0.2 * q, cy + 0.8 * q), (cx + q, cy - 0.8 * q)]
        draw.line(ticked, WHITE, line, joint="curve")
    else:
        draw.line((cx - q, cy - q, cx + q, cy + q), WHITE, line)
        draw.line((cx - q, cy + q, cx + q, cy - q), WHITE, line)


def _write(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions().get(path.suffix.lower(), "PNG"))
    write_atomically(path, buffer.getvalue())
