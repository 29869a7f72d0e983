"""Masked: one denoiser call a step, each LoRA confined to the region that the user gives it.

The oldest working practice of the community (Attention Couple with regional LoRA; ComfyUI's masked
hooks), done exactly: inside a region every layer works as with that region's LoRA alone, keys and
values of the text included; outside of all regions the base model works. Regions come from the user
as boxes or mask pictures; overlaps are shared.
"""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from ..denoise.composition import Composition, Pass
from ..denoise.confined import Confined
from ..denoise.executor import Executor
from ..denoise.loop import Stage, StepScheduler, guided
from ..errors import MethodError
from ..layout.masks import with_base
from ..layout.regions import region_masks, shared, strip_masks
from ..prompt import full_prompt, words_alone
from .base import Method, MethodSettings

Text = Literal["shared", "own", "alone"]
Layout = Literal["regions", "strips"]
"""Where the concepts are: as the user says, or the picture cut from left to right."""


class LayoutSettings(MethodSettings):
    """Settings of methods with regions.

    Attributes:
        layout: where the concepts are: `regions`, as the user says; `strips`, the picture cut
            from left to right in the order of the prompt.
    """

    layout: Layout = "regions"


class MaskedSettings(LayoutSettings):
    """Settings of masked LoRAs.

    Attributes:
        text: `shared`, the whole prompt everywhere; `own`, in each region the prompt with that
            concept's trigger only, and plain nouns outside; `alone`, in each region that
            concept's words and no others, so that it says what is where.
    """

    text: Text = "shared"


class Masked(Method):
    """Each LoRA inside its region."""

    name = "masked"
    summary = "each LoRA confined to a region that the user gives"
    source = "kohya-ss/sd-scripts (regional LoRA), hako-mikan (Attention Couple)"
    passes = "1"
    regions = "needed, or left-to-right strips"
    refuses = ("LoRAs of layers without places (time embedding)",)
    Settings = MaskedSettings

    def check(self, composition: Composition) -> None:
        super().check(composition)
        settings = self.settings
        assert isinstance(settings, MaskedSettings)
        check_layout(self.name, settings.layout, composition)
        if settings.text == "alone":
            check_alone(self.name, composition)

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["MaskedStage"]:
        settings = self.settings
        assert isinstance(settings, MaskedSettings)
        passes = owners(composition, settings.text)
        return [MaskedStage(composition, executor, scheduler, passes, settings.layout)]


def check_layout(method: str, layout: Layout, composition: Composition) -> None:
    """Raise MethodError if there are regions and the method cuts the picture itself."""
    if layout == "strips" and composition.regions:
        raise MethodError(
            f"{method} with layout 'strips' cuts the picture itself, and the scene has regions "
            f"for {', '.join(composition.regions)}; leave out one of the two"
        )


def check_alone(method: str, composition: Composition) -> None:
    """Raise MethodError if words would be lost where a region reads its concept's words only."""
    scene = composition.scene
    worn = [
        style.name for style in scene.styles
        if any(words.name == style.name for words in scene.parsed.concepts)
    ]  # fmt: skip
    if worn:
        raise MethodError(
            f"{method} reads each concept's words alone inside its region (text 'alone') and has "
            f"no place for the words of {', '.join(worn)}; use masked or lora_composer with text "
            "'own' or 'shared'"
        )


class MaskedStage(Stage):
    """One run, one confined call a step.

    Args:
        composition, executor, scheduler: of the run.
        passes: the owner of the background, then that of each concept's region.
        layout: where the concepts are.
    """

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        passes: Sequence[Pass], layout: Layout,
    ):  # fmt: skip
        super().__init__(scheduler)
        self.guidance = composition.scene.guidance_scale
        self.confined = Confined(executor, passes)
        self.masks = with_base(shared(laid_out(composition, layout)))  # (P, H, W)

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        out = self.confined.evaluate(self.masks[None], self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        own = self.masks[1:].float().cpu()
        self.trace.masks.append(own.expand(len(latents), *own.shape))
        return guided(out.noise[:, 0], self.guidance)


def laid_out(composition: Composition, layout: Layout) -> Float[Tensor, "N H W"]:
    """Every concept's region in [0, 1], in cells of the latent; they may overlap."""
    backbone = composition.backbone
    size = backbone.latent_shape(composition.width, composition.height)[-2:]
    names = [concept.name for concept in composition.concepts]
    if layout == "strips":
        masks = strip_masks(len(names), size)
    else:
        masks = region_masks(composition.regions, names, size)
    return masks.to(backbone.device, backbone.dtype)


def owners(composition: Composition, text: Text) -> list[Pass]:
    """The base model and every concept, each with its text."""
    if text == "own":
        return composition.passes()
    if text == "alone":
        parsed = composition.scene.parsed
        return [
            composition.make_pass((), background=True),
            *(composition.make_pass([c], prompt=words_alone(parsed, c.name))
              for c in composition.concepts),
        ]  # fmt: skip
    prompt = full_prompt(composition.scene.parsed)
    base = composition.make_pass((), background=True, prompt=prompt)
    return [base, *(composition.make_pass([c], prompt=prompt) for c in composition.concepts)]
