"""Options that several commands have, and how their texts are read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data_file import read_yaml
from ..errors import LoraError, LoraWeaveError, MethodError, SceneError
from ..precision import DType
from ..scene import ComponentWeights, LoraRef

PROMPT = r"Marks each concept: 'a \[sks cat](blackcat) and a \[zwx dog](golddog:0.8)'."
Prompt = Annotated[
    str | None,
    typer.Argument(help=f"{PROMPT} Or a scene file (.yaml, .json).", show_default=False),
]
OwnPrompt = Annotated[
    str | None, typer.Option("--prompt", help="Replaces the prompt of a scene file or picture.")
]
SceneFile = Annotated[
    Path | None, typer.Option("--scene", help="A scene (.yaml, .json) instead of PROMPT.")
]
SceneSet = Annotated[
    list[str] | None,
    typer.Option(
        "--scene-set", metavar="KEY=VALUE",
        help="Any field of the scene: loras.cat.weight=0.5; repeatable.",
    ),
]  # fmt: skip
Picture = Annotated[
    Path | None,
    typer.Option("--from", help="Draw again what this PNG's record says; options given override."),
]
Loras = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="NAME=PATH[:UNET[:TE]]", help="A LoRA's file and weights; repeatable."
    ),
]
LoraDir = Annotated[
    Path | None,
    typer.Option(
        "--lora-dir", envvar="LORAWEAVE_LORA_DIR",
        help="Folder in which LoRAs are found by their names.",
    ),
]  # fmt: skip
Base = Annotated[
    str | None,
    typer.Option(help="A diffusers folder or .safetensors checkpoint.", show_default="miniature"),
]
LoraBase = Annotated[
    str | None,
    typer.Option(
        "--base", help="The base it is for: sd15, miniature, or a diffusers folder.",
        show_default="told from its shapes",
    ),
]  # fmt: skip
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Read .pt, .pth, .bin and .ckpt files too, as plain weights."
    ),
]
AllowPartial = Annotated[
    bool,
    typer.Option("--allow-partial", help="Use a LoRA without those tensors that have no place."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeatable."),
]
Negative = Annotated[str | None, typer.Option(help="What to steer away from.")]
NegativeFor = Annotated[
    list[str] | None,
    typer.Option(
        "--negative-for", metavar="NAME=WORDS",
        help="What one concept's pass steers away from too; repeatable.",
    ),
]  # fmt: skip
Regions = Annotated[
    list[str] | None,
    typer.Option(
        "--region", metavar="[NAME=]LEFT,TOP,RIGHT,BOTTOM",
        help="Where a concept is, in fractions of the picture or pixels, or NAME=MASK.png; "
        "repeatable. Without names in the order of the prompt.",
    ),
]  # fmt: skip
AutoRegions = Annotated[
    bool,
    typer.Option(
        "--auto-regions", help="Lay out boxes from the attention of the base model's first steps."
    ),
]
RegionPrompts = Annotated[
    list[str] | None,
    typer.Option(
        "--region-prompt", metavar="NAME=PROMPT",
        help=r"What is read inside a concept's region: 'cat=a \[sks cat](cat) with a hat', or "
        "background=...; repeatable.",
    ),
]  # fmt: skip
PassBatch = Annotated[
    int | None,
    typer.Option(
        min=1, help="Most rows of one denoiser call; fewer need less memory.",
        show_default="all at once",
    ),
]  # fmt: skip
Checkpointing = Annotated[
    bool,
    typer.Option("--checkpointing", help="Gradients in less memory, computing more."),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Such as 6GB: gives up speed until it fits, and says what it chose.",
        show_default="no limit",
    ),
]  # fmt: skip
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", show_default="50")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="dpm++_2m, unipc, euler, euler_a, ... or as A1111 calls it: 'DPM++ 2M Karras'.",
        show_default="the model's own",
    ),
]
Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free guidance.", show_default="7.5")
]
Width = Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's own")]
Height = Annotated[int | None, typer.Option(help="Pixels.", show_default="the model's own")]
Precision = Annotated[DType, typer.Option("--dtype", help="Arithmetic of the model.")]
OwnPrecision = Annotated[
    DType | None,
    typer.Option("--dtype", help="Arithmetic.", show_default="float32, or the record's"),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...", show_default="cuda if there")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and notes only.")]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MOST_SEEDS = 1000


def read_loras(texts: Sequence[str] | None) -> dict[str, LoraRef]:
    r"""LoRAs from `name=path`, `name=path:weight` or `name=path:unet:te`.

    The path may be `C:\x.safetensors`; `unet` and `te` are the weights of the two parts.

    Raises:
        LoraError: not of this form, or a name given twice.
        SceneError: a weight out of range.
    """
    loras: dict[str, LoraRef] = {}
    for text in texts or ():
        name, equals, rest = (part.strip() for part in text.partition("="))
        if not (name and equals and rest):
            raise LoraError(f"--lora {text!r} is not of the form name=path or name=path:weight")
        if name in loras:
            raise LoraError(f"--lora gives {name!r} twice; leave one out")
        try:
            loras[name] = read_ref(rest)
        except LoraError as error:
            raise LoraError(f"--lora {text!r}: {error}") from None
    return loras


def read_ref(text: str) -> LoraRef:
    r"""A LoRA from `path`, `path:weight` or `path:unet:te`; `C:\x.safetensors` is a path.

    Raises:
        LoraError: the weight is no number.
        SceneError: it is out of range.
    """
    path, colon, tail = text.rpartition(":")
    if colon and path and _NUMBER.fullmatch(tail):
        shorter, colon, unet = path.rpartition(":")
        if colon and shorter and _NUMBER.fullmatch(unet):
            weights = ComponentWeights(unet=float(unet), text_encoder=float(tail))
            return LoraRef(path=Path(shorter), weight=weights)
        return LoraRef(path=Path(path), weight=float(tail))
    if Path(path).suffix and not re.search(r"[\\/.]", tail):
        raise LoraError(f"the weight {tail!r} is not a number")
    return LoraRef(path=Path(text))


def read_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Settings from `key=value`, each value a YAML scalar or list: `true`, `0.4`, `[0, 10]`.

    Raises:
        MethodError: not of this form, not YAML, or a key given twice.
    """
    return {key: _yaml(text, "--set", MethodError)
            for key, text in _pairs(texts, "--set", MethodError).items()}  # fmt: skip


def read_scene_fields(
    texts: Sequence[str] | None, negatives: Sequence[str] | None,
    regions: Sequence[str] | None = None, prompts: Sequence[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Changes of a scene by dotted keys, from `--scene-set`, `--negative-for`, `--region` and
    `--region-prompt`.

    Raises:
        SceneError: not of the form key=value, not YAML, or a key given twice.
    """
    fields = {key: _yaml(text, "--scene-set", SceneError)
              for key, text in _pairs(texts, "--scene-set", SceneError).items()}  # fmt: skip
    own = {
        "--negative-for": _words_by_name("negative_prompts", negatives, "--negative-for"),
        "--region-prompt": _words_by_name("prompts", prompts, "--region-prompt"),
        "--region": _places(regions or ()),
    }
    for option, given in own.items():
        if twice := fields.keys() & given.keys():
            raise SceneError(f"{option} and --scene-set both give {min(twice)!r}; leave one out")
        fields |= given
    return fields


def _words_by_name(field: str, texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """The words of `name=words`, by the key of the scene's field."""
    pairs = _pairs(texts, option, SceneError)
    return {f"{field}.{name}": text.partition("=")[2].strip() for name, text in pairs.items()}


def _places(texts: Sequence[str]) -> dict[str, Any]:
    """Regions by their key in the scene; without names a list under the key of all."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for text in texts:
        name, equals, place = (part.strip() for part in text.rpartition("="))
        by_name.setdefault(f"regions.{name}" if equals else "regions", []).append(_region(place))
    if "regions" in by_name and len(by_name) > 1:
        raise SceneError(
            f"--region {texts[0]!r}: some regions have a name and some have none; give all of "
            "them one, NAME=LEFT,TOP,RIGHT,BOTTOM"
        )
    return by_name


def _region(place: str) -> dict[str, Any]:
    """A box if it is four numbers, else the name of a mask picture."""
    sides = [side.strip() for side in place.split(",")]
    box = len(sides) == 4 and all(map(_NUMBER.fullmatch, sides))
    return {"box": [float(side) for side in sides]} if box else {"image": place}


def _pairs(texts: Sequence[str] | None, option: str, error: type[LoraWeaveError]) -> dict[str, str]:
    """The texts, each of the form key=value, by key."""
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, _ = text.partition("=")
        key = key.strip()
        if not (key and equals):
            raise error(f"{option} {text!r} is not of the form key=value")
        if key in found:
            raise error(f"{option} gives {key!r} twice; leave one out")
        found[key] = text
    return found


def _yaml(text: str, option: str, error: type[LoraWeaveError]) -> Any:
    """The value of a `key=value`."""
    try:
        return read_yaml(text.partition("=")[2])
    except ValueError as fault:
        reason = str(fault).splitlines()[0]
        raise error(f"{option} {text!r}: the value is not YAML ({reason})") from None


def read_seeds(text: str) -> list[int]:
    """Seeds from `0,1,2`, `0-3` or `0-3,7`, in this order.

    Raises:
        SceneError: not of this form, a seed twice, or more than 1000 seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part, re.ASCII)
        if not match:
            raise SceneError(f"seeds {text!r}: {part!r} is no seed; write 0,1,2 or 0-3")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + _MOST_SEEDS - len(seeds):
            raise SceneError(f"seeds {text!r}: {part!r} is no range of at most {_MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise SceneError(f"seeds {text!r}: the same seed twice gives the same picture twice")
    return seeds


def read_methods(text: str) -> list[str]:
    """Method names from `clora,merge`.

    Raises:
        MethodError: none, or one twice; unknown ones are found when the method is made.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise MethodError(f"methods {text!r}: give different names, such as clora,merge")
    return names
