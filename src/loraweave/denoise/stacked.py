"""Several LoRAs of one layer as one: two products for any number of them.

Their factors are concatenated, and what tells them apart is a gate between the two products: each
LoRA's rank channels are multiplied by its weight and by where it acts. Masking the output of a LoRA
is the same as masking its rank channels, because the second product works place by place.

`R` rows, `L` positions, `r` all ranks together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.updates import LowRank


@dataclass(frozen=True)
class Stack:
    """Concatenated factors of LoRAs of one layer.

    Attributes:
        down: (r, in), or (r, in, kh, kw) for a convolution.
        up: (out, r), or (out, r, 1, 1).
        ranks, scales: of each. A scale belongs into the gate: folded into half-precision factors
            it would cost digits.
    """

    down: Tensor
    up: Tensor
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @staticmethod
    def of(updates: Sequence[LowRank], device: torch.device, dtype: torch.dtype) -> "Stack":
        """Factors of some updates, on one device and of one type."""
        moved = [update.to(device, None) for update in updates]
        return Stack(
            torch.cat([u.down for u in moved]).to(dtype),
            torch.cat([u.up for u in moved], 1).to(dtype),
            tuple(u.rank for u in moved),
            tuple(u.scale for u in moved),
        )

    def added(self, x: Tensor, out: Tensor, layer: nn.Module, gate: Tensor) -> Tensor:
        """`out` with what the LoRAs add.

        Args:
            x: (R, L, in) or (R, in, h, w), the layer's input.
            out: of the layer so far.
            layer: for the stride, padding and dilation of a convolution.
            gate: (r,), or (R, L, r), or (R, r, h, w) at the resolution of the output.
        """
        if isinstance(layer, nn.Conv2d):
            low = F.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation)
            return out + F.conv2d(low * (gate.view(-1, 1, 1) if gate.ndim == 1 else gate), self.up)
        low = F.linear(x, self.down) * gate
        wide = torch.addmm(out.flatten(0, -2), low.flatten(0, -2), self.up.T)
        return wide.view_as(out)
