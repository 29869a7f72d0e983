"""Methods on the same scenes, judged: rates with intervals, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluate.bootstrap import DIFFERENCES, SHARES, bootstrap
from ..evaluate.figures import labelled_grid
from ..methods import get_method
from ..progress import track
from .judged import YARDSTICKS, Judged, SceneDrawer
from .scenes import ConceptScene


def compare_methods(
    methods: Sequence[str],
    scenes: Sequence[ConceptScene],
    *,
    steps: int = 50,
    settings: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, list[Judged]]:
    """Every scene by every method, with the scene's own noise, judged.

    Args:
        methods: names of `loraweave.METHODS` and `YARDSTICKS`.
        scenes: with one or more concepts each.
        steps: of denoising.
        settings: by method; its defaults if not given.

    Raises:
        MethodError: unknown method or setting.
    """
    own = settings or {}
    for method in methods:
        if method not in YARDSTICKS:
            get_method(method, own.get(method, {}))
    drawer = SceneDrawer()
    results: dict[str, list[Judged]] = {method: [] for method in methods}
    for scene in track(scenes, "compare", total=len(scenes)):
        for method in methods:
            results[method].append(drawer.draw(scene, method, own.get(method), steps))
    return results


def rates(results: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """By method the shares of right concepts and pictures, and how often each outcome came.

    Every method but the first also gets `minus_<first>`: the mean over scenes of the difference
    in the share of right concepts. Intervals are 95 % bootstrap intervals over scenes.
    """
    right = {method: [row.right for row in rows] for method, rows in results.items()}
    first = next(iter(results))
    table: dict[str, Any] = {}
    for method, rows in results.items():
        outcomes = [outcome for row in rows for outcome in row.outcomes.values()]
        table[method] = {
            "concepts_right": bootstrap(right[method], bounds=SHARES).as_dict(),
            "pictures_right": bootstrap(
                [float(r == 1) for r in right[method]], bounds=SHARES
            ).as_dict(),
            "outcomes": {o: outcomes.count(o) for o in sorted(set(outcomes))},
        }
        if method != first:
            differences = [a - b for a, b in zip(right[method], right[first])]
            table[method][f"minus_{first}"] = bootstrap(differences, bounds=DIFFERENCES).as_dict()
    return table


def comparison_grid(
    results: Mapping[str, Sequence[Judged]],
    scenes: Sequence[ConceptScene],
    path: Path,
    across: int = 8,
) -> None:
    """One row a method for every `across` scenes, framed by what the judge says."""
    rows, marks = [], []
    for start in range(0, len(scenes), across):
        for method, judged in results.items():
            part = judged[start : start + across]
            rows.append((method, [_side_by_side(row.images) for row in part]))
            marks.append([row.right == 1 for row in part])
    labelled_grid(
        rows, [], path, marks=marks,
        title=f"{len(scenes)} scenes on the miniature; framed green where all concepts are right",
    )  # fmt: skip


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Several pictures as one of the same size."""
    if len(images) == 1:
        return images[0]
    sheet = Image.new("RGB", images[0].size, "white")
    across = math.ceil(math.sqrt(len(images)))
    side = images[0].width // across
    for i, image in enumerate(images):
        sheet.paste(image.resize((side, side)), (i % across * side, i // across * side))
    return sheet
