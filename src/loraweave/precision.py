"""Arithmetic of a model, by torch's names."""

from typing import Literal

DType = Literal["float32", "float16", "bfloat16"]
