"""Scenes of the miniature's concepts, drawn by a method or a yardstick, and judged.

Yardsticks stand beside the methods: `base` draws the scene's plain nouns without any LoRA, `alone`
draws each concept in a picture of its own, which no method can be expected to surpass, and
`true_masks` confines each LoRA to where a drawing of the scene has its subject.

In a scene with a style LoRA colours and patterns are the style's, so who a subject is cannot be
judged: there a concept is right if its class has as many instances as it should, and the style is
an outcome of its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from ..api import compose
from ..evaluate.memory import peak_memory
from ..layout.boxes import intersection_over_union
from ..loading import load
from ..methods import METHODS
from ..output import ComposeOutput
from ..scene import PLAIN
from .concepts import KNOWN
from .judge import Instance, load_judge
from .prompts import PLAIN_SUBJECT, ConceptScene, plain_prompt
from .shipped import lora_file
from .style_reader import load_style_reader

YARDSTICKS = ("base", "alone", "true_masks")
TRUE_MASKS = {"text": "alone"}
"""Settings of `masked` for the ceiling: elsewhere in the picture nothing speaks of a concept."""


LEAST_OVERLAP = 0.5
"""Intersection over union of an instance's box with the one given, to be in its place."""


def wants_regions(method: str) -> bool:
    """Whether a method is told where the concepts are."""
    return method in METHODS and METHODS[method].regions != "no"


def own_settings(
    method: str, given: Mapping[str, Any] | None, placed: bool = False
) -> dict[str, Any]:
    """A method's settings: who wants regions gets strips where scenes say nothing of places.

    Where they do, `masked` reads each concept's words inside its region only: with the whole prompt
    everywhere the noise decides which class is where.
    """
    own: dict[str, Any] = {}
    if wants_regions(method):
        own = {"text": "alone"} if placed and method == "masked" else {}
        own |= {} if placed else {"layout": "strips"}
    return own | dict(given or {})


@dataclass(frozen=True)
class Judged:
    """One scene by one method.

    Attributes:
        images: one; several for `alone`.
        outcomes: by concept.
        cost: seconds, denoiser calls, rows in them, rows differentiated, and where this machine
            tells it the memory that was needed beyond what was in use before, in MiB.
        places: of a placed scene, by concept, how well its box is kept: intersection over union;
            0 if there is no instance.
        likeness: of a placed scene, by concept, the similarity of its instance to it; 0 likewise.
    """

    images: list[Image.Image]
    outcomes: dict[str, str]
    cost: dict[str, float]
    places: dict[str, float] | None = None
    likeness: dict[str, float] | None = None

    @property
    def right(self) -> float:
        """Share of the concepts that are right."""
        return sum(o == "right" for o in self.outcomes.values()) / len(self.outcomes)


class SceneDrawer:
    """Draws scenes on the miniature that ships, and judges them.

    Args:
        device: that draws; the judge works on the processor.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.judge = device, load_judge()
        self.pipe = load("miniature", device=device)
        self.reader = load_style_reader()

    def draw(
        self, scene: ConceptScene, method: str, settings: Mapping[str, Any] | None = None,
        steps: int = 50,
    ) -> Judged:  # fmt: skip
        """One scene with its own noise, by a method or a yardstick."""
        with peak_memory(self.device) as memory:
            judged = self._drawn(scene, method, settings, steps)
        if memory.mib is not None:
            judged.cost["peak_mib"] = memory.mib
        return judged

    def _drawn(
        self, scene: ConceptScene, method: str, settings: Mapping[str, Any] | None, steps: int
    ) -> Judged:
        if method == "alone":
            outputs, outcomes = [], {}
            for name in scene.names:
                outputs.append(self._compose(scene.prompt_of([name]), scene, "merge", {}, steps))
                outcomes |= self._judged(outputs[-1].images[0], [name], scene.style)[0]
            return Judged([o.images[0] for o in outputs], outcomes, _cost(outputs))
        boxes = scene.boxes() if scene.placed else {}
        prompt, regions = scene.prompt, None
        if method == "base":
            prompt, method, settings = plain_prompt(scene.names, scene.background), "merge", {}
        elif method == "true_masks":
            drawn = zip(scene.names, scene.drawing().masks)
            regions = {name: torch.from_numpy(mask).float() for name, mask in drawn}
            method, settings = "masked", {**TRUE_MASKS, **(settings or {})}
        else:
            settings = own_settings(method, settings, scene.placed)
            regions = boxes if boxes and wants_regions(method) else None
        output = self._compose(prompt, scene, method, settings, steps, regions)
        image = output.images[0]
        outcomes, found = self._judged(image, scene.names, scene.style)
        if scene.attribute is not None:
            outcomes[PLAIN_SUBJECT], plain = self._coloured(image, *scene.attribute)
            found |= {PLAIN_SUBJECT: plain} if plain else {}
        judged = Judged([image], outcomes, _cost([output]))
        if not scene.placed:
            return judged
        places, likeness = dict.fromkeys(boxes, 0.0), dict.fromkeys(scene.names, 0.0)
        for name, instance in found.items():
            places[name] = round(intersection_over_union(instance.box, boxes[name]), 4)
            if name in likeness:
                likeness[name] = round(instance.similarities[name], 4)
        return replace(judged, places=places, likeness=likeness)

    def _coloured(self, image: Image.Image, kind: str, colour: str) -> tuple[str, Instance | None]:
        """Right if there is one of that class in that colour, `blended` in another one; and the
        largest of that class."""
        found = [i for i in self.judge.instances(image, 2, {kind: 1}) if i.kind == kind]
        largest = max(found, key=lambda i: i.area, default=None)
        if len(found) != 1:
            return "duplicated" if found else "missing", largest
        right = self.judge.dominant_colour(image, kind) == colour
        return "right" if right else "blended", largest

    def _judged(
        self, image: Image.Image, names: Sequence[str], style: str | None
    ) -> tuple[dict[str, str], dict[str, Instance]]:
        """The outcome of each concept, and of the style if there should be one; and which instance
        is whose, which nobody can say of a scene with a style."""
        if style is None:
            verdict = self.judge.examine(image, names)
            return dict(verdict.outcomes), dict(verdict.assigned)
        wanted = Counter(KNOWN[name].kind for name in names)
        found = Counter(i.kind for i in self.judge.instances(image, len(names), wanted))
        outcomes = {}
        for name in names:
            kind = KNOWN[name].kind
            more = found[kind] - wanted[kind]
            outcomes[name] = "right" if more == 0 else "duplicated" if more > 0 else "missing"
        outcomes[style] = "right" if self.reader.read([image]) == [style] else "missing"
        return outcomes, {}

    def _compose(
        self, prompt: str, scene: ConceptScene, method: str, settings: Mapping[str, Any] | None,
        steps: int, regions: Mapping[str, Any] | None = None,
    ) -> ComposeOutput:  # fmt: skip
        used = [name for name in scene.loras if f"({name})" in prompt or f":{name}:" in prompt]
        files: dict[str, Any] = {name: lora_file(name) for name in used}
        if f"({PLAIN_SUBJECT})" in prompt:
            files[PLAIN_SUBJECT] = PLAIN
        return compose(
            self.pipe, prompt, loras=files, method=method,
            settings=settings, num_inference_steps=steps, progress=False, regions=regions,
            generator=torch.Generator().manual_seed(scene.seed), width=scene.width,
        )  # fmt: skip


def _cost(outputs: Sequence[ComposeOutput]) -> dict[str, float]:
    keys = ("seconds", "calls", "rows", "backward_rows")
    return {key: round(sum(o.info[key] for o in outputs), 3) for key in keys}
