"""Weights in half precision, as they ship."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def save_half(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name, rounded to half precision."""
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)


def load_half(path: Path) -> dict[str, Tensor]:
    """Tensors by name in single precision."""
    return {name: tensor.float() for name, tensor in load_file(path).items()}
