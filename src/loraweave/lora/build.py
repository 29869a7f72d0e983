"""From the tensors of one module to its update, after all checks of their shapes and values."""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor, nn

from loraweave.errors import UnsupportedLoraFormat
from loraweave.lora.keys import Role
from loraweave.lora.updates import Difference, Dora, Hadamard, Kronecker, LowRank, Update

Roles = Mapping[Role, Tensor]
Shape = tuple[int, ...]
"""(out, in) or (out, in, kh, kw)"""
Scale = Callable[[int | None], float]
"""rank, or None if there is none, -> scale"""

_SINGLE = ("alpha", "magnitude", "dora_scale")
"""Roles that every algorithm may have, and that are no matrices."""


class ShapeError(Exception):
    """The tensors of a module have shapes that do not fit it; the message says which."""


class IncompleteError(Exception):
    """Some tensors that a module's update needs are not in the file."""


def family(roles: Roles) -> str:
    """Which algorithm's names the tensors have: "LoRA", "LoHa", "LoKr", or "" for none of them.

    Raises:
        IncompleteError: of two families at once.
    """
    families = {
        "LoHa" if role.startswith("hada") else "LoKr" if role.startswith("lokr") else "LoRA"
        for role in roles
        if role not in _SINGLE
    }
    if len(families) > 1:
        raise IncompleteError(f"tensors of {' and '.join(sorted(families))} at once")
    return families.pop() if families else ""


def build(where: str, roles: Roles, module: nn.Module, default: Scale) -> Update:
    """One module's update.

    Args:
        where: what messages call the module.
        roles: its tensors, finite and floating-point.
        module: a plain linear or convolution layer.
        default: rank -> scale, for a module without an alpha of its own.

    Raises:
        ShapeError, IncompleteError: see there.
        UnsupportedLoraFormat: a kind of layer or of DoRA that is not supported.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    shape = _shape(where, module)
    alpha = roles.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise IncompleteError("alpha is not a single number")
    number = None if alpha is None else float(alpha.item())

    def scale(rank: int | None) -> float:
        if number is None:
            return default(rank)
        return number / rank if rank else 1.0

    kind = family(roles)
    make = {"LoRA": _low_rank, "LoHa": _hadamard, "LoKr": _kronecker}.get(kind)
    if make is None:
        raise IncompleteError(f"{' and '.join(sorted(roles))} alone")
    for role, tensor in roles.items():
        if role not in _SINGLE and (tensor.ndim < 2 or not tensor.numel()):
            raise ShapeError(f"{role} has the shape {tuple(tensor.shape)}, which is no matrix")
    update = make(roles, shape, scale)
    if weight.is_floating_point() and not weight.is_meta:  # a quantised module keeps the file's
        update = update.to(weight.device, weight.dtype)
    names = [name for name in ("magnitude", "dora_scale") if name in roles]
    if not names:
        return update
    if len(names) > 1:
        raise IncompleteError("two magnitudes")
    if not weight.is_floating_point():
        raise UnsupportedLoraFormat(
            f"{where} is quantised in the loaded model, and DoRA needs the norm of its weights. "
            "Load the model without quantisation."
        )
    return _dora(update, names[0], roles[names[0]], weight, shape)


def _shape(where: str, module: nn.Module) -> Shape:
    """(out, in) or (out, in, kh, kw); not the weight's own shape, which quantisation may pack."""
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.padding_mode != "zeros":
            raise UnsupportedLoraFormat(f"{where} is a kind of convolution that is not supported.")
        kh, kw = module.kernel_size
        return module.out_channels, module.in_channels, kh, kw
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


def _need(roles: Roles, names: tuple[Role, ...]) -> list[Tensor]:
    if missing := [name for name in names if name not in roles]:
        raise IncompleteError(f"{', '.join(sorted(set(roles) & set(names)))} without "
                              f"{', '.join(missing)}")  # fmt: skip
    return [roles[name].detach() for name in names]


def _misfit(shape: Shape, *tensors: Tensor) -> ShapeError:
    found = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
    inner = ", ".join(map(str, shape[1:]))
    return ShapeError(
        f"the file has {found}, the model needs (rank, {inner}) and ({shape[0]}, rank)"
    )


def _low_rank(roles: Roles, shape: Shape, scale: Scale) -> LowRank:
    down, up = given = _need(roles, ("down", "up"))
    kernel, ones = shape[2:], (1,) * len(shape[2:])
    if up.ndim == 4 and up.shape[2:] == (1, 1):
        up = up[:, :, 0, 0]
    if "mid" in roles:  # up(mid(down x)), of which the two last are folded into one
        mid = roles["mid"].detach()
        if mid.shape != (*up.shape[1:], len(down), *kernel) or down.shape != (
            len(down), shape[1], 1, 1,
        ):  # fmt: skip
            raise _misfit(shape, down, mid, up)
        down = torch.einsum("pqhw,qi->pihw", mid, down[:, :, 0, 0])
    # Some trainers save 1x1 convolutions flat, others linear layers as 1x1 convolutions.
    if not kernel and down.ndim == 4 and down.shape[2:] == (1, 1):
        down = down[:, :, 0, 0]
    elif kernel == (1, 1) and down.ndim == 2:
        down = down[:, :, None, None]
    fits = up.ndim == 2 and down.shape[1:] == shape[1:] and up.shape == (shape[0], len(down))
    if not fits or not len(down):
        raise _misfit(shape, *given)
    return LowRank(down, up.reshape(*up.shape, *ones), scale(len(down)))


def _hadamard(roles: Roles, shape: Shape, scale: Scale) -> Hadamard:
    a1, b1 = _hadamard_half(roles, shape, "hada_w1_a", "hada_w1_b", "hada_t1")
    a2, b2 = _hadamard_half(roles, shape, "hada_w2_a", "hada_w2_b", "hada_t2")
    return Hadamard(a1, b1, a2, b2, shape, scale(len(b1)))


def _hadamard_half(
    roles: Roles, shape: Shape, a_name: Role, b_name: Role, core_name: Role
) -> tuple[Tensor, Tensor]:
    """(out, r) and (r, n)."""
    a, b = _need(roles, (a_name, b_name))
    if core_name in roles:  # Tucker: core (r, r, kh, kw), a (r, out), b (r, in)
        core = roles[core_name].detach()
        if core.shape != (len(a), len(b), *shape[2:]) or a.shape[1:] != shape[:1] or (
            b.shape[1:] != shape[1:2]
        ):  # fmt: skip
            raise _misfit(shape, core, a, b)
        a, b = a.T, torch.einsum("ij...,jn->in...", core, b)
    b = b.flatten(1) if b.ndim > 1 else b
    if a.shape != (shape[0], len(b)) or b.shape != (len(b), prod(shape[1:])) or not len(b):
        raise _misfit(shape, b, a)
    return a, b


def _kronecker(roles: Roles, shape: Shape, scale: Scale) -> Difference:
    first = _factors(roles, ("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
    second = _factors(roles, ("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    core = roles.get("lokr_t2")
    if core is not None:  # Tucker: core (r, r, kh, kw), a (r, o2), b (r, i2)
        a, b = _need(roles, ("lokr_w2_a", "lokr_w2_b"))
        ranks, (o2, i2) = [len(a)], (prod(a.shape[1:]), prod(b.shape[1:]) * prod(shape[2:]))
        fits = core.shape == (len(a), len(b), *shape[2:])
    else:
        ranks = [second[1].shape[0]] if len(second) == 2 else []
        o2, i2 = len(second[0]), prod(second[-1].shape[1:])
        fits = True
    ranks += [first[1].shape[0]] if len(first) == 2 else []
    o1, i1 = len(first[0]), prod(first[-1].shape[1:])
    columns = prod(shape[1:])
    flat = all(f.ndim == 2 for f in first) and (len(second) == 1 or second[0].ndim == 2)
    if not (fits and flat and (o1 * o2, i1 * i2) == (shape[0], columns)):
        raise ShapeError(
            f"the file has Kronecker factors of {o1}x{i1} and {o2}x{i2}, the model needs "
            f"{shape[0]}x{columns} as their product"
        )
    pairs = [first] if core is not None else [first, second]
    if any(len(pair) == 2 and pair[0].shape[1] != len(pair[1]) for pair in pairs):
        raise ShapeError("the decomposed Kronecker factors have two ranks")

    if core is not None:
        second = [torch.einsum("ij...,ip,jn->pn...", core.detach(), *second).flatten(1)]
    # With neither factor decomposed there is no rank in the tensors that alpha is divided by.
    return Kronecker(tuple(first), tuple(second), shape, scale(ranks[-1] if ranks else None))


def _factors(roles: Roles, whole: tuple[Role], parts: tuple[Role, Role]) -> list[Tensor]:
    """A Kronecker factor as one matrix or as two whose product it is."""
    if whole[0] in roles:
        if extra := [name for name in parts if name in roles]:
            raise IncompleteError(f"{whole[0]} and {', '.join(extra)} at once")
        return [roles[whole[0]].detach().flatten(1).contiguous()]
    return [part.contiguous() for part in _need(roles, parts)]


def _dora(
    update: Difference, name: str, magnitude: Tensor, base: Tensor, shape: Shape
) -> Dora:  # fmt: skip
    """The magnitude's axis is told by its shape: peft has (out,) or (1, out, 1, 1), LyCORIS
    (out, 1, ...) or, in its first versions, (1, in, ...)."""
    size = tuple(magnitude.shape)
    ones = (1,) * (len(shape) - 1)
    peft = name == "magnitude" and size in ((shape[0],), (1, shape[0], *ones[1:]))
    if peft or size in ((shape[0],), (shape[0], *ones)):
        axis = "out"
    elif name == "dora_scale" and size == (1, shape[1], *ones[1:]):
        axis = "in"
    else:
        raise ShapeError(f"the file has a DoRA magnitude of {size} for a weight of {shape}")
    return Dora.on(update, magnitude.flatten(), axis, base)
