"""What pictures cost: measured while they are drawn, kept in their records, told by `evaluate`."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import torch

from ..memory.measured import Memory, peak_memory
from ..output import ComposeOutput
from .flops import teraflops

_OF_INFO = ("seconds", "calls", "rows", "backward_rows")
COSTS = (*_OF_INFO, "tflops", "peak_mib", "threads")
"""Seconds, denoiser calls, rows in them and rows differentiated; floating-point operations in
units of 1e12; memory beyond what was in use before, in MiB; threads of the processor."""
_OF_MACHINE = ("seconds", "peak_mib", "threads")


def cost_of(outputs: Sequence[ComposeOutput], memory: Memory) -> dict[str, float]:
    """What some pictures cost together, as far as it is known; see `COSTS`."""
    cost: dict[str, float] = {
        key: round(sum(output.info[key] for output in outputs), 3) for key in _OF_INFO
    }
    if memory.mib is not None:
        cost["peak_mib"] = memory.mib
    return cost | {"threads": torch.get_num_threads()}


def drawn_with_cost(
    draw: Callable[[], ComposeOutput], device: torch.device | str, *, flops: bool = False
) -> ComposeOutput:
    """Draw a picture and measure what it costs, which its record then says.

    Args:
        draw: gives the same picture every time.
        device: that draws.
        flops: draw it a second time to count them, apart, since counting takes time.

    Returns:
        What `draw` gave, with `info["cost"]`: `COSTS` and the `machine`.
    """
    with peak_memory(device) as memory:
        output = draw()
    cost = cost_of([output], memory)
    if flops:
        cost["tflops"] = teraflops(draw)
    output.info["cost"] = {**cost, "machine": machine(device)}
    return output


def machine(device: torch.device | str) -> str:
    """What draws, in words."""
    words = f"{platform.machine()}, {os.cpu_count()} cores"
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {words}"
    return words


def told_cost(record: Mapping[str, Any]) -> dict[str, Any]:
    """`COSTS` and the `machine`, as far as a picture's record says them."""
    cost = record.get("cost", {})
    told = {k: cost[k] for k in COSTS if type(cost.get(k)) in (int, float)}
    if isinstance(cost.get("machine"), str):
        told["machine"] = cost["machine"]
    return told


def mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the pictures that say each; of several machines what does not depend on them."""
    mixed = len({(cost.get("machine"), cost.get("threads")) for cost in costs}) > 1
    found = {}
    for key in COSTS:
        known = [cost[key] for cost in costs if key in cost]
        if known and not (mixed and key in _OF_MACHINE):
            found[key] = mean(known)
    return found
