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
from ..evaluate.cost import cost_of, machine
from ..loading import load
from ..memory.measured import peak_memory
from ..methods import METHODS
from ..output import ComposeOutput, picture_record, png_bytes
from ..scene import BACKGROUND, PLAIN, LoraRef
from .prompts import PLAIN_SUBJECT
from .scene_judge import Findings, SceneJudge
from .scenes import ConceptScene
from .scoring import SCORES
from .shipped import lora_file

YARDSTICKS = ("base", "alone", "true_masks")
TRUE_MASKS = {"text": "alone"}
"""Settings of `masked` for the ceiling: elsewhere in the picture nothing speaks of a concept."""


WORN_WEIGHT = 1.2
"""Of LoRAs of things to wear: with 1 the miniature shows them too faintly."""
LEAST_OVERLAP = 0.5
"""Intersection over union of an instance's box with the one given, to be in its place."""


def wants_regions(method: str) -> bool:
    """Whether a method is told where the concepts are, if anybody knows."""
    return method in METHODS and METHODS[method].regions != "no"


def own_settings(
    method: str, given: Mapping[str, Any] | None, placed: bool = False
) -> dict[str, Any]:
    """A method's settings: who needs regions gets strips where scenes say nothing of places.

    Where they do, `masked` reads each concept's words inside its region only: with the whole prompt
    everywhere the noise decides which class is where.
    """
    own: dict[str, Any] = {}
    if placed and method == "masked":
        own = {"text": "alone"}
    elif not placed and method in METHODS and "layout" in METHODS[method].Settings.model_fields:
        own = {"layout": "strips"}
    return own | dict(given or {})


@dataclass(frozen=True)
class Judged:
    """One scene by one method.

    Attributes:
        outputs: one; several for `alone`.
        findings: of the judge; of `alone` about each concept in its own picture.
        cost: see `evaluate.cost.COSTS`.
    """

    outputs: list[ComposeOutput]
    findings: Findings
    cost: dict[str, float]

    @property
    def images(self) -> list[Image.Image]:
        """The pictures."""
        return [output.images[0] for output in self.outputs]

    def files(self) -> list[bytes]:
        """The pictures as PNGs that carry how they were made, and what each cost.

        What several cost together is in no picture.
        """
        made = []
        for output in self.outputs:
            info = output.info
            if len(self.outputs) == 1:
                info = info | {"cost": {**self.cost, "machine": machine(info["device"])}}
            made.append(png_bytes(output.images[0], picture_record(info, 0)))
        return made

    @property
    def outcomes(self) -> dict[str, str]:
        """By concept, and by what comes on top."""
        return self.findings.outcomes

    @property
    def right(self) -> float:
        """Share of the outcomes that are right."""
        return sum(o == "right" for o in self.outcomes.values()) / len(self.outcomes)


class SceneDrawer:
    """Draws scenes on the miniature that ships, and judges them.

    Args:
        device: that draws; the judge works on the processor.
        dtype: in which the miniature draws.
    """

    def __init__(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.judge = device, SceneJudge()
        self.pipe = load("miniature", device=device, dtype=dtype)

    def draw(
        self, scene: ConceptScene, method: str, settings: Mapping[str, Any] | None = None,
        steps: int = 50, scheduler: str | None = None,
    ) -> Judged:  # fmt: skip
        """One scene with its own noise, by a method or a yardstick."""
        with peak_memory(self.device) as memory:
            outputs = self.outputs(scene, method, settings, steps, scheduler)
        cost = cost_of(outputs, memory)
        images = [output.images[0] for output in outputs]
        if method == "alone":
            return Judged(outputs, self._of_each(images, scene), cost)
        boxes = scene.boxes() if scene.placed else {}
        return Judged(outputs, self.judge.examine(images[0], scene, boxes), cost)

    def _of_each(self, images: Sequence[Image.Image], scene: ConceptScene) -> Findings:
        """Of pictures of one concept each."""
        outcomes: dict[str, str] = {}
        scores: dict[str, Any] = {}
        identity: dict[str, dict[str, float]] = {}
        texts = []
        for image, name in zip(images, scene.names):
            found = self.judge.examine(image, scene.alone(name), {})
            for what, outcome in found.outcomes.items():  # of what is in all, the worst
                if outcomes.get(what, "right") == "right":
                    outcomes[what] = outcome
            identity |= found.identity or {}
            texts.append(found.scores["clip_t"])
            for kind in SCORES:
                scores[kind] = scores.get(kind, {}) | found.scores[kind]
        scores["clip_t"] = round(sum(texts) / len(texts), 4)
        return Findings(outcomes, scores=scores, identity=identity or None)

    def outputs(
        self, scene: ConceptScene, method: str, settings: Mapping[str, Any] | None, steps: int,
        scheduler: str | None = None,
    ) -> list[ComposeOutput]:  # fmt: skip
        """The pictures of one scene, nobody judges them."""
        how = {"num_inference_steps": steps, "scheduler": scheduler}
        if method == "alone":
            own = [scene.alone(name) for name in scene.names]
            return [self._compose(one.prompt, one, "merge", {}, how) for one in own]
        if method == "base":
            return [self._compose(scene.plain_prompt, scene, "merge", {}, how)]
        regions: Mapping[str, Any] | None = None
        if method == "true_masks":
            drawn = zip(scene.names, scene.drawing().masks)
            regions = {name: torch.from_numpy(mask).float() for name, mask in drawn}
            method, settings = "masked", {**TRUE_MASKS, **(settings or {})}
        else:
            settings = own_settings(method, settings, scene.placed)
            regions = scene.boxes() if scene.placed and wants_regions(method) else None
        return [self._compose(scene.prompt, scene, method, settings, how, regions)]

    def _compose(
        self, prompt: str, scene: ConceptScene, method: str, settings: Mapping[str, Any] | None,
        how: Mapping[str, Any], regions: Mapping[str, Any] | None = None,
    ) -> ComposeOutput:  # fmt: skip
        used = [name for name in scene.loras if f"({name})" in prompt or f":{name}:" in prompt]
        files: dict[str, Any] = {name: lora_file(name) for name in used}
        if scene.place in files:
            files[scene.place] = LoraRef(path=files[scene.place], on=BACKGROUND)
        if scene.worn is not None and scene.worn[0] in files:
            extra, wearer = scene.worn
            files[extra] = LoraRef(path=files[extra], on=wearer, weight=WORN_WEIGHT)
        if f"({PLAIN_SUBJECT})" in prompt:
            files[PLAIN_SUBJECT] = PLAIN
        return compose(
            self.pipe, prompt, loras=files, method=method,
            settings=settings, progress=False, regions=regions, **how,
            generator=torch.Generator().manual_seed(scene.seed), width=scene.width,
        )  # fmt: skip
