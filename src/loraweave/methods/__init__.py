"""The methods, by name."""

from typing import Any

from ..errors import MethodError
from .base import Method, MethodSettings
from .clora import CLoRA, CLoRASettings
from .composite import Composite
from .masked import Masked
from .merge import Merge
from .switch import Switch

METHODS: dict[str, type[Method]] = {m.name: m for m in (CLoRA, Merge, Composite, Switch, Masked)}


def get_method(name: str, settings: MethodSettings | dict[str, Any] | None = None) -> Method:
    """A method with its settings.

    Raises:
        MethodError: no such method, or no such setting.
    """
    if name not in METHODS:
        raise MethodError(f"no method {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name](settings)


__all__ = [
    "METHODS", "CLoRA", "CLoRASettings", "Composite", "Masked", "Merge", "Method",
    "MethodSettings", "Switch", "get_method",
]  # fmt: skip
