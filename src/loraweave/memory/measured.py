"""How much memory a piece of work needs beyond what is in use before it."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import MethodError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Memory:
    """What was needed, in MiB; None while the work goes on, and where nobody tells."""

    mib: float | None = None


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Memory]:
    """The growth of memory inside this context.

    On a GPU by torch's own accounting; on the CPU the process's largest resident set, which Linux
    tells and other systems do not.

    Args:
        device: whose memory.
    """
    memory = Memory()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        yield memory
        memory.mib = round((torch.cuda.max_memory_allocated(device) - allocated) / 2**20, 1)
        return
    try:
        _give_back()
        before = _resident("VmRSS")
        _new_peak()
    except (OSError, KeyError):  # another system, or one where this is not allowed
        yield memory
        return
    _open.append(0.0)
    try:
        yield memory
    finally:
        _new_peak()
        memory.mib = round(_open.pop() - before, 1)


def memory_in_use(device: torch.device) -> int:
    """Bytes that are in use: on a GPU by torch's tensors, else by the process.

    Raises:
        MethodError: another system, which does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        _give_back()
        return int(_resident("VmRSS") * 2**20)
    except (OSError, KeyError):
        raise MethodError(
            f"this system does not tell how much memory is in use on {device.type}, so max_memory "
            "cannot be kept; set pass_batch and checkpointing instead"
        ) from None


_open: list[float] = []
"""The largest resident sets so far of the contexts that are open; one may be in another."""


def _give_back() -> None:
    """What was freed before would be used again without growth, so the system gets it back."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _new_peak() -> None:
    """Note the process's peak down where it counts, and begin a new one."""
    highest = _resident("VmHWM")
    _open[:] = [max(own, highest) for own in _open]
    _RESET.write_text("5")


def _resident(which: str) -> float:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[which].split()[0]) / 1024  # kB
