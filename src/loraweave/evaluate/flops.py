"""FLOPs of a piece of work, by torch's own counter."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten


def flop_counter() -> FlopCounterMode:
    """A context that counts; `get_total_flops()` says how many.

    Torch's counter does not know the CPU's fused attention, so it gets the formula that it has for
    the GPU's: without it the same picture would cost less on a CPU.
    """
    own = {
        _aten._scaled_dot_product_flash_attention_for_cpu: _forward,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
    }
    return FlopCounterMode(display=False, custom_mapping=own)


def teraflops(work: Callable[[], Any]) -> float:
    """Do a piece of work and count its floating-point operations, in units of 1e12."""
    with flop_counter() as counter:
        work()
    return round(counter.get_total_flops() / 1e12, 4)


def _forward(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)
