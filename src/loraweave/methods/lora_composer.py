"""LoRA-Composer (Yang et al. 2024): regions that are filled, and that do not look at each other.

Every region has its own text and LoRA in cross-attention; self-attention does not pass between
regions; at early steps the latent is moved so that the words of a region look into it, and before
the first step pieces of the noise that already look like a subject are brought into its region.

Three variants: `faithful`, what the authors' code does; `paper`, what the paper says where that
differs (weight of the leak .8 of enhancement's instead of 1.25, linear decay of the step, an update
before the re-initialisation); `improved`, the default: all of each LoRA inside its region, outside
of the regions no word of a concept, updates that do not stop early, no re-initialisation.
Nothing here reproduces the code's mistakes: words are found by the tokenizer, concepts are matched
by name, boxes end where they end.

`B` pictures, `M` regions, `L` = h*w places of the level that methods read, `W` words of a region.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.executor import Executor
from ..denoise.isolated import level_regions
from ..denoise.loop import StepScheduler
from ..errors import MethodError
from ..lora.adapter import Adapter
from ..scene import Scene
from .base import Method
from .composer_losses import concept_presence, fill, leak
from .guided_merge import smoothed_3x3
from .guided_regions import GuidedRegionsStage
from .masked import LayoutSettings, Outside, Text, check_layout, owners
from .stepping import StepSettings, falling

INJECTED = ("attn2.to_k", "attn2.to_v", "attn2.to_out.0")
"""What the authors' code uses of a concept's LoRA in the denoiser."""


VARIANTS: dict[str, dict[str, Any]] = {
    "improved": {},
    "faithful": {
        "outside": "prompt", "injected": "cross", "reinitialise": "plain", "patience": 5,
        "conditions": "refinement",
    },
    "paper": {
        "outside": "prompt", "injected": "cross", "reinitialise": "after_update", "patience": 5,
        "leak": 6.4, "decay": "linear",
    },
}  # fmt: skip
"""What differs from the defaults: the authors' code, and the paper's text where that differs."""


class LoRAComposerSettings(LayoutSettings, StepSettings):
    """Settings of LoRA-Composer.

    Attributes:
        variant: the other settings' defaults: ours, `improved`; those of the authors' code,
            `faithful`; or those of the paper's text, `paper`.
        text: what is read inside a region: `alone`, that concept's words; `own`, the prompt with
            its trigger only; `shared`, the whole prompt. A prompt that the scene has for a region
            replaces it.
        outside: what is read outside of all regions: the prompt, `prompt`, or `rest`, what is left
            of it without the concepts' words.
        injected: `cross`, keys, values and output of cross-attention only, as the authors' code
            has it; `all` of the LoRA.
        isolation: self-attention does not pass between regions.
        presence: weight of the loss that the strongest places of a concept's words are in its
            region; 0 for none.
        fill: weight of the loss that they fill it; 0 for none.
        leak: weight of the loss of self-attention that looks out of the region; 0 for none.
        reinitialise: bring fitting noise into the regions before the first step: `no`, `plain`,
            or `after_update`, after one update of the latent.
        max_updates: at most so many steps have an update, one each.
        patience: the first step at which an update whose loss has risen is the last one; None for
            all updates.
        decay: of the step size, from 1 to sqrt(.5) (`sqrt`) or to .5 (`linear`).
        soft_edges: sigma of a Gaussian over the regions' edges in cross-attention, in cells.
        conditions: pictures to draw after (sketches, pose maps) act in all steps, `always`, or end
            with the updates, `refinement`, as in the authors' code.
    """

    variant: Literal["improved", "faithful", "paper"] = "improved"
    text: Text = "alone"
    outside: Outside = "rest"
    injected: Literal["cross", "all"] = "all"
    isolation: bool = True
    presence: float = Field(8.0, ge=0)
    fill: float = Field(2.0, ge=0)
    leak: float = Field(10.0, ge=0)
    reinitialise: Literal["no", "plain", "after_update"] = "no"
    max_updates: int = Field(26, ge=0)
    patience: int | None = Field(None, ge=0)
    decay: Literal["sqrt", "linear"] = "sqrt"
    soft_edges: float = Field(0.0, ge=0)
    conditions: Literal["always", "refinement"] = "always"

    @property
    def takes_gradients(self) -> bool:
        return self.max_updates > 0 or self.reinitialise == "after_update"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_variant(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {**VARIANTS.get(str(data.get("variant", "improved")), {}), **data}
        return data


class LoRAComposer(Method):
    """Each LoRA in its region, filled and kept apart."""

    name = "lora_composer"
    summary = "each LoRA in a region, attention made to fill it and kept from the others"
    source = "Yang et al., LoRA-Composer, arXiv 2403.11627"
    passes = "1, and gradients in the first half"
    regions = "needed, or left-to-right strips"
    own_prompts = True
    refuses = ("LoRAs of layers without places (time embedding), with injected=all",)
    Settings = LoRAComposerSettings

    def check(self, composition: Composition) -> None:
        super().check(composition)
        assert isinstance(self.settings, LoRAComposerSettings)
        check_layout(self.name, self.settings.layout, composition)

    def extra_adapters(self, scene: Scene, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
        assert isinstance(self.settings, LoRAComposerSettings)
        if self.settings.injected == "all":
            return {}
        return {c.name: injected(adapters[c.name]) for c in scene.concepts}

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["LoRAComposerStage"]:
        return [LoRAComposerStage(composition, executor, scheduler, self.settings)]  # type: ignore[arg-type]


def injected(adapter: Adapter) -> Adapter:
    """What the authors' code uses of a LoRA; its text encoder's part is used whole.

    Raises:
        MethodError: that is nothing of its part for the denoiser.
    """
    unet = {path: update for path, update in adapter.unet.items() if path.endswith(INJECTED)}
    if adapter.unet and not unet:
        raise MethodError(
            f"the LoRA {adapter.name!r} has no keys, values or output of cross-attention, so "
            "lora_composer would not use it; set injected=all"
        )
    return replace(adapter, unet=unet)


class LoRAComposerStage(GuidedRegionsStage):
    """One run, one confined call a step, one more for each update."""

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: LoRAComposerSettings,
    ):  # fmt: skip
        super().__init__(
            composition, executor, scheduler,
            owners(composition, settings.text, settings.outside), settings, settings.layout,
            isolated=settings.isolation, soft_edges=settings.soft_edges,
        )  # fmt: skip
        self.settings = settings
        self._former: Tensor | None = None
        self._moving: Tensor | None = None

    def start(self, latents: Tensor) -> Float[Tensor, "B C H W"]:
        settings = self.settings
        if settings.reinitialise == "no":
            return latents
        t = self.scheduler.timesteps[0]
        if settings.reinitialise == "after_update":
            latents = latents - self._step(latents, self.gradient(latents, t, 0)[1], 0)
        backbone = self.executor.backbone
        regions = level_regions(self.regions, backbone.map_size(latents))
        return torch.stack([
            reinitialised(z, own, regions, backbone.factor)
            for z, own in zip(latents, self.looked_at(latents, t))
        ])  # fmt: skip

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C H W"]:
        settings = self.settings
        if settings.conditions == "refinement":
            self.follows = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
        if i >= settings.max_updates or not (settings.presence or settings.fill or settings.leak):
            return latents
        if self._moving is None:
            self._moving = torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        if not self._moving.any():
            return latents
        if self.follows is not None:
            self.follows = self._moving
        losses, gradient = self.gradient(latents, t, i)
        self.trace.losses.append((i, losses))
        step = self._step(latents, gradient, i)
        moved = torch.where(self._moving.view(-1, 1, 1, 1), latents - step, latents)
        patience = settings.patience
        if self._former is not None and patience is not None and i >= patience:
            self._moving = self._moving & (losses <= self._former)
        self._former = losses
        return moved

    def loss(
        self, maps: list[Float[Tensor, "W h w"]], looks: Float[Tensor, "L L"],
        regions: Bool[Tensor, "M h w"], i: int,
    ) -> Float[Tensor, ""]:  # fmt: skip
        """Sum over the regions; two words' worth of enhancement each, however many tokens."""
        settings, total = self.settings, looks.new_zeros(())
        for own, region in zip(maps, regions):
            smooth = smoothed_3x3(own.flatten(1).T[None], (own.shape[1], own.shape[2]), 0.5)[0].T
            smooth = smooth.view_as(own)
            words = settings.presence * concept_presence(smooth, region)
            words = words + settings.fill * fill(smooth, region)
            total = total + 2 * words.mean() + settings.leak * leak(looks, region)
        return total

    def _step(self, latents: Tensor, gradient: Tensor, i: int) -> Float[Tensor, "B C H W"]:
        fall = falling(i, len(self.scheduler.timesteps))
        return self.stepper(
            latents, gradient, fall if self.settings.decay == "linear" else fall**0.5
        )


def reinitialised(
    z: Float[Tensor, "C H W"], maps: list[Float[Tensor, "W h w"]], regions: Bool[Tensor, "M h w"],
    factor: int,
) -> Float[Tensor, "C H W"]:  # fmt: skip
    """Noise whose regions hold what their words look at most, wherever that was.

    For each region the window of its shape with the most attention of its words is copied into it;
    sources are always the noise as it was. Mean and spread of the whole are kept.

    Args:
        z: the noise.
        maps: of each region's words.
        regions: at the maps' level.
        factor: cells of the latent to a place of the maps.
    """
    new = z.clone()
    for own, region in zip(maps, regions, strict=True):
        rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        shape = region[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        score = F.conv2d(own.sum(0)[None, None], shape.to(own)[None, None])[0, 0]
        y, x = divmod(int(score.argmax()), score.shape[1])
        moved = z.roll(((top - y) * factor, (left - x) * factor), (1, 2))  # the window is in place
        inside = region.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        inside = inside[: z.shape[1], : z.shape[2]]
        new = torch.where(inside, moved, new)
    return (new - new.mean()) / new.std() * z.std() + z.mean()
