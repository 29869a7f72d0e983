"""What a LoRA file does to one linear or convolution layer, in each algorithm that files have.

Every class computes what it adds to the layer's output, so that a run can give it to some rows of
a batch and not to others; none of them touches the layer.

Shapes: r rank, out/in the layer's features or channels, (kh, kw) a convolution's kernel, n = in for
a linear layer and in * kh * kw for a convolution, R rows of a batch. W is the layer's own weight.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MethodError

Device = torch.device | str | None


class Update(ABC):
    """One layer's update. `rank` is that of the file, `scale` is alpha / rank."""

    scale: float

    @property
    @abstractmethod
    def rank(self) -> int: ...

    @abstractmethod
    def delta(self, x: Tensor, module: nn.Module) -> Tensor:
        """What this update adds to `module(x)` at weight 1; same shape as that output.

        Args:
            x: the module's input, of the update's dtype: (..., in), or (R, in, h, w).
            module: the plain module, for the stride, padding and dilation of a convolution.
        """

    @abstractmethod
    def residual(self, x: Tensor, plain: Tensor, module: nn.Module, weights: Tensor) -> Tensor:
        """What this update adds to `plain = module(x)`, row by row.

        Args:
            x: (R, ..., in) or (R, in, h, w).
            plain: the module's own output.
            module: the plain module.
            weights: (R,) or (1,), what the user gives each row.
        """

    @abstractmethod
    def change(self, base: Tensor, weight: float = 1.0) -> Tensor:
        """What it adds to the layer's weight `base`; of the same shape."""

    @abstractmethod
    def to(self, device: Device, dtype: torch.dtype | None) -> Self: ...


class Difference(Update):
    """An update that adds a fixed matrix to the weight, so that it is linear in the weight."""

    @abstractmethod
    def weight(self) -> Tensor:
        """The whole delta W, scale included, of the shape of the module's weight."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[int, ...]:
        """(in,) or (in, kh, kw): the shape of the layer's weight without its first size."""

    @abstractmethod
    def factors(self) -> tuple[Tensor, Tensor]:
        """up (out, r) and down (r, n) whose product is delta W without the scale, exactly."""

    def residual(self, x: Tensor, plain: Tensor, module: nn.Module, weights: Tensor) -> Tensor:
        delta = self.delta(x, module)
        return delta * _by_row(weights.to(delta.dtype), delta.ndim)

    def change(self, base: Tensor, weight: float = 1.0) -> Tensor:
        return weight * self.weight()


@dataclass(frozen=True)
class LowRank(Difference):
    """LoRA and LoCon: delta W = scale * up @ down.

    Attributes:
        down: (r, in), or (r, in, kh, kw) for a convolution.
        up: (out, r), or (out, r, 1, 1) for a convolution.
        scale: alpha / r, as in the file; the weight that a user gives multiplies this.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(self.down.shape[1:])

    def delta(self, x: Tensor, module: nn.Module) -> Tensor:
        low = _apply(module, x, self.down)  # (..., r) or (R, r, h', w')
        if isinstance(module, nn.Conv2d):
            return F.conv2d(low, self.up) * self.scale
        return F.linear(low, self.up) * self.scale

    def weight(self) -> Tensor:
        up, down = self.factors()
        return self.scale * (up @ down).reshape(-1, *self.inputs)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.up.flatten(1), self.down.flatten(1)

    def to(self, device: Device, dtype: torch.dtype | None) -> "LowRank":
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


@dataclass(frozen=True)
class Hadamard(Difference):
    """LoHa: delta W = scale * (a1 @ b1) * (a2 @ b2), elementwise (FedPara, arXiv:2108.06098).

    Its rank may reach r * r, so the matrix is built when it is needed instead of being factored.

    Attributes:
        a1, a2: (out, r).
        b1, b2: (r, n).
        shape: of the layer's weight.
        scale: alpha / r.
    """

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor
    shape: tuple[int, ...]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.b1.shape[0]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.shape[1:]

    def delta(self, x: Tensor, module: nn.Module) -> Tensor:
        return _apply(module, x, self.weight())

    def weight(self) -> Tensor:
        return self.scale * ((self.a1 @ self.b1) * (self.a2 @ self.b2)).reshape(self.shape)

    def factors(self) -> tuple[Tensor, Tensor]:
        # (a1 b1) * (a2 b2) = sum over i, j of the products of columns i, j and of rows i, j.
        up = (self.a1[:, :, None] * self.a2[:, None, :]).flatten(1)
        down = (self.b1[:, None, :] * self.b2[None, :, :]).flatten(0, 1)
        return up, down

    def to(self, device: Device, dtype: torch.dtype | None) -> "Hadamard":
        parts = {name: getattr(self, name).to(device, dtype) for name in ("a1", "b1", "a2", "b2")}
        return replace(self, **parts)


@dataclass(frozen=True)
class Kronecker(Difference):
    """LoKr: delta W = scale * kron(w1, w2), each factor whole or as a product of two.

    Attributes:
        first: w1 (o1, i1), or (o1, r) and (r, i1).
        second: w2 (o2, i2), or (o2, r) and (r, i2); o1 * o2 = out and i1 * i2 = n.
        shape: of the layer's weight.
        scale: alpha / r, or 1 if neither factor is decomposed.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    shape: tuple[int, ...]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """r of the decomposed factors; of two whole ones the largest rank that they can give."""
        ranks = [pair[1].shape[0] for pair in (self.first, self.second) if len(pair) == 2]
        whole = [min(one[0].shape) for one in (self.first, self.second)]
        return max(ranks) if ranks else whole[0] * whole[1]

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.shape[1:]

    def delta(self, x: Tensor, module: nn.Module) -> Tensor:
        w1, w2 = _product(self.first), _product(self.second)
        i1, i2 = w1.shape[1], w2.shape[1]
        if not isinstance(module, nn.Conv2d):
            low = F.linear(x.unflatten(-1, (i1, i2)), w2)  # (..., i1, o2)
            return (w1 @ low).flatten(-2) * self.scale
        if i2 % prod(self.shape[2:]):  # old LyCORIS splits in * kh * kw as if it were one number
            return _apply(module, x, self.weight())
        apart = x.reshape(len(x) * i1, -1, *x.shape[2:])  # (R * i1, i2 / kh / kw, h, w)
        low = _apply(module, apart, w2.reshape(len(w2), -1, *self.shape[2:]))
        out = w1 @ low.reshape(len(x), i1, -1)  # (R, o1, o2 * h' * w')
        return out.reshape(len(x), -1, *low.shape[2:]) * self.scale

    def weight(self) -> Tensor:
        # For a convolution of (o2, i2, kh, kw) this is the same as kron over the first two axes.
        return self.scale * torch.kron(_product(self.first), _product(self.second)).reshape(
            self.shape
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        # kron(a1 @ b1, a2 @ b2) = kron(a1, a2) @ kron(b1, b2)
        (a1, b1), (a2, b2) = (
            pair if len(pair) == 2 else _split(pair[0]) for pair in (self.first, self.second)
        )
        return torch.kron(a1, a2), torch.kron(b1, b2)

    def to(self, device: Device, dtype: torch.dtype | None) -> "Kronecker":
        first, second = (
            tuple(part.to(device, dtype) for part in pair) for pair in (self.first, self.second)
        )
        return replace(self, first=first, second=second)


@dataclass(frozen=True)
class Dora(Update):
    """DoRA: W' = m * (W + w * delta W) / ||W + w * delta W|| (arXiv:2402.09353, eq. 5).

    The user's weight w multiplies the inner update and the norm follows it, as in peft; at w = 0
    the result is m * W / ||W||, which is W only where the training left m alone. (ComfyUI
    interpolates between W and the W' of weight 1 instead.)

    Attributes:
        inner: the update before the magnitude.
        magnitude: (out,) or (in,), float32 or better.
        axis: "out" for one magnitude an output row (peft), "in" for one an input column (the
            first LyCORIS versions).
        moments: (3, out) or (3, in): ||W||^2, <W, delta W> and ||delta W||^2 of each row or
            column. They make the norm of any w cheap. None if the model has no values.
    """

    inner: Difference
    magnitude: Tensor
    axis: Literal["out", "in"]
    moments: Tensor | None

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def scale(self) -> float:  # type: ignore[override]
        return self.inner.scale

    @staticmethod
    def on(inner: Difference, magnitude: Tensor, axis: Literal["out", "in"], base: Tensor):
        """A DoRA for the layer whose weight is `base`, an ordinary floating-point tensor."""
        exact = torch.promote_types(base.dtype, torch.float32)
        magnitude = magnitude.detach().to(exact)
        if base.is_meta:
            return Dora(inner, magnitude, axis, None)
        w = base.detach().to(exact)
        d = inner.to(w.device, exact).weight()
        moments = torch.stack([_sums(a * b, axis) for a, b in ((w, w), (w, d), (d, d))])
        return Dora(inner, magnitude.to(w.device), axis, moments)

    def gain(self, weights: Tensor) -> Tensor:
        """m / ||W + w delta W|| for each weight: (R, out) or (R, in)."""
        assert self.moments is not None, "made without the model's weights"
        own, cross, new = self.moments
        w = weights.to(self.moments.dtype)[:, None]
        return self.magnitude / (own + 2 * w * cross + w * w * new).clamp_min(1e-30).sqrt()

    def delta(self, x: Tensor, module: nn.Module) -> Tensor:
        weight, bias = _weight_and_bias(module)
        plain = _apply(module, x, weight)
        if bias is not None:
            plain = plain + _by_channel(bias, module, plain.ndim)
        return self.residual(x, plain, module, torch.ones(1, device=x.device))

    def residual(self, x: Tensor, plain: Tensor, module: nn.Module, weights: Tensor) -> Tensor:
        weight, bias = _weight_and_bias(module)
        gain = _by_channel(self.gain(weights).to(x.dtype), module, x.ndim)
        strength = _by_row(weights.to(x.dtype), x.ndim)
        if self.axis == "in":
            scaled = x * gain
            own = _apply(module, scaled - x, weight)
            return own + self.inner.delta(scaled, module) * strength
        if bias is not None:
            plain = plain - _by_channel(bias, module, plain.ndim)
        return (gain - 1) * plain + gain * strength * self.inner.delta(x, module)

    def change(self, base: Tensor, weight: float = 1.0) -> Tensor:
        gain = self.gain(torch.tensor([weight], device=base.device))[0].to(base.dtype)
        gain = gain[:, None] if self.axis == "out" else gain[None, :]
        gain = gain.reshape(*gain.shape, *(1,) * (base.ndim - 2))
        return (base + weight * self.inner.weight()) * gain - base

    def to(self, device: Device, dtype: torch.dtype | None) -> "Dora":
        # Norms and magnitudes stay exact: their ratio is near 1 and matters in its last digits.
        moments = None if self.moments is None else self.moments.to(device)
        inner = self.inner.to(device, dtype)
        return replace(self, inner=inner, magnitude=self.magnitude.to(device), moments=moments)


def compressed(update: Difference, rank: int) -> LowRank:
    """The best LoRA of at most this rank, by singular values, and of the same scale.

    Singular values below 1e-6 of the largest are left out in any case.
    """
    up, down = update.factors()
    if len(down) > min(len(up), down.shape[1]):  # more factors than the matrix can need
        up, down = _split(up @ down)
    exact = torch.promote_types(up.dtype, torch.float32)
    # Only the small middle is decomposed: up = q1 r1, down^T = q2 r2.
    q1, r1 = torch.linalg.qr(up.to(exact))
    q2, r2 = torch.linalg.qr(down.to(exact).T)
    u, s, v = torch.linalg.svd(r1 @ r2.T)
    kept = max(1, min(rank, int((s > s[0] * 1e-6).sum())))
    root = s[:kept].sqrt()
    new_up, new_down = (q1 @ u[:, :kept]) * root, root[:, None] * (v[:kept] @ q2.T)
    ones = (1,) * (len(update.inputs) - 1)
    return LowRank(
        new_down.reshape(kept, *update.inputs), new_up.reshape(*new_up.shape, *ones), update.scale
    )


def finite(tensor: Tensor) -> bool:
    """Whether all values are numbers; torch itself cannot say it of 8-bit floats."""
    known = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
    return bool(torch.isfinite(known).all())


def _apply(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The module with another weight and no bias."""
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation)
    return F.linear(x, weight)


def _by_row(weights: Tensor, ndim: int) -> Tensor:
    return weights.view(-1, *(1,) * (ndim - 1))


def _by_channel(values: Tensor, module: nn.Module, ndim: int) -> Tensor:
    """(C,) or (R, C) so that it multiplies outputs or inputs of the module."""
    values = values.view(-1, values.shape[-1])
    if isinstance(module, nn.Conv2d):
        return values[:, :, None, None]
    return values.view(len(values), *(1,) * (ndim - 2), -1)


def _weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    if module.weight.is_meta and getattr(module, "_hf_hook", None) is not None:
        raise MethodError(
            "a DoRA needs the weights of its layers, which are offloaded one by one here; offload "
            "whole models instead (enable_model_cpu_offload)"
        )
    return module.weight, module.bias


def _sums(values: Tensor, axis: str) -> Tensor:
    values = values if axis == "out" else values.transpose(0, 1)
    return values.flatten(1).sum(1)


def _split(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors whose product is the matrix, one of them an identity."""
    rows, columns = matrix.shape
    if rows <= columns:
        return torch.eye(rows, dtype=matrix.dtype, device=matrix.device), matrix
    return matrix, torch.eye(columns, dtype=matrix.dtype, device=matrix.device)


def _product(factors: tuple[Tensor, ...]) -> Tensor:
    return factors[0] if len(factors) == 1 else factors[0] @ factors[1]
