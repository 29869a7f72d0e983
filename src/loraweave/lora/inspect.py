"""What a LoRA file is, without a model: kind, ranks, parts, likely base, trigger words."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, computed_field
from torch import Tensor

from loraweave.errors import LoraError, UnsupportedLoraFormat
from loraweave.lora.adapter import adapter_from_file
from loraweave.lora.alphas import read_configs
from loraweave.lora.base import BaseGuess, describe_width, guess_base, model_width
from loraweave.lora.embeddings import FORMER_LAYERED, LAYERED, is_embedding
from loraweave.lora.file import LoraFile, read_lora
from loraweave.lora.keys import TensorName, kind_of, split_name
from loraweave.lora.numbered import NUMBERED
from loraweave.lora.skeleton import Skeleton, sd1_skeleton

_MAX_WORDS = 20
_EDLORA = re.compile(r"^(unet|text_encoder)\..+(\.lora_|_lora\.)(down|up)\.weight$")


class LoraReport(BaseModel):
    """What can be said about a LoRA file without the weights of a base model.

    Attributes:
        file_name: without folders.
        format: whose names it has ("kohya", "diffusers", "PEFT", "cloneofsimo", "ED-LoRA", ...),
            or which other kind of file it is ("GLoRA", ...).
        algorithm: "LoRA", "LoCon", "LoHa", "LoKr", with DoRA if it has magnitudes, "textual
            inversion"; "" if it is none of them.
        supported: whether `load_adapter` reads this kind of file.
        refused: why it cannot be loaded on `landed_on`; None if it can, or if that is not known.
        base: the base model that it seems to fit, in words.
        landed_on: the base model that its tensors were fitted to; None if no model of its base
            was at hand.
        tensors_total: how many it has.
        tensors_landed: how many of them have a place in that model; None without one.
        dropped: names of the others, which have to be allowed; empty without a model.
        rank, alpha, scale: the one that all modules have, or the commonest; None if there is none.
            A file without alpha has alpha = rank, so scale 1.
        ranks, alphas, scales: all that occur, rising.
        parts: "unet", "text_encoder", ... -> number of modules; "embeddings" -> of tokens.
        triggers: what to write in the prompt: its own tokens, then what the metadata say, the
            likeliest first; often there are none.
        title: from the metadata.
        dtypes: types of its tensors, the most frequent first.
        bytes: size of all its files.
        sha256: of the file.
    """

    file_name: str
    format: str
    algorithm: str
    supported: bool
    refused: str | None
    base: str
    landed_on: str | None
    tensors_total: int
    tensors_landed: int | None
    dropped: list[str]
    rank: int | None
    alpha: float | None
    scale: float | None
    ranks: list[int]
    alphas: list[float]
    scales: list[float]
    parts: dict[str, int]
    triggers: list[str]
    title: str | None
    dtypes: list[str]
    bytes: int
    sha256: str

    # What three of the entries were called at first; scripts may read them.
    @computed_field
    @property
    def kind(self) -> str:
        """`format`."""
        return self.format

    @computed_field
    @property
    def components(self) -> dict[str, int]:
        """`parts`."""
        return self.parts

    @computed_field
    @property
    def trigger_words(self) -> list[str]:
        """`triggers`."""
        return self.triggers


FORMER_NAMES = {"kind", "components", "trigger_words"}


def inspect_lora(
    path: str | Path, allow_pickle: bool = False, models: Skeleton | None = None
) -> LoraReport:
    """Report what a file is. Kinds that cannot be loaded are reported, not refused.

    Args:
        path: file or adapter folder, as for `read_lora`.
        allow_pickle: as for `read_lora`.
        models: a denoiser and a text encoder to fit the tensors to; values are not needed. Without
            them Stable Diffusion 1.x is used for every file but one whose base is not known.

    Raises:
        LoraError: no such file.
        UnsupportedLoraFormat: damaged, truncated, or not a file of tensors.
    """
    file = read_lora(path, allow_pickle)
    guess = _guess(file)
    if models is None and (guess is None or guess.known):
        models = sd1_skeleton()
    return inspect_file(file, models)


def inspect_file(file: LoraFile, models: Skeleton | None) -> LoraReport:
    """`inspect_lora` for a file that has been read; without models nothing is fitted."""
    tensors = file.tensors
    named = {key: name for key in tensors if (name := _name(key))}
    embeddings = [key for key in tensors if is_embedding(key, tensors)]
    strange = [key for key in tensors if key not in named and key not in embeddings]
    modules = {(name.component or _component(name.stem), name.stem) for name in named.values()}
    parts = Counter(component for component, _ in modules)
    if embeddings:
        parts["embeddings"] = len(embeddings)
    fitted = _Fitted(file, models)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    ranks = _ranks(file, named) or fitted.ranks
    alphas, scales = _alphas(file), fitted.scales
    return LoraReport(
        file_name=file.path.name,
        format=_kind(strange) or _format(file.path, [*named, *embeddings]),
        algorithm=_algorithm(tensors, named, bool(embeddings)),
        supported=bool(named or embeddings) and not strange,
        refused=fitted.refused,
        base=_base(file),
        landed_on=fitted.base,
        tensors_total=len(tensors),
        tensors_landed=fitted.landed,
        dropped=fitted.dropped,
        rank=_commonest(ranks),
        alpha=_commonest(alphas),
        scale=_commonest(scales),
        ranks=sorted(ranks),
        alphas=sorted(alphas),
        scales=sorted(scales),
        parts=dict(sorted(parts.items())),
        triggers=list(dict.fromkeys([*fitted.tokens, *trigger_words(file.metadata)])),
        title=file.metadata.get("modelspec.title") or file.metadata.get("ss_output_name"),
        dtypes=[dtype for dtype, _ in dtypes.most_common()],
        bytes=sum(one.stat().st_size for one in file.files),
        sha256=file.sha256,
    )


class _Fitted:
    """What comes of loading a file into a model, with what does not land left out."""

    def __init__(self, file: LoraFile, models: Skeleton | None):
        self.refused: str | None = None
        self.base: str | None = None
        self.landed: int | None = None
        self.dropped: list[str] = []
        self.tokens: list[str] = []
        self.ranks: Counter[int] = Counter()
        self.scales: Counter[float] = Counter()
        if models is None:
            return
        width = model_width(models.unet)
        self.base = describe_width(width) if width else type(models.unet).__name__
        unet, text = models
        try:
            adapter = adapter_from_file("", file, unet=unet, text_encoder=text, allow_partial=True)
        except LoraError as error:
            self.refused, self.landed = str(error), 0
            return
        self.dropped = list(adapter.dropped)
        self.landed = adapter.tensors - len(self.dropped)
        self.tokens = list(adapter.tokens)
        for update in (*adapter.unet.values(), *adapter.text_encoder.values()):
            self.ranks[update.rank] += 1
            self.scales[round(update.scale, 6)] += 1
        if self.dropped:
            try:
                adapter_from_file("", file, unet=unet, text_encoder=text)
            except LoraError as error:
                self.refused = str(error)


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
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        pass  # a hint that cannot be read is no hint; nothing depends on it
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))[:_MAX_WORDS]


def _kind(strange: list[str]) -> str | None:
    """The kind of a file that is no plain LoRA; None if it is one."""
    if not strange:
        return None
    kinds = Counter(kind_of(key) or "unknown" for key in strange)
    return kinds.most_common(1)[0][0]


def _name(key: str) -> TensorName | None:
    """A tensor name taken apart; a numbered one has its number for a module."""
    if match := NUMBERED.match(key):
        role = "down" if match["role"] == "down" else "up"
        return TensorName(match["component"], match["number"], role)
    return split_name(key)


def _format(path: Path, keys: list[str]) -> str:
    """Which program's names a file has."""
    found = Counter("textual inversion" if is_embedding(k, keys) else _names(k) for k in keys)
    if any(key.startswith((LAYERED, FORMER_LAYERED)) for key in keys):
        return "ED-LoRA"
    if path.is_dir():
        return "PEFT"
    # A few names say more than the others, which are the same in several formats.
    telling = ("ED-LoRA", "kohya, LDM names", "diffusers, old names")
    special = next((name for name in telling if name in found), None)
    return special or next((name for name, _ in found.most_common()), "unknown")


def _names(key: str) -> str:
    """Which program's name a LoRA tensor has."""
    if NUMBERED.match(key):
        return "cloneofsimo"
    if key.startswith("lora_"):
        ldm = "_input_blocks_" in key or "_middle_block_" in key or "_output_blocks_" in key
        return "kohya" + (", doubled names" if "_lora_" in key else ", LDM names" if ldm else "")
    if key.startswith("base_model.model."):
        return "PEFT"
    if ".processor." in key:
        return "diffusers, old names"
    if _EDLORA.search(key) and ".self_attn.to_" not in key:  # the latter are diffusers' old ones
        return "ED-LoRA"
    if key.startswith(("unet.", "text_encoder")):
        return "diffusers"
    return "PEFT, without prefix" if ".lora_A." in key or ".lora_B." in key else "diffusers"


def _algorithm(
    tensors: Mapping[str, Tensor], named: Mapping[str, TensorName], embeddings: bool
) -> str:
    roles = {name.role for name in named.values()}
    families = []
    if "down" in roles:
        wide = any(n.role == "down" and max(tensors[k].shape[2:], default=1) > 1
                   for k, n in named.items())  # fmt: skip
        families.append("LoCon" if wide else "LoRA")
    families += ["LoHa"] if any(role.startswith("hada") for role in roles) else []
    families += ["LoKr"] if any(role.startswith("lokr") for role in roles) else []
    families += ["DoRA"] if roles & {"magnitude", "dora_scale"} else []
    families += ["textual inversion"] if embeddings else []
    return " + ".join(families)


def _ranks(file: LoraFile, named: Mapping[str, TensorName]) -> Counter[int]:
    downs = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
    return Counter(
        file.tensors[key].shape[0]
        for key, name in named.items()
        if name.role in downs and file.tensors[key].ndim > 1
    )


def _commonest(found: Counter[Any]) -> Any:
    return found.most_common(1)[0][0] if found else None


def _component(stem: str) -> str:
    text = ("text_model.", "encoder.layers.", "text_model_", "encoder_layers_")
    return "text_encoder" if stem.startswith(text) else "unet"


def _alphas(file: LoraFile) -> Counter[float]:
    found = Counter(
        round(float(tensor), 4)
        for key, tensor in file.tensors.items()
        if key.endswith("alpha") and tensor.numel() == 1
    )
    if not found:
        for config in _configs(file).values():
            alphas = [config.get("lora_alpha", config.get("alpha"))]
            alphas += (config.get("alpha_pattern") or {}).values()
            found.update(float(alpha) for alpha in alphas if isinstance(alpha, int | float))
    return found


def _configs(file: LoraFile) -> dict:
    try:
        return read_configs(file.path.name, file.metadata)
    except UnsupportedLoraFormat:
        return {}


def _guess(file: LoraFile) -> BaseGuess | None:
    return guess_base({key: tuple(tensor.shape) for key, tensor in file.tensors.items()})


def _base(file: LoraFile) -> str:
    guess = _guess(file)
    if guess is not None:
        return guess.text
    for key in ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name"):
        if file.metadata.get(key):
            return f"unknown from its tensors; its metadata says {file.metadata[key]}"
    return "unknown"
