"""Fitting the tensors of a LoRA file to the modules of the loaded model, all or nothing.

Every tensor of the file must land, and every shape must fit, before any of them is used; a LoRA of
which a part is dropped in silence draws something that nobody asked for.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from loraweave.errors import BaseModelMismatch, UnsupportedLoraFormat
from loraweave.lora.base import BaseGuess, describe_width, guess_base, model_width, text_width
from loraweave.lora.keys import ModuleIndex, Role, TensorName, kind_of, split_name

Place = tuple[str, str]
"""(component, module path)"""
Update = tuple[Tensor, Tensor, float | None]
"""down, up in the module's number of dimensions, and alpha if the tensors carry it"""


def match_tensors(
    label: str, tensors: Mapping[str, Tensor], index: ModuleIndex, unet: nn.Module
) -> dict[Place, Update]:
    """Fit all tensors of a file to the modules of `index`.

    Args:
        label: what messages call the file.
        tensors: name in the file -> tensor.
        index: the modules of the loaded model.
        unet: the loaded denoiser, to say which base it is.

    Raises:
        UnsupportedLoraFormat: no LoRA, of another kind, incomplete, or with tensors left over.
        BaseModelMismatch: made for another base model.
    """
    named = _split_all(label, tensors)
    guess = guess_base({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    made_for = guess.text if guess else "another model"
    if guess and not _may_fit(guess, index, unet):
        raise BaseModelMismatch(_mismatch(label, made_for, unet))
    parts = _assign(label, tensors, named, index, made_for, unet)
    return {
        place: _checked(label, place, roles, index.modules[place[0]][place[1]], made_for, unet)
        for place, roles in parts.items()
    }


def _may_fit(guess: BaseGuess, index: ModuleIndex, unet: nn.Module) -> bool:
    pairs = (
        (guess.width, model_width(unet)),
        (guess.text_width, text_width(index.modules["text_encoder"])),
    )
    return not guess.foreign and all(a == b for a, b in pairs if a and b)


def _split_all(label: str, tensors: Mapping[str, Tensor]) -> dict[str, TensorName]:
    """Every name taken apart, or an error that says what the strange ones look like."""
    named = {key: parts for key in tensors if (parts := split_name(key))}
    strange = [key for key in tensors if key not in named]
    if not strange and named:
        return named
    kinds = sorted({kind for key in strange if (kind := kind_of(key))})
    few = ", ".join(strange[:3])
    if kinds:
        raise UnsupportedLoraFormat(
            f"{label} is not a plain LoRA: {len(strange)} of its {len(tensors)} tensors look like "
            f"{' and '.join(kinds)}, which is not supported yet ({few}, ...). Convert it to a "
            "plain LoRA or use another file."
        )
    if not named:
        raise UnsupportedLoraFormat(
            f"{label} is not a LoRA: none of its {len(tensors)} tensors has a LoRA name "
            f"({few or 'it is empty'}). Give a LoRA file."
        )
    raise UnsupportedLoraFormat(
        f"{label} has {len(strange)} tensors besides its LoRA that nothing is known about: {few}. "
        "Nothing was loaded, since a part of the file would be ignored."
    )


def _assign(
    label: str,
    tensors: Mapping[str, Tensor],
    named: Mapping[str, TensorName],
    index: ModuleIndex,
    made_for: str,
    unet: nn.Module,
) -> dict[Place, dict[Role, Tensor]]:
    """(component, module path) -> role -> tensor, for every tensor of the file."""
    parts: dict[Place, dict[Role, Tensor]] = {}
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
            parts[place][parsed.role] = tensors[key]
    if missing and not parts:
        raise BaseModelMismatch(
            _mismatch(label, made_for, unet) + f" No module fits ({missing[0]})."
        )
    if missing:
        raise UnsupportedLoraFormat(
            f"{label}: {len(missing)} of {len(tensors)} tensors name modules that the loaded model "
            f"does not have as linear or convolution layers: {', '.join(missing[:3])}. Nothing was "
            "loaded, since a part of the file would be ignored."
        )
    return parts


def _checked(
    label: str,
    place: Place,
    roles: Mapping[Role, Tensor],
    module: nn.Module,
    made_for: str,
    unet: nn.Module,
) -> Update:
    """The two halves in the module's own number of dimensions, after all checks of one module."""
    where = f"{place[0]} {place[1]}"
    if "down" not in roles or "up" not in roles:
        raise UnsupportedLoraFormat(
            f"{label} has {' and '.join(sorted(roles))} but not both halves of {where}: the file "
            "is incomplete."
        )
    down, up = roles["down"], roles["up"]
    if "alpha" in roles and roles["alpha"].numel() != 1:
        raise UnsupportedLoraFormat(f"{label}: alpha of {where} is not a single number.")
    if not all(t.is_floating_point() and bool(torch.isfinite(t).all()) for t in roles.values()):
        raise UnsupportedLoraFormat(f"{label}: {where} holds values that are not finite numbers.")

    if isinstance(module, nn.Conv2d):
        kernel = tuple(module.kernel_size)
        if module.groups != 1 or module.padding_mode != "zeros":
            raise UnsupportedLoraFormat(f"{where} is a kind of convolution that is not supported.")
        want = (module.in_channels, *kernel), (module.out_channels,)
        if kernel == (1, 1) and down.dim() == 2:  # some trainers save 1x1 convolutions flat
            down = down[:, :, None, None]
        if up.dim() == 2:
            up = up[:, :, None, None]
        fits = up.dim() == 4 and up.shape[2:] == (1, 1)
    else:
        assert isinstance(module, nn.Linear)
        want = (module.in_features,), (module.out_features,)
        if down.dim() == 4 and up.dim() == 4 and down.shape[2:] == up.shape[2:] == (1, 1):
            down, up = down[:, :, 0, 0], up[:, :, 0, 0]
        fits = up.dim() == 2
    if not (
        fits
        and down.shape[0] == up.shape[1] > 0
        and tuple(down.shape[1:]) == want[0]
        and tuple(up.shape[:1]) == want[1]
    ):
        raise BaseModelMismatch(
            _mismatch(label, made_for, unet)
            + f" At {where} the file has {tuple(roles['down'].shape)} and "
            f"{tuple(roles['up'].shape)}, the model needs (rank, "
            f"{', '.join(map(str, want[0]))}) and ({want[1][0]}, rank)."
        )
    alpha = float(roles["alpha"].item()) if "alpha" in roles else None
    return down, up, alpha


def _mismatch(label: str, made_for: str, unet: nn.Module) -> str:
    width = model_width(unet)
    base = describe_width(width) if width else type(unet).__name__
    return (
        f"{label} was made for {made_for}, but the loaded base is {base}. Use a LoRA for that base."
    )
