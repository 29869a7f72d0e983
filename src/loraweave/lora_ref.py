"""How a scene speaks of one LoRA: where its file is, how strongly, where and when it acts."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from loraweave.errors import SceneError
from loraweave.messages import readable
from loraweave.prompt import WEIGHT_LIMIT

EVERYWHERE, BACKGROUND = "everywhere", "background"
PLAIN = "none"  # instead of a file: a concept of plain words

# Strict: a YAML `yes` or a quoted "7" is a slip, not a number.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Weight = Annotated[Number, Field(ge=-WEIGHT_LIMIT, le=WEIGHT_LIMIT)]
Fraction = Annotated[Number, Field(ge=0, le=1)]


class Data(BaseModel):
    """Plain data whose complaints are `error`s in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    error: ClassVar[type[SceneError]] = SceneError

    @model_validator(mode="wrap")
    @classmethod
    def _own_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise cls.error(readable(error, list(cls.model_fields), _TAGS)) from None


def _tag(value: Any) -> str:
    return "parts" if isinstance(value, Mapping | BaseModel) else "number"


_TAGS = frozenset({"parts", "number"})

PerBlock = dict[str, Weight | list[Weight]]
"""`block_1`: a number for all its layers, or a list for its attentions in order."""


class BlockWeights(Data):
    """Weights of the U-Net's blocks, as for `set_adapters` in diffusers; 1 where none is given.

    A number holds for all layers of the block, convolutions too (diffusers leaves those at 1).
    """

    down: Weight | PerBlock = 1.0
    mid: Weight = 1.0
    up: Weight | PerBlock = 1.0

    @model_validator(mode="after")
    def _names(self) -> Self:
        for part in (self.down, self.up):
            for name in part if isinstance(part, dict) else ():
                if not re.fullmatch(r"block_\d+", name):
                    raise SceneError(f"{name!r} is no block; write block_0, block_1, ...")
        return self


class ComponentWeights(Data):
    """A LoRA's weights by part of the model; a part left out has 1."""

    unet: Annotated[
        Annotated[Weight, Tag("number")] | Annotated[BlockWeights, Tag("parts")],
        Discriminator(_tag),
    ] = 1.0
    text_encoder: Weight = 1.0


OwnWeight = Annotated[
    Annotated[Weight, Tag("number")] | Annotated[ComponentWeights, Tag("parts")],
    Discriminator(_tag),
]


class LoraRef(Data):
    """Where a LoRA is and how it acts; a plain string is a path.

    Without a path the LoRA must already be loaded in the pipeline under its name; the path `none`
    is no LoRA at all, for a concept that the base model knows and that has a region.
    `weight` multiplies the weight in the prompt: a number in [-4, 4] for all of the LoRA, or
    `{unet: 0.8, text_encoder: 0.5}`, where `unet` may be `{down: 0.3, mid: 1, up: {block_1: [0.1,
    0.2]}}`, as for `set_adapters` in diffusers.

    `on` says in whose pass it acts: `everywhere`, `background` (what belongs to no concept), or
    the name of a concept. Without it a LoRA with words in the prompt is a concept of its own, and
    a style acts everywhere.

    `start` and `stop` are fractions of the run between which it acts on the denoiser; `schedule`
    is a list of (fraction, factor) instead, with straight lines between. The text is encoded
    once, with the text encoder's part as `weight` has it.
    """

    path: Path | None = None
    weight: OwnWeight = 1.0
    on: Annotated[str, Field(min_length=1)] | None = None
    start: Fraction = 0.0
    stop: Fraction = 1.0
    schedule: tuple[tuple[Fraction, Weight], ...] | None = Field(default=None, min_length=1)

    @property
    def unet_weight(self) -> float:
        """The weight of the U-Net's part; 1 if its blocks have weights of their own."""
        own = self.weight.unet if isinstance(self.weight, ComponentWeights) else self.weight
        return 1.0 if isinstance(own, BlockWeights) else own

    @property
    def blocks(self) -> BlockWeights | None:
        """The weights of the U-Net's blocks, if they have any."""
        own = self.weight.unet if isinstance(self.weight, ComponentWeights) else None
        return own if isinstance(own, BlockWeights) else None

    @property
    def text_encoder_weight(self) -> float:
        """The weight of the text encoder's part."""
        own = self.weight
        return own.text_encoder if isinstance(own, ComponentWeights) else own

    @property
    def scheduled(self) -> bool:
        """Whether its strength depends on the time."""
        return self.schedule is not None or (self.start, self.stop) != (0.0, 1.0)

    def strength(self, fraction: float) -> float:
        """The factor of its weight when `fraction` of the run, in [0, 1), is over."""
        if self.schedule is None:
            return float(self.start <= fraction < self.stop or fraction >= 1 == self.stop)
        before = [point for point in self.schedule if point[0] <= fraction]
        after = [point for point in self.schedule if point[0] > fraction]
        if not before or not after:
            return (before or after)[-1 if before else 0][1]
        (x0, y0), (x1, y1) = before[-1], after[0]
        return y0 + (y1 - y0) * (fraction - x0) / (x1 - x0)

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.start >= self.stop:
            raise SceneError(f"start {self.start} is not before stop {self.stop}")
        if self.schedule is None:
            return self
        if (self.start, self.stop) != (0.0, 1.0):
            raise SceneError("give either start and stop or a schedule, not both")
        times = [time for time, _ in self.schedule]
        if sorted(set(times)) != times:
            raise SceneError(f"the fractions of the schedule, {times}, do not rise")
        return self

    @field_validator("weight", mode="before")
    @classmethod
    def _by_component(cls, value: Any) -> Any:
        try:
            return ComponentWeights(**value) if isinstance(value, Mapping) else value
        except (SceneError, TypeError) as error:  # TypeError: a key that is no text
            raise SceneError(f"weight: {error}") from None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        plain = {"type": "string", "minLength": 1, "description": "The path alone."}
        return {"anyOf": [plain, handler(core_schema)]}

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, data: Any) -> Any:
        data = {"path": data} if isinstance(data, str | Path) else data
        if isinstance(data, Mapping) and data.get("path") == "":
            raise SceneError("the path is empty; give the LoRA's file, or null if it is loaded")
        return data
