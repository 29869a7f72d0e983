"""Scenes of the miniature's concepts, drawn by a method or a yardstick, and judged.

Yardsticks stand beside the methods: `base` draws the scene's plain nouns without any LoRA, `alone`
draws each concept in a picture of its own, which no method can be expected to surpass, and
`true_masks` confines each LoRA to where a drawing of the scene has its subject.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..api import compose
from ..loading import load
from ..output import ComposeOutput
from .concepts import draw_concepts
from .judge import load_judge
from .prompts import ConceptScene, marked_prompt, plain_prompt
from .shipped import lora_file

YARDSTICKS = ("base", "alone", "true_masks")


@dataclass(frozen=True)
class Judged:
    """One scene by one method.

    Attributes:
        images: one; several for `alone`.
        outcomes: by concept.
        cost: seconds, denoiser calls, rows in them and rows differentiated.
    """

    images: list[Image.Image]
    outcomes: dict[str, str]
    cost: dict[str, float]

    @property
    def right(self) -> float:
        """Share of the concepts that are right."""
        return sum(o == "right" for o in self.outcomes.values()) / len(self.outcomes)


class SceneDrawer:
    """Draws and judges scenes on the miniature that ships."""

    def __init__(self) -> None:
        self.pipe, self.judge = load("miniature", device="cpu"), load_judge()

    def draw(
        self, scene: ConceptScene, method: str, settings: Mapping[str, Any] | None = None,
        steps: int = 50,
    ) -> Judged:  # fmt: skip
        """One scene with its own noise, by a method or a yardstick."""
        names, place = scene.names, scene.background
        if method == "alone":
            prompts = [(marked_prompt([n], place), (n,)) for n in names]
            outputs = [self._compose(p, scene, own, "merge", {}, steps) for p, own in prompts]
            verdicts = [self.judge.examine(o.images[0], [n]) for n, o in zip(names, outputs)]
            outcomes = {n: v.outcomes[n] for n, v in zip(names, verdicts)}
            return Judged([o.images[0] for o in outputs], outcomes, _cost(outputs))
        if method == "base":
            output = self._compose(plain_prompt(names, place), scene, (), "merge", {}, steps)
        elif method == "true_masks":
            drawn = draw_concepts(names, place, scene.seed)
            masks = {n: torch.from_numpy(m).float() for n, m in zip(names, drawn.masks)}
            output = self._compose(
                scene.prompt, scene, names, "masked", settings or {"text": "own"}, steps, masks
            )
        else:
            output = self._compose(scene.prompt, scene, names, method, settings, steps)
        outcomes = dict(self.judge.examine(output.images[0], names).outcomes)
        return Judged([output.images[0]], outcomes, _cost([output]))

    def _compose(
        self, prompt: str, scene: ConceptScene, names: Sequence[str], method: str,
        settings: Mapping[str, Any] | None, steps: int, regions: Mapping[str, Any] | None = None,
    ) -> ComposeOutput:  # fmt: skip
        return compose(
            self.pipe, prompt, loras={n: lora_file(n) for n in names}, method=method,
            settings=settings, num_inference_steps=steps, progress=False, regions=regions,
            generator=torch.Generator().manual_seed(scene.seed),
        )  # fmt: skip


def _cost(outputs: Sequence[ComposeOutput]) -> dict[str, float]:
    keys = ("seconds", "calls", "rows", "backward_rows")
    return {key: round(sum(o.info[key] for o in outputs), 3) for key in keys}
