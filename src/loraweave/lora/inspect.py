"""What a LoRA file is, without a model: kind, ranks, parts, likely base, trigger words."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from loraweave.errors import UnsupportedLoraFormat
from loraweave.lora.alphas import read_configs
from loraweave.lora.base import guess_base
from loraweave.lora.file import LoraFile, read_lora
from loraweave.lora.keys import kind_of, split_name

_MAX_WORDS = 20


class LoraReport(BaseModel):
    """What can be read off a LoRA file alone.

    Attributes:
        file_name: without folders.
        kind: which program's names it has ("kohya", "diffusers", "PEFT", ...), or which other
            kind of file it is ("LoKr (LyCORIS)", "textual inversion", ...).
        supported: whether `load_adapter` reads this kind.
        bytes: size of the file.
        sha256: of the file.
        tensors: how many it has.
        dtypes: types of its tensors, the most frequent first.
        ranks: all that occur, rising; empty for other kinds than LoRA.
        alphas: all that occur, rising; empty if the file names none, which means alpha = rank.
        components: "unet", "text_encoder", ... -> number of modules.
        base: the base model it seems to fit, in words.
        trigger_words: from the metadata, the likeliest first; often there are none.
        title: from the metadata.
    """

    file_name: str
    kind: str
    supported: bool
    bytes: int
    sha256: str
    tensors: int
    dtypes: list[str]
    ranks: list[int]
    alphas: list[float]
    components: dict[str, int]
    base: str
    trigger_words: list[str]
    title: str | None


def inspect_lora(path: str | Path, allow_pickle: bool = False) -> LoraReport:
    """Report what a file is. Kinds that cannot be loaded are reported, not refused.

    Args:
        path: file or adapter folder, as for `read_lora`.
        allow_pickle: as for `read_lora`.

    Raises:
        LoraError: no such file.
        UnsupportedLoraFormat: damaged, truncated, or not a file of tensors.
    """
    file = read_lora(path, allow_pickle)
    named = {key: parts for key in file.tensors if (parts := split_name(key))}
    strange = [key for key in file.tensors if key not in named]
    modules = {(parts.component or _component(parts.stem), parts.stem) for parts in named.values()}
    components = Counter(component for component, _ in modules)
    downs = [file.tensors[key] for key, parts in named.items() if parts.role == "down"]
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in file.tensors.values())
    return LoraReport(
        file_name=file.path.name,
        kind=_kind(strange) or _names(next(iter(named))),
        supported=bool(downs) and not strange,
        bytes=file.path.stat().st_size,
        sha256=file.sha256,
        tensors=len(file.tensors),
        dtypes=[dtype for dtype, _ in dtypes.most_common()],
        ranks=sorted({down.shape[0] for down in downs if down.dim() > 1}),
        alphas=_alphas(file),
        components=dict(sorted(components.items())),
        base=_base(file),
        trigger_words=trigger_words(file.metadata),
        title=file.metadata.get("modelspec.title") or file.metadata.get("ss_output_name"),
    )


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Trigger words in a file's metadata: its trigger phrase, folder names, then captions' tags.

    kohya's trainer names folders `<repeats>_<words>` and counts the tags of each. At most 20
    words are given.
    """
    words = [metadata.get("modelspec.trigger_phrase", "")]
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        tags: Counter[str] = Counter()
        for folder, counts in folders.items():
            repeats, _, rest = folder.partition("_")
            words.append(rest if repeats.isdigit() else folder)
            tags.update({str(tag).strip(): int(count) for tag, count in counts.items()})
        words += [tag for tag, _ in tags.most_common()]
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass  # a hint that cannot be read is no hint; nothing depends on it
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))[:_MAX_WORDS]


def _kind(strange: list[str]) -> str | None:
    """The kind of a file that is no plain LoRA; None if it is one."""
    if not strange:
        return None
    kinds = Counter(kind_of(key) or "unknown" for key in strange)
    return kinds.most_common(1)[0][0]


def _names(key: str) -> str:
    """Which program's names a plain LoRA has."""
    if key.startswith("lora_"):
        return "kohya, doubled names" if "_lora_" in key else "kohya"
    if key.startswith("base_model.model."):
        return "PEFT"
    if ".processor." in key:
        return "diffusers, old names"
    if key.startswith(("unet.", "text_encoder")):
        return "diffusers"
    return "PEFT, without prefix" if ".lora_A." in key or ".lora_B." in key else "diffusers"


def _component(stem: str) -> str:
    text = ("text_model.", "encoder.layers.", "text_model_", "encoder_layers_")
    return "text_encoder" if stem.startswith(text) else "unet"


def _alphas(file: LoraFile) -> list[float]:
    found = {
        round(float(tensor), 4)
        for key, tensor in file.tensors.items()
        if key.endswith("alpha") and tensor.numel() == 1
    }
    if not found:
        for config in _configs(file).values():
            alphas = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
            found |= {float(alpha) for alpha in alphas if isinstance(alpha, int | float)}
    return sorted(found)


def _configs(file: LoraFile) -> dict:
    try:
        return read_configs(file.path.name, file.metadata)
    except UnsupportedLoraFormat:
        return {}


def _base(file: LoraFile) -> str:
    guess = guess_base({key: tuple(tensor.shape) for key, tensor in file.tensors.items()})
    if guess is not None:
        return guess.text
    for key in ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name"):
        if file.metadata.get(key):
            return f"unknown from its tensors; its metadata says {file.metadata[key]}"
    return "unknown"
