"""Fitting the tensors of a LoRA file to the modules of the loaded model, all or nothing.

Every tensor of the file must land, and every shape must fit, before any of them is used; a LoRA of
which a part is dropped in silence draws something that nobody asked for. A caller who wants the
rest anyway says so, and is told what was left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from loraweave.errors import BaseModelMismatch, UnsupportedLoraFormat
from loraweave.lora.alphas import Alphas
from loraweave.lora.base import (
    BaseGuess,
    cross_attention_layers,
    describe_width,
    guess_base,
    model_width,
    text_width,
)
from loraweave.lora.build import IncompleteError, ShapeError, build, family
from loraweave.lora.embeddings import Found, find_embeddings
from loraweave.lora.keys import ModuleIndex, Role, TensorName, kind_of, split_name
from loraweave.lora.numbered import numbered_names
from loraweave.lora.updates import Update, finite

Place = tuple[str, str]
"""(component, module path)"""

_PARTIAL = (
    "Nothing was loaded, since a part of the file would be ignored; to leave that part out, pass "
    "allow_partial=True (--allow-partial)."
)


@dataclass(frozen=True)
class Matched:
    """What became of every tensor of a file.

    Attributes:
        updates: (component, module path) -> update.
        vectors: token -> (n, D).
        layered: token -> (X, D), a vector for each cross-attention layer.
        dropped: names of the tensors that are in none; empty unless that was allowed.
    """

    updates: dict[Place, Update]
    vectors: dict[str, Tensor]
    layered: dict[str, Tensor]
    dropped: tuple[str, ...]


def match_tensors(
    label: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    index: ModuleIndex,
    unet: nn.Module,
    width: int,
    allow_partial: bool = False,
) -> Matched:
    """Fit all tensors of a file to the modules of `index`.

    Args:
        label: what messages call the file.
        tensors: name in the file -> tensor.
        metadata: of the file, for an alpha that is not in the tensors.
        index: the modules of the loaded model.
        unet: the loaded denoiser, to say which base it is.
        width: of the text encoder's embeddings.
        allow_partial: leave out what does not fit by name instead of refusing the file. Wrong
            shapes, and a file of which nothing lands, are errors all the same.

    Raises:
        UnsupportedLoraFormat: no LoRA, of another kind, incomplete, or with tensors left over.
        BaseModelMismatch: made for another base model.
    """
    if not tensors:
        raise UnsupportedLoraFormat(f"{label} is not a LoRA: it is empty. Give a LoRA file.")
    guess = guess_base({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    made_for = guess.text if guess else "another model"
    if guess and not _may_fit(guess, index, unet):
        raise BaseModelMismatch(_mismatch(label, made_for, unet))

    found = find_embeddings(label, tensors)
    _check_embeddings(label, found, width, made_for, unet)
    rest = {key: t for key, t in tensors.items() if key not in found.keys}
    named, dropped = _split_all(label, rest, index, allow_partial)

    parts, missing = _assign(label, named, index)
    if missing and not (parts or found.keys):
        raise BaseModelMismatch(
            _mismatch(label, made_for, unet) + f" No module fits ({missing[0]})."
        )
    if missing and not allow_partial:
        raise UnsupportedLoraFormat(
            f"{label}: {len(missing)} of {len(tensors)} tensors name modules that the loaded model "
            f"does not have as linear or convolution layers: {', '.join(missing[:3])}. {_PARTIAL}"
        )
    dropped += missing

    alphas = Alphas(label, metadata)
    updates: dict[Place, Update] = {}
    for place, keys in parts.items():
        roles = {role: tensors[key] for role, key in keys.items()}
        where = f"{place[0]} {place[1]}"
        module = index.modules[place[0]][place[1]]
        if not all(_numbers(role, tensor) for role, tensor in roles.items()):
            raise UnsupportedLoraFormat(
                f"{label}: {where} holds values that are not finite numbers."
            )
        try:
            updates[place] = build(
                where, roles, module, lambda rank, place=place: alphas.scale(*place, rank)
            )
        except ShapeError as error:
            raise BaseModelMismatch(
                _mismatch(label, made_for, unet) + f" At {where} {error}."
            ) from None
        except IncompleteError as error:
            if not allow_partial:
                raise UnsupportedLoraFormat(
                    f"{label} is incomplete: {where} has {error}. {_PARTIAL}"
                ) from None
            dropped += keys.values()
    if not updates and not found.keys:
        raise UnsupportedLoraFormat(f"{label}: nothing of the file can be used.")
    landed = [{role: tensors[key] for role, key in parts[place].items()} for place in updates]
    alphas.check(
        (family(roles) for roles in landed),
        any("magnitude" in roles or "dora_scale" in roles for roles in landed),
    )
    return Matched(updates, found.vectors, found.layered, tuple(dropped))


def _numbers(role: Role, tensor: Tensor) -> bool:
    whole = role == "alpha"  # some trainers write it as an integer
    return (whole or tensor.is_floating_point()) and finite(tensor)


def _may_fit(guess: BaseGuess, index: ModuleIndex, unet: nn.Module) -> bool:
    pairs = (
        (guess.width, model_width(unet)),
        (guess.text_width, text_width(index.modules["text_encoder"])),
    )
    return not guess.foreign and all(a == b for a, b in pairs if a and b)


def _check_embeddings(label: str, found: Found, width: int, made_for: str, unet: nn.Module) -> None:
    for token, vectors in {**found.vectors, **found.layered}.items():
        if vectors.shape[1] != width:
            raise BaseModelMismatch(
                _mismatch(label, made_for, unet) + f" The embedding of {token} has width "
                f"{vectors.shape[1]}, the text encoder {width}."
            )
    layers = cross_attention_layers(unet)
    for token, vectors in found.layered.items():
        if len(vectors) != layers:
            raise BaseModelMismatch(
                f"{label} has {len(vectors)} embeddings for the token {token}, one for each "
                f"cross-attention layer of its base, but the loaded base has {layers} such layers. "
                "Use the base that it was trained on (16 layers are Stable Diffusion 1.x)."
            )


def _split_all(
    label: str, tensors: Mapping[str, Tensor], index: ModuleIndex, allow_partial: bool
) -> tuple[dict[str, TensorName], list[str]]:
    """Every name taken apart, and the strange ones, which are an error unless allowed."""
    named = numbered_names(label, tensors, index)
    named |= {key: name for key in tensors if key not in named and (name := split_name(key))}
    strange = [key for key in tensors if key not in named]
    if not strange or (named and allow_partial):
        return named, strange
    kinds = sorted({kind for key in strange if (kind := kind_of(key))})
    few = ", ".join(strange[:3])
    if kinds:
        raise UnsupportedLoraFormat(
            f"{label} is of a kind that is not supported: {len(strange)} of its {len(tensors)} "
            f"tensors look like {' and '.join(kinds)} ({few}, ...). Convert it to a LoRA with the "
            "program that made it, or use another file."
        )
    if not named:
        raise UnsupportedLoraFormat(
            f"{label} is not a LoRA: none of its {len(tensors)} tensors has a LoRA name "
            f"({few}). Give a LoRA file."
        )
    raise UnsupportedLoraFormat(
        f"{label} has {len(strange)} tensors besides its LoRA that nothing is known about: {few}. "
        f"{_PARTIAL}"
    )


def _assign(
    label: str, named: Mapping[str, TensorName], index: ModuleIndex
) -> tuple[dict[Place, dict[Role, str]], list[str]]:
    """(component, module path) -> role -> key, and the keys that have no module."""
    parts: dict[Place, dict[Role, str]] = {}
    missing: list[str] = []
    for key, parsed in named.items():
        place = index.find(parsed)
        if place is None:
            missing.append(key)
        elif parsed.role in parts.setdefault(place, {}):
            raise UnsupportedLoraFormat(
                f"{label} has two tensors for the {parsed.role} part of {place[0]} {place[1]}; "
                f"one is {key}. Does it hold two LoRAs? Give them as two files."
            )
        else:
            parts[place][parsed.role] = key
    return parts, missing


def _mismatch(label: str, made_for: str, unet: nn.Module) -> str:
    width = model_width(unet)
    base = describe_width(width) if width else type(unet).__name__
    return (
        f"{label} was made for {made_for}, but the loaded base is {base}. Use a LoRA for that base."
    )
