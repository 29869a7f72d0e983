"""OMG: a layout by the base model, then every concept inside what a segmenter finds in it.

Two stages (Kong et al., ECCV 2024). The first draws the scene without LoRAs. A segmenter finds the
subjects in that picture; several of one class are given to the concepts from left to right. The
second stage goes on from the first one's state at `start`, since until there nothing differs, and
takes inside each mask the noise of that concept's pass. Where masks overlap they share (the
authors' code adds up there), and a subject that is not found stays the base model's, which the
trace notes.

`B` pictures, `P` = N + 1 passes, (H, W) cells of the latent.
"""

import math
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.hooks import resized_by_area
from ..denoise.loop import Stage, StepScheduler, guided
from ..detect import Segmenter, get_segmenter
from ..errors import MethodError
from ..layout.masks import fused, with_base
from ..layout.regions import shared
from .base import Method, MethodSettings
from .shared import own_strengths


class OMGSettings(MethodSettings):
    """Settings of OMG.

    Attributes:
        start: fraction of the steps after which the concepts act.
        segmenter: `miniature`, `clipseg` or `grounded_sam`; `auto` is the miniature's on it.
        segmenter_models: local folders of the segmenter's models (CLIPSeg; or GroundingDINO and
            SAM 2).
    """

    start: float = Field(0.32, ge=0, lt=1)
    segmenter: str = "auto"
    segmenter_models: tuple[str, ...] = Field((), strict=False)


class OMG(Method):
    """A layout without LoRAs, then concepts inside it."""

    name = "omg"
    summary = "the base model draws a layout, a segmenter finds the subjects, concepts go there"
    source = "Kong et al., OMG, arXiv 2403.10983"
    passes = "1, then N + 1 from a third of the steps on"
    extra_models = "a segmenter"
    Settings = OMGSettings

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list[Stage]:
        settings = self.settings
        assert isinstance(settings, OMGSettings)
        layout = LayoutStage(composition, executor, scheduler, settings)
        return [layout, ConceptStage(composition, executor, layout, settings)]


class LayoutStage(Stage):
    """The base model's picture; its state at `begin` is kept."""

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: OMGSettings,
    ):  # fmt: skip
        super().__init__(scheduler)
        self.passes = composition.passes()
        self.executor, self.guidance = executor, composition.scene.guidance_scale
        total = len(scheduler.timesteps)
        self.begin = min(total - 1, math.ceil(settings.start * total))
        self.kept: tuple[Tensor, StepScheduler] | None = None

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        if i == self.begin:
            self.kept = latents.clone(), self.scheduler.copy()
        return latents

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        out = self.executor.evaluate(self.passes[:1], self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        return guided(out.noise[:, 0], self.guidance)

    def shown(self, i: int) -> bool:
        return i < self.begin


class ConceptStage(Stage):
    """From the kept state on, each concept's noise inside its mask."""

    def __init__(
        self, composition: Composition, executor: Executor, layout: LayoutStage,
        settings: OMGSettings,
    ):  # fmt: skip
        super().__init__(layout.scheduler)
        self.composition, self.executor, self.layout = composition, executor, layout
        self.names = [concept.name for concept in composition.concepts]
        self.nouns = [concept.noun for concept in composition.concepts]
        self.segmenter = _segmenter(composition, settings)
        self.masks = torch.empty(0)  # (B, P, H, W)

    def start(self, latents: Tensor) -> Float[Tensor, "B C h w"]:
        backbone = self.executor.backbone
        images = cast(list[Image.Image], backbone.decode(latents))
        size = (latents.shape[-2], latents.shape[-1])
        found = torch.stack([self._found(n, image, size) for n, image in enumerate(images)])
        self.masks = with_base(found).to(latents)
        assert self.layout.kept is not None
        self.first = self.layout.begin
        latents, self.scheduler = self.layout.kept
        return latents

    def _found(self, number: int, image, size: tuple[int, int]) -> Float[Tensor, "N H W"]:
        """Each concept's mask in one picture, 0 everywhere for one that is not found."""
        instances: dict[str, list] = {}
        masks = []
        for name, noun in zip(self.names, self.nouns):
            if noun not in instances:
                instances[noun] = list(self._look(image, noun))
            if instances[noun]:
                mask = torch.from_numpy(instances[noun].pop(0)).float()
                masks.append(resized_by_area(mask[None], size)[0])
            else:
                self.trace.notes.append(
                    f"omg: no {noun} for {name!r} in the layout of picture {number + 1}; the base "
                    "model draws it"
                )
                masks.append(torch.zeros(size))
        return shared(torch.stack(masks))

    def _look(self, image, noun: str) -> list:
        try:
            return self.segmenter.find(image, noun)
        except KeyError as error:
            raise MethodError(f"omg: {error.args[0]}") from None

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        passes = self.layout.passes
        out = self.executor.evaluate(passes, self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        assert out.maps is not None
        size = self.executor.backbone.map_size(latents)
        own = out._replace(maps=out.maps[:, 1:])
        self.trace.maps.append(own_strengths(own, passes[1:], self.names, size))
        self.trace.masks.append(self.masks[:, 1:].float())
        return guided(fused(out.noise, self.masks), self.layout.guidance)


def _segmenter(composition: Composition, settings: OMGSettings) -> Segmenter:
    name = settings.segmenter
    if name == "auto":
        if not composition.backbone.miniature:
            raise MethodError(
                "omg needs a segmenter for this model; set segmenter to clipseg or grounded_sam "
                "and segmenter_models to the local folders of its models"
            )
        name = "miniature"
    folders = [Path(folder) for folder in settings.segmenter_models]
    return get_segmenter(name, *folders, device=str(composition.backbone.device))
