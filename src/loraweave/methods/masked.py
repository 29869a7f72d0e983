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
from ..layout.regions import joined, region_masks, shared, strip_masks
from ..prompt import full_prompt, pass_prompt, words_alone, words_between
from ..scene import BACKGROUND
from .base import Method, MethodSettings

Text = Literal["shared", "own", "alone"]
Outside = Literal["prompt", "rest"]
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
            concept's words and no others, so that it says what is where. A prompt that the
            scene has for a region replaces it.
        outside: what is read outside of all regions: the prompt, `prompt`, or `rest`, what is left
            of it without the concepts' words.
    """

    text: Text = "shared"
    outside: Outside = "prompt"


class Masked(Method):
    """Each LoRA inside its region."""

    name = "masked"
    summary = "each LoRA confined to a region that the user gives"
    source = "kohya-ss/sd-scripts (regional LoRA), hako-mikan (Attention Couple)"
    passes = "1"
    regions = "needed, or left-to-right strips"
    own_prompts = True
    refuses = ("LoRAs of layers without places (time embedding)",)
    Settings = MaskedSettings

    def check(self, composition: Composition) -> None:
        super().check(composition)
        settings = self.settings
        assert isinstance(settings, MaskedSettings)
        check_layout(self.name, settings.layout, composition)

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["MaskedStage"]:
        settings = self.settings
        assert isinstance(settings, MaskedSettings)
        passes = owners(composition, settings.text, settings.outside)
        return [MaskedStage(composition, executor, scheduler, passes, settings.layout)]


def check_layout(method: str, layout: Layout, composition: Composition) -> None:
    """Raise MethodError if there are regions and the method cuts the picture itself."""
    if layout == "strips" and composition.regions:
        raise MethodError(
            f"{method} with layout 'strips' cuts the picture itself, and the scene has regions "
            f"for {', '.join(composition.regions)}; leave out one of the two"
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
        masks = joined(*laid_out(composition, layout))
        self.masks = with_base(shared(masks))[None]  # (1, P, H, W)

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        out = self.confined.evaluate(self.masks, self.scheduler.scale(latents, t), t)
        assert out.noise is not None
        own = self.masks[0, 1:].float()
        self.trace.masks.append(own.expand(len(latents), *own.shape))
        return guided(out.noise[:, 0], self.guidance)


def laid_out(composition: Composition, layout: Layout) -> tuple[Float[Tensor, "M H W"], list[int]]:
    """Every region in [0, 1], in cells of the latent, and whose it is; they may overlap."""
    backbone = composition.backbone
    size = backbone.latent_shape(composition.width, composition.height)[-2:]
    names = [concept.name for concept in composition.concepts]
    if layout == "strips":
        masks, whose = strip_masks(len(names), size), list(range(len(names)))
    else:
        picture = composition.width, composition.height
        masks, whose = region_masks(composition.regions, names, size, picture)
    return masks.to(backbone.device, backbone.dtype), whose


def owners(composition: Composition, text: Text, outside: Outside = "prompt") -> list[Pass]:
    """The base model and every concept, each with its text."""
    scene = composition.scene
    parsed, whole = scene.parsed, full_prompt(scene.parsed)
    texts = {
        "shared": lambda name: whole,
        "own": lambda name: pass_prompt(parsed, scene.triggered([name], False)),
        "alone": lambda name: words_alone(parsed, name, scene.worn(name)),
    }
    around = whole if text == "shared" else pass_prompt(parsed, scene.triggered((), True))
    if outside == "rest":
        around = words_between(parsed, {style.name for style in scene.acting((), True)})
    around = composition.own_text(BACKGROUND, around)
    return [composition.make_pass((), background=True, prompt=around)] + [
        composition.make_pass([c], prompt=composition.own_text(c.name, texts[text](c.name)))
        for c in composition.concepts
    ]
