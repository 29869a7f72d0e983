"""Where the time of a picture goes, by torch.profiler."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def slowest(draw: Callable[[], Any], device: str, count: int = 3) -> list[dict[str, Any]]:
    """The operations that take most of the time, without the time of those that they call.

    Args:
        draw: what is looked at, once.
        device: whose time counts.
        count: how many.

    Returns:
        For each its name, calls, seconds, and share of the time of all.
    """
    on_gpu = torch.device(device).type == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=kinds) as found:
        draw()

    def own(event: Any) -> float:
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    events = sorted(found.key_averages(), key=own, reverse=True)
    total = sum(map(own, events)) or 1.0
    return [
        {
            "part": event.key, "calls": event.count, "seconds": round(own(event) / 1e6, 3),
            "share": round(own(event) / total, 3),
        } for event in events[:count]
    ]  # fmt: skip
