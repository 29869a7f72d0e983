"""Methods on the same scenes, judged: rates with intervals, and paired differences.

Beside the methods there are two yardsticks: `base` draws the scene's plain nouns without any
LoRA, and `alone` draws each concept in a picture of its own, which no method can surpass.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..api import compose
from ..evaluate.bootstrap import bootstrap
from ..evaluate.figures import labelled_grid
from ..loading import load
from ..methods import get_method
from ..progress import track
from .judge import load_judge
from .prompts import ConceptScene, marked_prompt, plain_prompt
from .shipped import lora_file

YARDSTICKS = ("base", "alone")


@dataclass(frozen=True)
class Judged:
    """One scene by one method: its pictures (several for `alone`) and the outcomes."""

    images: list[Image.Image]
    outcomes: dict[str, str]

    @property
    def right(self) -> float:
        """Share of the concepts that are right."""
        return sum(o == "right" for o in self.outcomes.values()) / len(self.outcomes)


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
    pipe, judge = load("miniature", device="cpu"), load_judge()
    for method in set(methods) - set(YARDSTICKS):
        get_method(method, (settings or {}).get(method, {}))

    def draw(prompt: str, seed: int, names: Sequence[str], method: str) -> Image.Image:
        return compose(
            pipe, prompt, loras={n: lora_file(n) for n in names}, method=method,
            settings=(settings or {}).get(method), num_inference_steps=steps, progress=False,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip

    def judged(scene: ConceptScene, method: str) -> Judged:
        names, place = scene.names, scene.background
        if method == "alone":
            images = [draw(marked_prompt([n], place), scene.seed, [n], "merge") for n in names]
            verdicts = [judge.examine(image, [n]) for n, image in zip(names, images)]
            return Judged(images, {n: v.outcomes[n] for n, v in zip(names, verdicts)})
        if method == "base":
            image = draw(plain_prompt(names, place), scene.seed, [], "merge")
        else:
            image = draw(scene.prompt, scene.seed, names, method)
        return Judged([image], dict(judge.examine(image, names).outcomes))

    results: dict[str, list[Judged]] = {method: [] for method in methods}
    for scene in track(scenes, "compare", total=len(scenes)):
        for method in methods:
            results[method].append(judged(scene, method))
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
            "concepts_right": bootstrap(right[method]).as_dict(),
            "pictures_right": bootstrap([float(r == 1) for r in right[method]]).as_dict(),
            "outcomes": {o: outcomes.count(o) for o in sorted(set(outcomes))},
        }
        if method != first:
            differences = [a - b for a, b in zip(right[method], right[first])]
            table[method][f"minus_{first}"] = bootstrap(differences).as_dict()
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
