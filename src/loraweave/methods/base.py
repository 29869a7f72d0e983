"""What every method looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..condition import weighed_concepts
from ..errors import MethodError
from ..scene import MAX_CONCEPTS

if TYPE_CHECKING:
    from ..denoise.composition import Composition
    from ..denoise.executor import Executor
    from ..denoise.loop import Stage, StepScheduler
    from ..lora.adapter import Adapter
    from ..scene import Scene


class MethodSettings(BaseModel):
    """Settings of a method; unknown names are errors, and so is `no` where a number is meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def takes_gradients(self) -> bool:
        """Whether latents are moved by gradients of the denoiser."""
        return False


class Method:
    """A way to compose.

    Subclasses set what differs from here, and give stages.

    Attributes:
        name: in prompts of the command line and in records.
        summary, source: one line each.
        passes: rows of the denoiser for each half of a step, in words.
        training: what has to be trained for it first, in words.
        regions: whether it takes or needs regions, in words.
        own_prompts: whether a region may have a prompt of its own.
        extra_models: what it needs beside the base model, in words.
        any_lora: whether ordinary LoRA files work.
        refuses: what it cannot do that others can, in words.
        least_concepts, max_concepts: how many there may be in a scene.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    passes: ClassVar[str]
    training: ClassVar[str] = "no"
    regions: ClassVar[str] = "no"
    own_prompts: ClassVar[bool] = False
    extra_models: ClassVar[str] = "no"
    any_lora: ClassVar[bool] = True
    refuses: ClassVar[tuple[str, ...]] = ()
    least_concepts: ClassVar[int] = 1
    max_concepts: ClassVar[int] = MAX_CONCEPTS
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, settings: MethodSettings | dict[str, Any] | None = None):
        own = settings
        if type(own) is not self.Settings:  # another method's are an error, not ignored
            given = settings.model_dump() if isinstance(settings, MethodSettings) else settings
            try:
                own = self.Settings(**(given or {}))
            except ValidationError as error:
                raise MethodError(_readable(self.name, self.Settings, error)) from None
        assert isinstance(own, MethodSettings)
        self.settings: MethodSettings = own

    def takes_gradients(self, placed: int) -> bool:
        """Whether it moves the latents by gradients of the denoiser, with these settings.

        Args:
            placed: number of the concepts if every one has a region, else 0.
        """
        return self.settings.takes_gradients

    @classmethod
    def capabilities(cls) -> dict[str, Any]:
        """What it needs and what it takes; plain data."""
        return {
            "name": cls.name, "training": cls.training, "regions": cls.regions,
            "own_prompts": cls.own_prompts,
            "extra_models": cls.extra_models, "any_lora": cls.any_lora,
            "refuses": list(cls.refuses),
            "calls_per_step": cls.passes, "least_concepts": cls.least_concepts,
            "max_concepts": cls.max_concepts, "summary": cls.summary, "source": cls.source,
            "settings": cls.Settings().model_dump(mode="json"),
        }  # fmt: skip

    @classmethod
    def scene_for(cls, scene: Scene) -> Scene:
        """The scene without what this method does not take: regions (but for those of conditions)
        and their prompts."""
        weighed = weighed_concepts(scene.conditions)
        kept = {name: own for name, own in scene.regions.items() if name in weighed}
        return scene.replace(
            regions=kept if cls.regions == "no" else scene.regions,
            prompts=scene.prompts if cls.own_prompts else {},
        )

    def check(self, composition: Composition) -> None:
        """Raise MethodError if the method cannot draw this scene."""
        found = len(composition.concepts)
        if found < self.least_concepts:
            raise MethodError(
                f"{self.name} needs at least {self.least_concepts} concept in the prompt and "
                f"found {found}; mark one as [trigger noun](lora)"
            )

    def extra_adapters(self, scene: Scene, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """Adapters that the method makes of the scene's own, by name."""
        return {}

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> Sequence[Stage]:
        """The stages that draw one picture."""
        raise NotImplementedError


def _readable(name: str, settings: type[MethodSettings], error: ValidationError) -> str:
    known = ", ".join(settings.model_fields) or "none"
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"])
        unknown = item["type"] == "extra_forbidden"
        parts.append(f"no setting {place!r}; it has: {known}" if unknown else
                     f"setting {place!r}: {item['msg']}")  # fmt: skip
    return f"{name}: " + "; ".join(parts)
