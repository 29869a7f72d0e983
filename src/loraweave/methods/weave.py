"""Weave: one denoiser call a step for any number of LoRAs, every place drawn by its owner.

For the first steps the base model draws the scene with plain nouns, and its attention says where
each concept is going to be (layout/places.py: a place for every concept, none for two). From then
on each place is drawn as by its owner's LoRA alone: every layer adds the owner's residual only, and
cross-attention reads the owner's text with the owner's keys and values, in both halves of guidance;
what the base draws outside of all places has no LoRA (denoise/confined.py).

What a place reads is a mixture of two texts, by their attention: the sentence with its own trigger
and plain nouns for the others, which keeps the scene together, and its own words alone, which keep
the others' nouns out. The sentence weighs more in early steps, when the layout is made. Outside of
the places the sentence is read early, and later the rest of it without the concepts' words. Where
the user gives the places of three or more, there is no layout to make: each reads its own words
from the start.

What the user gives is not where the noise would put things. So of three or more early steps move
the latent until each concept's words fill its place, by LoRA-Composer's losses.

Which of these parts matter is measured in docs/decisions/0017-weave.md.

`B` pictures, `N` concepts, `K` owners, (H, W) cells of the latent.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.confined import Confined
from ..denoise.executor import Evaluation, Executor
from ..denoise.looking import LookingStage
from ..denoise.loop import Stage, StepScheduler, guided
from ..errors import MethodError, RegionError
from ..layout.masks import normalized, resized, strengths, with_base
from ..layout.places import PlaceRule, places_of, upsampled
from ..layout.regions import joined, region_masks, shared
from ..scene import BACKGROUND
from .base import Method, MethodSettings
from .lora_composer import LoRAComposerSettings, LoRAComposerStage
from .masked import Outside, owners


class WeaveSettings(MethodSettings):
    """Settings of weave; the defaults were chosen on tuning scenes of the miniature.

    Attributes:
        layout_share: of the steps, in which the base model makes the layout.
        restart: draw the picture from its first step then, with the same noise; otherwise go on
            from where the layout is, and nothing is computed twice.
        threshold: of a map's largest value, from which a position belongs to its concept.
        context: how much of what a place reads is the sentence, the rest is its own words.
        early: the share of the steps that count as early.
        early_context: `context` there.
        room: area, as a share of the picture, up to which small places grow.
        placed_context: where the user gives the places of all concepts, `context` early and late,
            with `outside` from the start. If None, 0 for three and more, whose sentence has too
            many others' nouns, and for two as where places are found.
        placed_updates: where the user gives the places of all concepts, the steps from the first on
            before which the latent is moved so that each concept's words look into its place and
            fill it, as lora_composer does it; each takes a gradient. If None, as many as there for
            three and more; for two, which have their places without, none.
        outside: what is read outside of the places, after the early steps: the whole `prompt`, or
            the `rest` of it without the concepts' words.
        refresh: the share of the run after which places are found once more, by where each noun has
            looked in its concept's own sentence since the layout; 0 for never.
        attention: in self-attention a position sees the others as their own owners' keys and
            values (`keys`), or all of them as its owner's (`queries`).
    """

    layout_share: float = Field(0.2, gt=0, lt=1)
    restart: bool = True
    threshold: float = Field(0.3, gt=0, lt=1)
    context: float = Field(0.4, ge=0, le=1)
    early: float = Field(0.3, ge=0, le=1)
    early_context: float = Field(0.6, ge=0, le=1)
    placed_context: float | None = Field(None, ge=0, le=1)
    placed_updates: int | None = Field(None, ge=0)
    room: float = Field(0.08, ge=0, le=1)
    outside: Outside = "rest"
    refresh: float = Field(0.0, ge=0, lt=1)
    attention: Literal["keys", "queries"] = "keys"

    def updates_of(self, placed: int) -> int:
        """`placed_updates` where so many concepts have all their places from the user."""
        if self.placed_updates is None:
            return LoRAComposerSettings.model_fields["max_updates"].default if placed > 2 else 0
        return self.placed_updates if placed else 0


class Weave(Method):
    """Places found in the base model's attention, each drawn by its owner, in one call a step."""

    name = "weave"
    summary = "places found by attention, each drawn as by its LoRA alone, in one call a step"
    source = "LoRAWeave, docs/decisions/0017-weave.md"
    passes = "1, and a fifth more steps for the layout; gradients where 3 and more have regions"
    regions = "found, or from the user"
    own_prompts = True
    refuses = ("LoRAs of layers without places (time embedding)",)
    Settings = WeaveSettings

    def takes_gradients(self, placed: int) -> bool:
        assert isinstance(self.settings, WeaveSettings)
        return self.settings.updates_of(placed) > 0

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list[Stage]:
        settings = self.settings
        assert isinstance(settings, WeaveSettings)
        given = given_places(composition)
        _check_effects(settings, len(given), len(composition.concepts), composition.placed)
        if len(given) == len(composition.concepts):
            return [WeaveStage(composition, executor, scheduler, settings, given)]
        if len(scheduler.timesteps) < 2 and not settings.restart:
            raise MethodError("weave with restart=false needs two steps at least")
        layout = LayoutStage(executor, scheduler.copy(), settings)
        return [layout, WeaveStage(composition, executor, scheduler, settings, given, layout)]


def _check_effects(settings: WeaveSettings, given: int, concepts: int, placed: int) -> None:
    """Raise MethodError for settings that would not be used."""
    if settings.placed_updates and not placed:
        raise MethodError(
            "placed_updates is for scenes with a region for every concept, and here places are "
            "found; leave it out"
        )
    if settings.refresh and given == concepts:
        raise MethodError("refresh finds places once more, and here all are known; leave it out")
    if 0 < settings.refresh <= settings.layout_share:
        raise MethodError(
            f"refresh={settings.refresh} is not after the layout; use more than "
            f"layout_share={settings.layout_share}"
        )
    if settings.placed_context is not None and given < concepts:
        raise MethodError(
            "placed_context is for scenes with a region for every concept, and here places are "
            "found; use context and early_context"
        )
    if settings.placed_context is None and given == concepts > 2:
        for key in ("context", "early_context"):
            if getattr(settings, key) != WeaveSettings.model_fields[key].default:
                raise MethodError(
                    f"with a region for each of three or more concepts {key} is not used; use "
                    "placed_context"
                )


def given_places(composition: Composition) -> dict[int, Float[Tensor, "H W"]]:
    """By a concept's number the place that it has from the start: the user's, or the whole picture
    for a single concept with nothing beside it."""
    concepts, backbone = composition.concepts, composition.backbone
    size = backbone.latent_shape(composition.width, composition.height)[-2:]
    placed = [c.name for c in concepts if composition.regions.get(c.name)]
    if not placed:
        behind = [style.name for style in composition.scene.styles if style.on == BACKGROUND]
        alone = len(concepts) == 1 and not behind and BACKGROUND not in composition.scene.prompts
        return {0: torch.ones(size)} if alone else {}
    picture = composition.width, composition.height
    masks = shared(joined(*region_masks(composition.regions, placed, size, picture)))
    numbers = {concept.name: k for k, concept in enumerate(concepts)}
    return {numbers[name]: mask for name, mask in zip(placed, masks)}


class LayoutStage(LookingStage):
    """The layout, and the noise that it began with."""

    def __init__(self, executor: Executor, scheduler: StepScheduler, settings: WeaveSettings):
        super().__init__(executor, scheduler, settings.layout_share)
        self.restart = settings.restart
        if not self.restart:  # the concepts need a step, too
            self.last = min(self.last, len(scheduler.timesteps) - 1)
        self.noise = torch.empty(0)

    def start(self, latents: Tensor) -> Float[Tensor, "B C H W"]:
        self.noise = latents
        return latents

    def shown(self, i: int) -> bool:
        return not self.restart


class WeaveStage(Stage):
    """The picture, one confined call a step.

    Args:
        composition, executor, scheduler, settings: of the run.
        given: places that are known.
        layout: where the others come from; not needed if all are known.
    """

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: WeaveSettings, given: Mapping[int, Tensor], layout: LayoutStage | None = None,
    ):  # fmt: skip
        super().__init__(scheduler)
        self.guidance = composition.scene.guidance_scale
        self.executor, self.settings, self.given, self.layout = executor, settings, given, layout
        self.concepts = composition.concepts
        self.context, self.early_context = settings.context, settings.early_context
        early_outside, placed = "prompt", settings.placed_context
        if layout is None and (placed is not None or len(self.concepts) > 2):
            early_outside, self.context = settings.outside, placed or 0.0
            self.early_context = self.context
        if len(self.concepts) == 1:  # which has no other's noun to keep out
            self.context = self.early_context = 1.0
        by_query = settings.attention == "queries"
        self.early, self.late = (
            Confined(executor, [
                *owners(composition, "own", outside), *owners(composition, "alone", outside)[1:]
            ], by_query)
            for outside in (early_outside, settings.outside)
        )  # fmt: skip
        self.places = torch.empty(0)  # (B, N, H, W)
        self.filling: LoRAComposerStage | None = None
        if updates := settings.updates_of(composition.placed):
            own = {"isolation": False, "max_updates": updates}
            composer = LoRAComposerSettings.model_validate(own)
            self.filling = LoRAComposerStage(composition, executor, scheduler, composer)
            self.trace = self.filling.trace  # which has the losses
        self._mixed: dict[float, Tensor] = {}
        self._refreshed = round(settings.refresh * len(scheduler.timesteps))
        self._seen: list[Tensor] = []  # (B, N, h, w) each

    def start(self, latents: Tensor) -> Float[Tensor, "B C H W"]:
        layout = self.layout
        if layout is None:
            every = [self.given[k].to(latents) for k in range(len(self.concepts))]
            self.places = torch.stack(every).expand(len(latents), -1, -1, -1)
            return latents
        self.trace = layout.trace
        self._find(layout.attention(), latents)
        if self.settings.restart:
            return layout.noise
        self.first, self.scheduler = layout.last, layout.scheduler
        return latents

    def _find(self, attention: Float[Tensor, "B N h w"], latents: Tensor) -> None:
        """Places from where each concept's noun looks."""
        size, self._mixed = latents.shape[-2:], {}
        given = {k: mask.to(latents) for k, mask in self.given.items()}
        # Each map from 0 to 1: a noun that looks everywhere alike has no place of its own.
        maps = torch.stack([normalized(m.flatten(1)).view_as(m) for m in attention])
        coarse = {
            k: resized(mask[None].cpu().float(), maps.shape[-2:])[0] for k, mask in given.items()
        }
        rule = PlaceRule(threshold=self.settings.threshold, room=self.settings.room)
        nouns = [concept.noun for concept in self.concepts]
        pictures = [places_of(own, nouns, rule, coarse).masks for own in maps]
        self.places = upsampled(with_base(torch.stack(pictures)), size)[:, 1:].to(latents)
        if given:  # as sharp as they were given, and nobody else's
            self.places = self.places * (1 - torch.stack([*given.values()]).sum(0).clamp(max=1))
        for k, mask in given.items():
            self.places[:, k] = mask
        for concept, room in zip(self.concepts, self.places.amax((0, 2, 3))):
            if not room:
                raise RegionError(
                    f"the regions that are given leave no place for {concept.name!r}; give it one, "
                    "too, or make them smaller"
                )

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C H W"]:
        return latents if self.filling is None else self.filling.refine(latents, i, t)

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C H W"]:
        if i == self._refreshed and self._seen:
            self._find(torch.stack(self._seen).sum(0), latents)
        soon = i < self.settings.early * len(self.scheduler.timesteps)
        masks = self._mixture(self.early_context if soon else self.context)
        confined = self.early if soon else self.late
        looking = self.layout is not None and self.layout.last <= i < self._refreshed
        out = confined.evaluate(masks, self.scheduler.scale(latents, t), t, record=looking)
        assert out.noise is not None
        if looking:
            self._seen.append(self._own_nouns(out, self.executor.backbone.map_size(latents)))
        self.trace.masks.append(self.places.float())
        return guided(out.noise[:, 0], self.guidance)

    def _own_nouns(self, out: Evaluation, size: tuple[int, int]) -> Float[Tensor, "B N h w"]:
        """How strongly each concept's noun looks, in its own sentence."""
        assert out.maps is not None
        maps = out.maps[:, :, -1].float()
        return torch.cat([
            strengths(maps[:, k], [self.early.owners[k].words.nouns[concept.name]], size)
            for k, concept in enumerate(self.concepts, 1)
        ], 1)  # fmt: skip

    def _mixture(self, context: float) -> Float[Tensor, "B K H W"]:
        """Shares of the background, of each concept's sentence, and of each one's words alone."""
        if context not in self._mixed:
            own = self.places
            parts = [with_base(own)[:, :1], own * context, own * (1 - context)]
            self._mixed[context] = torch.cat(parts, 1)
        return self._mixed[context]
