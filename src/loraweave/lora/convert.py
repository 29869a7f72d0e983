"""Writing any LoRA that can be read as a PEFT, diffusers or kohya file.

LoRA, LoCon and DoRA keep their values. LoHa and LoKr have no place in those formats: they become a
LoRA of the rank that they need, exactly, or of a smaller one by singular values, and then the error
is measured and reported.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel
from safetensors.torch import save
from torch import Tensor

from loraweave.errors import LoraError
from loraweave.files import temporary_beside, write_atomically
from loraweave.lora.adapter import Adapter
from loraweave.lora.alphas import HEADER_CONFIG
from loraweave.lora.embeddings import BUNDLED, LAYERED
from loraweave.lora.file import ADAPTER_CONFIG
from loraweave.lora.save import with_metadata
from loraweave.lora.updates import Difference, Dora, LowRank, Update, compressed, finite

Target = Literal["peft", "diffusers", "kohya"]
Part = dict[str, Update]

_TRIGGERS = {"loraweave.trigger", "modelspec.trigger_phrase"}
_BUNDLED = re.compile(re.escape(BUNDLED).replace(r"\{\}", "(<.+>)"))
_OWN_TEXTS = {HEADER_CONFIG, ADAPTER_CONFIG, "format"}


class Conversion(BaseModel):
    """What `convert_lora` wrote.

    Attributes:
        path: a file, or a folder for PEFT.
        format: "peft", "diffusers" or "kohya".
        files: all files written.
        modules: how many updates.
        approximated: how many of them were changed to another rank or algorithm.
        ranks: all that the new file has, rising.
        relative_error: ||old - new|| / ||old|| over all updates together (Frobenius); 0 if none
            was approximated.
        largest_error: the same of the worst single update.
        tokens: embeddings that went along.
        dropped: tensors of the old file that are not in the new one.
    """

    path: Path
    format: Target
    files: list[Path]
    modules: int
    approximated: int
    ranks: list[int]
    relative_error: float
    largest_error: float
    tokens: list[str]
    dropped: list[str]


def convert_lora(
    adapter: Adapter,
    path: str | Path,
    format: Target,
    *,
    rank: int | None = None,
    tokens: Mapping[str, str] | None = None,
) -> Conversion:
    """Write an adapter in another format; values keep their floating-point type.

    Args:
        adapter: as `load_adapter` made it, also on the meta models of `skeleton`.
        path: ends in .safetensors; for "peft" a folder that is not there yet. A PEFT adapter
            belongs to one model, so one with both parts becomes two folders in it, `unet` and
            `text_encoder`.
        format: "kohya" has alpha in its tensors and embeddings bundled as A1111 reads them;
            "diffusers" has alpha in its header, PEFT in `adapter_config.json`, and both have
            embeddings in a file beside it. Embeddings that differ from layer to layer keep
            ED-LoRA's names.
        rank: reduce every update to at most this rank. Without it LoHa and LoKr get the rank that
            they need, and everything else stays as it is.
        tokens: old name -> new name of embeddings.

    Raises:
        LoraError: nothing to write, a path that does not fit or exists, an unknown token, a value
            or a kind of DoRA that the format cannot hold.
    """
    path = Path(path)
    check_target(path, format)
    if rank is not None and rank < 1:
        raise LoraError(f"the rank is {rank}; it must be at least 1.")
    renamed = tokens or {}
    embeddings = _renamed(adapter, renamed)
    errors: list[tuple[float, float]] = []
    parts = {
        component: {place: _plain(update, rank, errors) for place, update in part.items()}
        for component, part in (("unet", adapter.unet), ("text_encoder", adapter.text_encoder))
        if part
    }
    if not parts:
        raise LoraError(
            f"{adapter.name} has no LoRA to convert, only embeddings; use that file as it is."
        )
    texts = {k: v for k, v in adapter.metadata.items() if k not in _OWN_TEXTS}
    for key in _TRIGGERS & texts.keys():
        texts[key] = _with_new_names(texts[key], renamed)
    write = {"kohya": _write_kohya, "diffusers": _write_diffusers, "peft": _write_peft}[format]
    files = write(path, parts, embeddings, texts)
    old = sum(norm for norm, _ in errors) ** 0.5
    return Conversion(
        path=path, format=format, files=files,
        modules=sum(len(part) for part in parts.values()), approximated=len(errors),
        ranks=sorted({update.rank for part in parts.values() for update in part.values()}),
        relative_error=(sum(n * e * e for n, e in errors) ** 0.5 / old) if old else 0.0,
        largest_error=max((error for _, error in errors), default=0.0),
        tokens=_new_names(adapter, renamed), dropped=list(adapter.dropped),
    )  # fmt: skip


def check_target(path: Path, format: str) -> None:
    """Raise LoraError if a LoRA of this format cannot be written there."""
    if format not in get_args(Target):
        raise LoraError(f"Unknown LoRA format {format!r}; it is {', '.join(get_args(Target))}.")
    if format != "peft" and path.suffix != ".safetensors":
        raise LoraError(f"A {format} LoRA is written as .safetensors, but the path is {path.name}.")
    if path.exists() and (format == "peft" or path.is_dir()):
        raise LoraError(f"{path} exists already; give a new name.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise LoraError(f"{path} cannot be written: {above} is no folder that can be written to.")


def _plain(update: Update, rank: int | None, errors: list[tuple[float, float]]) -> Update:
    """A LoRA or a DoRA of a LoRA; notes the squared norm and the relative error of a change."""
    if isinstance(update, Dora):
        inner = _plain(update.inner, rank, errors)
        assert isinstance(inner, LowRank)
        return replace(update, inner=inner)
    assert isinstance(update, Difference)
    if isinstance(update, LowRank) and (rank is None or rank >= update.rank):
        return update
    dtype = update.factors()[0].dtype
    # In half precision the product of the factors would have full rank, from rounding alone.
    exact = update.to(None, torch.promote_types(dtype, torch.float32))
    up, down = exact.factors()
    new = compressed(exact, rank or min(len(up), down.shape[1])).to(None, dtype)
    new_up, new_down = new.factors()
    norm = _squared(up, down)
    off = _squared(torch.cat([up, -new_up], 1), torch.cat([down, new_down]))
    # With the rounding to dtype; the scale weighs this module among the others.
    errors.append((norm * update.scale**2, (off / norm) ** 0.5 if norm else 0.0))
    return new


def _squared(up: Tensor, down: Tensor) -> float:
    """||up @ down||^2 without that product, which is as large as the layer's weight."""
    up, down = up.double(), down.double()  # the difference of two near matrices cancels
    return max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))


def _renamed(adapter: Adapter, tokens: Mapping[str, str]) -> dict[str, Tensor]:
    """Name in the file -> vectors, of all embeddings under their new names."""
    for old in tokens:
        if old not in adapter.tokens:
            known = ", ".join(adapter.tokens) or "none"
            raise LoraError(f"the file has no token {old!r}; it has: {known}.")
    names = _new_names(adapter, tokens)
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise LoraError(f"the tokens would be called {', '.join(names)}; give different names.")
    plain = zip(names, adapter.embeddings.values())
    layered = zip(names[len(adapter.embeddings) :], adapter.layered.values())
    return {
        **{BUNDLED.format(token): vectors for token, vectors in plain},
        **{f"{LAYERED}{token}": vectors for token, vectors in layered},
    }


def _new_names(adapter: Adapter, tokens: Mapping[str, str]) -> list[str]:
    return [tokens.get(token, token) for token in adapter.tokens]


def _with_new_names(text: str, tokens: Mapping[str, str]) -> str:
    """A trigger phrase in which tokens have their new names, which may be old ones of others."""
    if not tokens:
        return text
    old = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.sub(old, lambda match: tokens[match[0]], text)


def _halves(update: Update) -> tuple[LowRank, Dora | None]:
    dora = update if isinstance(update, Dora) else None
    low = dora.inner if dora else update
    assert isinstance(low, LowRank)
    return low, dora


def _write_kohya(
    path: Path, parts: Mapping[str, Part], embeddings: Mapping[str, Tensor], texts: dict[str, str]
) -> list[Path]:
    tensors: dict[str, Tensor] = {}
    for component, part in parts.items():
        prefix = "lora_unet_" if component == "unet" else "lora_te_"
        for place, update in part.items():
            stem = place
            if component == "text_encoder":  # the readers know CLIP by its old names
                stem = f"text_model.{stem.removeprefix('text_model.')}"
            key = prefix + stem.replace(".", "_")
            low, dora = _halves(update)
            tensors[f"{key}.lora_down.weight"] = low.down
            tensors[f"{key}.lora_up.weight"] = low.up
            tensors[f"{key}.alpha"] = torch.tensor(low.scale * low.rank)
            if dora:
                ones = (1,) * (low.down.ndim - 1)
                shape = (-1, *ones) if dora.axis == "out" else (1, -1, *ones[1:])
                tensors[f"{key}.dora_scale"] = dora.magnitude.reshape(shape)
    tensors |= embeddings
    rank, alpha = _usual(parts)
    texts = {
        "ss_network_module": "networks.lora",
        **texts,
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
    }
    return [_write(path, tensors, texts)]


def _write_diffusers(
    path: Path, parts: Mapping[str, Part], embeddings: Mapping[str, Tensor], texts: dict[str, str]
) -> list[Path]:
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for component, part in parts.items():
        tensors |= {f"{component}.{key}": tensor for key, tensor in _peft_tensors(part).items()}
        config |= {f"{component}.{key}": value for key, value in _peft_config(part).items()}
    # The embeddings first: a stop between the two files leaves no LoRA that lacks its tokens.
    files = _write_beside(path.with_name(f"{path.stem}_emb.safetensors"), embeddings)
    return [
        _write(path, tensors, {**texts, HEADER_CONFIG: json.dumps(config, sort_keys=True)}),
        *files,
    ]


def _write_peft(
    path: Path, parts: Mapping[str, Part], embeddings: Mapping[str, Tensor], texts: dict[str, str]
) -> list[Path]:
    temporary = temporary_beside(path)
    try:
        for component, part in parts.items():
            folder = temporary / component if len(parts) > 1 else temporary
            tensors = {f"base_model.model.{k}": t for k, t in _peft_tensors(part).items()}
            _write(folder / "adapter_model.safetensors", tensors, texts)
            config = {"peft_type": "LORA", "task_type": None, **_peft_config(part)}
            text = json.dumps(config, indent=2, sort_keys=True)
            (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        _write_beside(temporary / "learned_embeds.safetensors", embeddings)
        names = sorted(file.relative_to(temporary) for file in temporary.rglob("*.*"))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [path / name for name in names]


def _write_beside(path: Path, embeddings: Mapping[str, Tensor]) -> list[Path]:
    tensors = {}
    for name, vectors in embeddings.items():
        bundled = _BUNDLED.fullmatch(name)  # diffusers has a token in angle brackets as the name
        tensors[bundled[1] if bundled else name] = vectors
    return [_write(path, tensors, {})] if tensors else []


def _peft_tensors(part: Part) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for place, update in part.items():
        low, dora = _halves(update)
        tensors[f"{place}.lora_A.weight"] = low.down
        tensors[f"{place}.lora_B.weight"] = low.up
        if dora:
            if dora.axis == "in":
                raise LoraError(
                    f"{place} has a DoRA magnitude for each input, as the first versions of "
                    "LyCORIS wrote them; peft and diffusers have one for each output. Convert to "
                    "kohya instead."
                )
            shape = (1, -1, 1, 1) if low.down.ndim == 4 else (-1,)
            tensors[f"{place}.lora_magnitude_vector"] = dora.magnitude.reshape(shape)
    return tensors


def _peft_config(part: Part) -> dict[str, Any]:
    """peft's LoraConfig of one model: the usual rank and alpha, and what differs from them."""
    rank, alpha = _usual({"": part})
    lows = {place: _halves(update)[0] for place, update in part.items()}
    doras = sum(isinstance(update, Dora) for update in part.values())
    if 0 < doras < len(part):
        raise LoraError(
            f"{doras} of {len(part)} modules are DoRA and the others are not; peft's configuration "
            "has one switch for all of them. Convert to kohya instead."
        )
    alphas = {place: low.scale * low.rank for place, low in lows.items()}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {p: low.rank for p, low in lows.items() if low.rank != rank},
        "alpha_pattern": {p: own for p, own in alphas.items() if own != alpha},
        "target_modules": sorted(part),
        "use_dora": bool(doras),
    }


def _usual(parts: Mapping[str, Part]) -> tuple[int, float]:
    """The commonest rank and alpha; whole numbers where they are whole."""
    lows = [_halves(update)[0] for part in parts.values() for update in part.values()]
    rank = Counter(low.rank for low in lows).most_common(1)[0][0]
    alpha = Counter(low.scale * low.rank for low in lows).most_common(1)[0][0]
    return rank, int(alpha) if float(alpha).is_integer() else alpha


def _write(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> Path:
    plain = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    for name, tensor in plain.items():
        if not finite(tensor):
            raise LoraError(f"{name} has values that {tensor.dtype} cannot hold.")
    write_atomically(path, with_metadata(save(plain), texts))
    return path
