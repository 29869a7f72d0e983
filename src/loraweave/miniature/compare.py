"""Methods on the same scenes, judged: rates with intervals, and paired differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..api import compose
from ..evaluate.bootstrap import bootstrap
from ..evaluate.figures import labelled_grid
from ..loading import load
from ..progress import track
from .judge import Verdict, load_judge
from .prompts import PairScene
from .shipped import lora_file

TUNING_SEED, REPORT_SEED = 4242, 31_000
"""Scenes of the first are for choosing settings, those of the second for reporting."""

Judged = tuple[Image.Image, Verdict]


def compare_methods(
    methods: Sequence[str],
    scenes: Sequence[PairScene],
    *,
    steps: int = 50,
    settings: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, list[Judged]]:
    """Every scene by every method, with the scene's own noise, judged.

    Args:
        methods: names of `loraweave.METHODS`.
        scenes: of pairs.
        steps: of denoising.
        settings: by method; its defaults if not given.

    Raises:
        MethodError: unknown method or setting.
    """
    pipe, judge = load("miniature", device="cpu"), load_judge()
    results: dict[str, list[Judged]] = {method: [] for method in methods}
    for scene in track(scenes, "compare", total=len(scenes)):
        for method in methods:
            output = compose(
                pipe, scene.prompt, loras={n: lora_file(n) for n in scene.names}, method=method,
                settings=(settings or {}).get(method), num_inference_steps=steps, progress=False,
                generator=torch.Generator().manual_seed(scene.seed),
            )  # fmt: skip
            image = output.images[0]
            results[method].append((image, judge.examine(image, scene.names)))
    return results


def rates(results: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """By method the shares of right concepts and pictures, and how often each outcome came.

    Every method but the first also gets `minus_<first>`: the mean over scenes of the difference
    in the share of right concepts. Intervals are 95 % bootstrap intervals over scenes.
    """
    right = {m: [v.right / len(v.outcomes) for _, v in rows] for m, rows in results.items()}
    first = next(iter(results))
    table: dict[str, Any] = {}
    for method, rows in results.items():
        outcomes = [outcome for _, verdict in rows for outcome in verdict.outcomes.values()]
        table[method] = {
            "concepts_right": bootstrap(right[method]).as_dict(),
            "pictures_right": bootstrap([float(v.success) for _, v in rows]).as_dict(),
            "outcomes": {o: outcomes.count(o) for o in sorted(set(outcomes))},
        }
        if method != first:
            differences = [a - b for a, b in zip(right[method], right[first])]
            table[method][f"minus_{first}"] = bootstrap(differences).as_dict()
    return table


def comparison_grid(
    results: Mapping[str, Sequence[Judged]],
    scenes: Sequence[PairScene],
    path: Path,
    across: int = 8,
) -> None:
    """One row a method for every `across` scenes, framed by what the judge says."""
    rows, marks = [], []
    for start in range(0, len(scenes), across):
        for method, judged in results.items():
            part = judged[start : start + across]
            rows.append((method, [image for image, _ in part]))
            marks.append([verdict.success for _, verdict in part])
    labelled_grid(
        rows, [], path, marks=marks,
        title=f"{len(scenes)} pairs on the miniature; framed green where the judge finds both",
    )  # fmt: skip
