"""A scene: all that a picture depends on except the base model and the method.

A scene is plain data: it comes from keyword arguments, a dict (`scene_from_dict`) or a YAML or
JSON file (`Scene.from_file`), checks itself when it is made, and goes back to JSON unchanged.
Whatever is wrong with it is a `SceneError`, pydantic's own complaints included.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from loraweave.errors import LoraError, PromptSyntaxError, RegionError, SceneError
from loraweave.prompt import WEIGHT_LIMIT, ParsedPrompt, parse_prompt

MINIATURE = "miniature"  # the base model that ships with the package
SHIPPED = f"{MINIATURE}:"  # before the name of a LoRA that ships
MAX_CONCEPTS = 8
MAX_FILE_BYTES = 1_000_000

# Strict: a YAML `yes` or a quoted "7" is a slip, not a number.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Integer = Annotated[int, Field(strict=True)]
Pixels = Annotated[Integer, Field(gt=0, le=8192, multiple_of=8)]


@dataclass(frozen=True, slots=True)
class Concept:
    """One LoRA and its words. `weight` is the prompt's weight times the LoRA's own."""

    name: str
    trigger: str
    noun: str
    weight: float


@dataclass(frozen=True, slots=True)
class Style:
    """One global LoRA. `weight` is the prompt's weight times the LoRA's own."""

    name: str
    weight: float


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    error: ClassVar[type[SceneError]] = SceneError

    @model_validator(mode="wrap")
    @classmethod
    def _own_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise cls.error(_readable(error, list(cls.model_fields))) from None


class LoraRef(_Data):
    """Where a LoRA is and how strongly it is used; a plain string is a path.

    Without a path the LoRA must already be loaded in the pipeline under its name.
    `weight` is in [-4, 4] and multiplies the weight in the prompt.
    """

    path: Path | None = None
    weight: Number = Field(default=1.0, ge=-WEIGHT_LIMIT, le=WEIGHT_LIMIT)

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, data: Any) -> Any:
        data = {"path": data} if isinstance(data, str | Path) else data
        if isinstance(data, Mapping) and data.get("path") == "":
            raise SceneError("the path is empty; give the LoRA's file, or null if it is loaded")
        return data


class Region(_Data):
    """Where a concept may be, given by the user: a box or an image, exactly one of them.

    `box` is (x0, y0, x1, y1) in fractions of the picture from its top left corner, with
    0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1. `image` is a grey picture, white where the concept
    may be.
    """

    error: ClassVar[type[SceneError]] = RegionError

    box: tuple[Number, Number, Number, Number] | None = None
    image: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.box is None) == (self.image is None):
            found = "neither" if self.box is None else "both"
            raise RegionError(f"a region has either a box or an image, this has {found}; give one")
        if self.box is None:
            return self
        x0, y0, x1, y1 = self.box
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise RegionError(
                f"the box {self.box} is outside the picture or empty; give left, top, right, "
                "bottom as fractions from 0 to 1 (pixels divided by its width and height)"
            )
        return self


class Scene(_Data):
    """A prompt with its concepts and everything else that the picture depends on.

    `width` and `height` are pixels, multiples of 8; None leaves them to the base model.
    `loras` and `regions` go by the names in the prompt. `regions` may only name concepts.

    Raises:
        SceneError: anything is missing, unknown or out of range, or more than 8 concepts.
        PromptSyntaxError: the markup of the prompt or negative prompt is wrong.
        RegionError: a region is not a box in the picture or an image.
    """

    prompt: str
    negative_prompt: str = ""
    width: Pixels | None = None
    height: Pixels | None = None
    seed: Integer = Field(default=0, ge=0, lt=2**63)
    num_inference_steps: Integer = Field(default=50, ge=1, le=1000)
    guidance_scale: Number = Field(default=7.5, ge=0)
    loras: dict[str, LoraRef] = {}
    regions: dict[str, Region] = {}

    @field_validator("loras", "regions", mode="before")
    @classmethod
    def _name_the_culprit(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return value
        model = LoraRef if info.field_name == "loras" else Region
        made = {}
        for name, item in value.items():
            try:
                made[name] = model.model_validate(item)
            except SceneError as error:
                raise type(error)(f"{info.field_name}.{name}: {error}") from None
        return made

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [concept.name for concept in self.parsed.concepts]
        if len(names) > MAX_CONCEPTS:
            raise SceneError(f"{len(names)} concepts in one prompt; at most {MAX_CONCEPTS} work")
        for name in self.regions:
            if name not in names:
                raise SceneError(
                    f"a region for {name!r}, which is no concept of the prompt"
                    f"{_close_match(name, names)}; mark its words: [trigger noun]({name})"
                )
        _ = self.negative_text
        return self

    @property
    def parsed(self) -> ParsedPrompt:
        """The prompt taken apart."""
        # Not cached: pydantic's model_copy would take a stale cache along.
        return parse_prompt(self.prompt)

    @property
    def negative_text(self) -> str:
        """The negative prompt as the text encoder gets it, escapes resolved.

        The same markup is an error in it as in the prompt, and so are concepts and styles.
        """
        if not self.negative_prompt.strip():
            return ""
        try:
            parsed = parse_prompt(self.negative_prompt)
        except PromptSyntaxError as error:
            named = PromptSyntaxError(f"in the negative prompt: {error}")
            named.prompt, named.position = error.prompt, error.position
            raise named from None
        for words in (*parsed.concepts, *parsed.styles):
            raise SceneError(f"the negative prompt names the LoRA {words.name!r}; use plain words")
        return parsed.text

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts in the order of the prompt."""
        return tuple(
            Concept(c.name, c.trigger, c.noun, c.weight * self._own_weight(c.name))
            for c in self.parsed.concepts
        )

    @property
    def styles(self) -> tuple[Style, ...]:
        """The global LoRAs in the order of the prompt."""
        return tuple(Style(s.name, s.weight * self._own_weight(s.name)) for s in self.parsed.styles)

    def _own_weight(self, name: str) -> float:
        return self.loras[name].weight if name in self.loras else 1.0

    def check_loras(self, available: Iterable[str] = ()) -> None:
        """Check that every LoRA of the prompt is there and every LoRA given is used.

        Args:
            available: names already loaded in the pipeline; the scene's own files count too.

        Raises:
            LoraError: the prompt names a LoRA that is nowhere, or never one that `loras` gives.
        """
        there = {*available, *(name for name, lora in self.loras.items() if lora.path)}
        used = [words.name for words in (*self.parsed.concepts, *self.parsed.styles)]
        for name in used:
            if name not in there:
                raise LoraError(
                    f"the prompt uses the LoRA {name!r}, which is not loaded"
                    f"{_close_match(name, there)}; loaded: {', '.join(sorted(there)) or 'none'}. "
                    f"Give its file in the scene, loras: {{{name}: path/to/{name}.safetensors}}, "
                    "or load it into the pipeline under this name"
                )
        for name in self.loras:
            if name not in used:
                raise LoraError(
                    f"the LoRA {name!r} is given but the prompt never uses it"
                    f"{_close_match(name, used)}; mark its words, [trigger noun]({name}), "
                    f"write <lora:{name}:1> to use it as a style, or leave it out"
                )

    def replace(self, **changes: Any) -> Self:
        """A scene with some fields changed, checked again (`model_copy` would not check)."""
        return type(self)(**{**dict(self), **changes})

    def to_json(self) -> str:
        """All fields as JSON; `scene_from_dict(json.loads(text))` is an equal scene."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a .yaml, .yml or .json file of at most 1 MB.

        Paths of LoRAs and region images are relative to the file's folder.

        Raises:
            SceneError: the file cannot be read, or is no scene.
        """
        path = Path(path)
        data = _read(path)
        try:
            scene = cls.model_validate(data)
        except SceneError as error:
            error.args = (f"{path}: {error}",)
            raise
        return scene.replace(
            loras={name: _below(path.parent, lora, "path") for name, lora in scene.loras.items()},
            regions={
                n: _below(path.parent, region, "image") for n, region in scene.regions.items()
            },
        )


def scene_from_dict(data: Mapping[str, Any]) -> Scene:
    """A scene from plain data, such as parsed JSON.

    Raises:
        SceneError: as `Scene`, for unknown keys too.
    """
    return Scene.model_validate(data)


def _read(path: Path) -> Any:
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise SceneError(f"{path} is no scene file; name it .yaml, .yml or .json")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SceneError(f"cannot read the scene file {path}: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise SceneError(f"{path} is larger than {MAX_FILE_BYTES} bytes, so no scene; check it")
    load = json.loads if path.suffix.lower() == ".json" else yaml.safe_load
    try:
        return load(raw.decode("utf-8-sig"))
    except Exception as error:  # safe_load lets KeyError, AttributeError, ... out for bad values
        raise SceneError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error


def _below(folder: Path, model: BaseModel, field: str) -> BaseModel:
    path = getattr(model, field)
    if path is None or str(path).startswith(SHIPPED):
        return model
    return model.model_copy(update={field: folder / path})


def _readable(error: ValidationError, keys: list[str]) -> str:
    lines = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = _close_match(place, keys)
            lines.append(f"unknown key {place!r}{close}; known: {', '.join(keys)}")
        elif item["type"] == "missing":
            lines.append(f"{place} is missing")
        else:
            lines.append(": ".join(filter(None, (place, item["msg"]))))
    more = [f"and {len(lines) - 3} more"] if len(lines) > 3 else []
    return "; ".join(lines[:3] + more)


def _close_match(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
