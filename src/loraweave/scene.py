"""A scene: all that a picture depends on except the base model and the method.

A scene is plain data: it comes from keyword arguments, a dict (`scene_from_dict`) or a YAML or
JSON file (`Scene.from_file`), checks itself when it is made, and goes back to JSON unchanged.
Whatever is wrong with it is a `SceneError`, pydantic's own complaints included.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from loraweave.condition import Condition, check_concepts, made_conditions
from loraweave.data_file import MAX_FILE_BYTES, read_data
from loraweave.errors import LoraError, PromptSyntaxError, SceneError
from loraweave.lora_ref import (
    BACKGROUND,
    EVERYWHERE,
    PLAIN,
    BlockWeights,
    ComponentWeights,
    Data,
    LoraRef,
    Number,
)
from loraweave.messages import close_match
from loraweave.prompt import (
    ConceptWords,
    ParsedPrompt,
    PassPrompt,
    StyleWords,
    full_prompt,
    parse_prompt,
)
from loraweave.region import Region, Regions, in_order, read_regions, several
from loraweave.schedulers import scheduler_name

__all__ = [
    "BACKGROUND", "EVERYWHERE", "MAX_FILE_BYTES", "MINIATURE", "PLAIN", "SHIPPED", "BlockWeights",
    "ComponentWeights", "Concept", "Condition", "LoraRef", "Region", "Scene", "Style",
    "scene_from_dict", "scene_schema",
]  # fmt: skip

MINIATURE = "miniature"  # the base model that ships with the package
SHIPPED = f"{MINIATURE}:"  # before the name of a LoRA that ships
MAX_CONCEPTS = 8
NOTHING = PassPrompt("", {}, {})  # the text of an empty negative prompt

Integer = Annotated[int, Field(strict=True)]
Pixels = Annotated[Integer, Field(gt=0, le=8192, multiple_of=8)]


@dataclass(frozen=True, slots=True)
class Concept:
    """One LoRA and its words.

    `weight` is that of the U-Net's part and `text_encoder_weight` that of the text encoder's;
    each is the prompt's weight times the LoRA's own.
    """

    name: str
    trigger: str
    noun: str
    weight: float
    text_encoder_weight: float


@dataclass(frozen=True, slots=True)
class Style:
    """A LoRA that is no concept of its own; weights as in `Concept`.

    `on` is where it acts: `everywhere`, `background` or the name of a concept. Its words in the
    prompt, if it has any, belong there, too.
    """

    name: str
    weight: float
    text_encoder_weight: float
    on: str = EVERYWHERE


class Scene(Data):
    """A prompt with its concepts and everything else that the picture depends on.

    `width` and `height` are pixels, multiples of 8; None leaves them to the base model.
    `loras`, `regions`, `prompts` and `negative_prompts` go by the names in the prompt; all but the
    first may only name concepts. `negative_prompts` are what one concept's pass steers away from,
    in addition to `negative_prompt`, which holds for all passes.

    A concept may have several regions; a list of regions instead of names has one for each
    concept, in the order of the prompt. `prompts` are what is read inside a concept's regions, by
    methods with a text for each region: `a [sks cat](cat) with a red hat`; `background` is what is
    read outside of all regions.
    `scheduler` is a name of `loraweave.schedulers`, or None for the base model's own.
    `conditions` are pictures that the scene is drawn after; several act together.

    Raises:
        SceneError: anything is missing, unknown or out of range, or more than 8 concepts.
        PromptSyntaxError: the markup of the prompt or a negative prompt is wrong.
        RegionError: a region is not a box in the picture or an image, or nobody's.
    """

    prompt: str
    negative_prompt: str = ""
    negative_prompts: dict[str, str] = Field(default_factory=dict)
    width: Pixels | None = None
    height: Pixels | None = None
    seed: Integer = Field(default=0, ge=0, lt=2**63)
    num_inference_steps: Integer = Field(default=50, ge=1, le=1000)
    guidance_scale: Number = Field(default=7.5, ge=0)
    scheduler: str | None = None
    loras: dict[str, LoraRef] = Field(default_factory=dict)
    regions: dict[str, Regions] = Field(default_factory=dict)  # a list too, see above
    prompts: dict[str, str] = Field(default_factory=dict)
    conditions: list[Condition] = Field(default_factory=list)

    @field_validator("loras", "regions", mode="before")
    @classmethod
    def _name_the_culprit(cls, value: Any, info: ValidationInfo) -> Any:
        of_loras = info.field_name == "loras"
        if isinstance(value, list | tuple) and not of_loras and "prompt" in info.data:
            loras = info.data.get("loras", {})
            words = parse_prompt(info.data["prompt"]).concepts
            value = in_order(value, [c.name for c in words if _place(loras, c.name) is None])
        if not isinstance(value, Mapping):
            return value
        read = LoraRef.model_validate if of_loras else read_regions
        made = {}
        for name, item in value.items():
            try:
                made[name] = read(item)
            except SceneError as error:
                raise type(error)(f"{info.field_name}.{name}: {error}") from None
        return made

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, value: str | None) -> str | None:
        return None if value is None else scheduler_name(value)

    @field_validator("conditions", mode="before")
    @classmethod
    def _number_the_culprit(cls, value: Any) -> Any:
        return made_conditions(value)

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        check_concepts(self.conditions, [words.name for words in self._own_words])
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [words.name for words in self._own_words]
        if taken := {BACKGROUND, EVERYWHERE}.intersection(names):
            raise SceneError(
                f"a concept cannot be called {min(taken)!r}, which is the name of a place; write "
                f"another name in the parentheses, and its file under that name"
            )
        self._check_places(names)
        if len(names) > MAX_CONCEPTS:
            raise SceneError(f"{len(names)} concepts in one prompt; at most {MAX_CONCEPTS} work")
        named = {
            "region": self.regions, "negative prompt": self.negative_prompts,
            "prompt of its own": self.prompts.keys() - {BACKGROUND},
        }  # fmt: skip
        for kind, given in named.items():
            for name in given:
                if name not in names:
                    raise SceneError(
                        f"a {kind} for {name!r}, which is no concept of the prompt"
                        f"{close_match(name, names)}; mark its words: [trigger noun]({name})"
                    )
        _plain_prompt(self.negative_prompt, "in the negative prompt")
        for name, text in self.negative_prompts.items():
            _plain_prompt(text, f"in the negative prompt of {name!r}")
        for name in self.prompts:
            self._check_own_prompt(name)
        return self

    def _check_own_prompt(self, name: str) -> None:
        """It marks its concept once, and besides what is on it, nothing else."""
        parsed = self.own_prompt(name)
        assert parsed is not None
        found = [words.name for words in parsed.concepts]
        if name != BACKGROUND and found.count(name) != 1:
            raise SceneError(
                f"prompts.{name} has {found.count(name)} places for {name!r}, one is needed; mark "
                f"its words there too: a [trigger noun]({name}) with ..."
            )
        for other in (*parsed.concepts, *parsed.styles):
            if other.name != name and self._place(other.name) != name:
                raise SceneError(
                    f"prompts.{name} names the LoRA {other.name!r}, which is not on {name!r}; use "
                    f"plain words, or loras: {{{other.name}: {{on: {name}}}}}"
                )
            if (other.weight, other.text_encoder_weight) != (1.0, None):
                raise SceneError(
                    f"prompts.{name} gives {other.name!r} a weight; weights belong into the prompt"
                )

    def own_prompt(self, name: str) -> ParsedPrompt | None:
        """What is read inside a concept's regions (or, `background`, outside of all), if given.

        Raises:
            PromptSyntaxError: its markup is wrong.
        """
        if name not in self.prompts:
            return None
        try:
            return parse_prompt(self.prompts[name])
        except PromptSyntaxError as error:
            raise _located(error, f"in the prompt of {name!r}") from None

    def _check_places(self, names: list[str]) -> None:
        """`on` names a concept, the background or everything."""
        places = [*names, BACKGROUND, EVERYWHERE]
        for name, lora in self.loras.items():
            if lora.on is not None and lora.on not in places:
                raise SceneError(
                    f"loras.{name}.on is {lora.on!r}{close_match(lora.on, places)}; it may be "
                    f"{', '.join(places)}"
                )

    @property
    def parsed(self) -> ParsedPrompt:
        """The prompt taken apart."""
        # Not cached: pydantic's model_copy would take a stale cache along.
        return parse_prompt(self.prompt)

    @property
    def negative_text(self) -> str:
        """The negative prompt as the text encoder gets it, without markup."""
        return self.negative().text

    def negative(self, *concepts: str) -> PassPrompt:
        """What a pass steers away from: the scene's words, then those of the pass's concepts.

        Emphasis may be in it; concepts and styles may not.
        """
        own = [self.negative_prompts.get(name, "") for name in dict.fromkeys(concepts)]
        parts = [part.strip() for part in (self.negative_prompt, *own) if part.strip()]
        # Each part was checked on its own, so joining them cannot make a new bracket.
        return _plain_prompt(", ".join(parts), "in the negative prompt")

    @property
    def _own_words(self) -> list[ConceptWords]:
        """The words of LoRAs that are concepts, not something on one."""
        return [words for words in self.parsed.concepts if self._place(words.name) is None]

    def _place(self, name: str) -> str | None:
        return _place(self.loras, name)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts in the order of the prompt."""
        return tuple(Concept(c.name, c.trigger, c.noun, *self._weights(c)) for c in self._own_words)

    @property
    def styles(self) -> tuple[Style, ...]:
        """All other LoRAs: those with words in the order of the prompt, then `<lora:...>`."""
        attached = [words for words in self.parsed.concepts if self._place(words.name)]
        return tuple(
            Style(words.name, *self._weights(words), self._place(words.name) or EVERYWHERE)
            for words in (*attached, *self.parsed.styles)
        )

    def acting(self, concepts: Collection[str], background: bool) -> list[Style]:
        """The LoRAs beside the concepts' own that act in a pass with these concepts.

        Args:
            concepts: names; none for the base model's pass.
            background: whether the pass draws what belongs to no concept.
        """
        places = {EVERYWHERE, *concepts, *([BACKGROUND] if background else [])}
        return [style for style in self.styles if style.on in places]

    def worn(self, concept: str) -> set[str]:
        """The LoRAs that are on a concept."""
        return {style.name for style in self.styles if style.on == concept}

    def triggered(self, concepts: Collection[str], background: bool) -> set[str]:
        """The LoRAs whose triggers are in the text of a pass with these concepts."""
        return {*concepts, *(style.name for style in self.acting(concepts, background))}

    def _weights(self, words: ConceptWords | StyleWords) -> tuple[float, float]:
        """The weights of the U-Net's and of the text encoder's part."""
        own = self.loras.get(words.name, LoraRef())
        text = words.weight if words.text_encoder_weight is None else words.text_encoder_weight
        return words.weight * own.unet_weight, text * own.text_encoder_weight

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
                    f"{close_match(name, there)}; loaded: {', '.join(sorted(there)) or 'none'}. "
                    f"Give its file in the scene, loras: {{{name}: path/to/{name}.safetensors}}, "
                    "or load it into the pipeline under this name"
                )
        for name in self.loras:
            if name not in used:
                raise LoraError(
                    f"the LoRA {name!r} is given but the prompt never uses it"
                    f"{close_match(name, used)}; mark its words, [trigger noun]({name}), "
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

        Paths of LoRAs, adapters and pictures are relative to the file's folder.

        Raises:
            SceneError: the file cannot be read, or is no scene.
        """
        path = Path(path)
        data = read_data(path)
        try:
            scene = cls.model_validate(data)
        except SceneError as error:
            error.args = (f"{path}: {error}",)
            raise
        return scene.replace(
            loras={name: _below(path.parent, lora, "path") for name, lora in scene.loras.items()},
            regions={
                n: tuple(_below(path.parent, region, "image") for region in several(regions))
                for n, regions in scene.regions.items()
            },
            conditions=[
                _below(path.parent, _below(path.parent, one, "image"), "adapter")
                for one in scene.conditions
            ],
        )


def scene_from_dict(data: Mapping[str, Any]) -> Scene:
    """A scene from plain data, such as parsed JSON.

    Raises:
        SceneError: as `Scene`, for unknown keys too.
    """
    return Scene.model_validate(data)


def scene_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of scene files."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **Scene.model_json_schema()}


def _plain_prompt(source: str, where: str) -> PassPrompt:
    """A prompt that may have emphasis but names no LoRA; empty if the source is."""
    if not source.strip():
        return NOTHING
    try:
        parsed = parse_prompt(source)
    except PromptSyntaxError as error:
        raise _located(error, where) from None
    for words in (*parsed.concepts, *parsed.styles):
        what = where.removeprefix("in ")
        raise SceneError(f"{what} names the LoRA {words.name!r}; use plain words")
    return full_prompt(parsed)


def _located(error: PromptSyntaxError, where: str) -> PromptSyntaxError:
    named = PromptSyntaxError(f"{where}: {error}")
    named.prompt, named.position = error.prompt, error.position
    return named


def _place(loras: Mapping[str, LoraRef], name: str) -> str | None:
    return loras[name].on if name in loras else None


def _below(folder: Path, model: Data, field: str) -> Data:
    path = getattr(model, field)
    if path is None or str(path) == PLAIN or str(path).startswith(SHIPPED):
        return model
    return model.model_copy(update={field: folder / path.expanduser()})
