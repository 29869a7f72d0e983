"""The methods, by name."""

from typing import Any

from ..errors import MethodError
from .attend_and_excite import AttendAndExcite
from .base import Method, MethodSettings
from .clora import CLoRA, CLoRASettings
from .composite import Composite
from .conform import Conform
from .lora_composer import LoRAComposer
from .masked import Masked
from .merge import Merge
from .omg import OMG
from .regional import Regional
from .switch import Switch
from .weave import Weave

KNOWN = (
    Weave, CLoRA, LoRAComposer, Merge, Composite, Switch, Masked, Regional, OMG, AttendAndExcite,
    Conform,
)  # fmt: skip
METHODS: dict[str, type[Method]] = {m.name: m for m in KNOWN}


def get_method(name: str, settings: MethodSettings | dict[str, Any] | None = None) -> Method:
    """A method with its settings.

    Raises:
        MethodError: no such method, or no such setting.
    """
    if name not in METHODS:
        raise MethodError(f"no method {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name](settings)


__all__ = [
    "METHODS", "AttendAndExcite", "CLoRA", "CLoRASettings", "Composite", "Conform",
    "LoRAComposer", "Masked",
    "Merge", "Method", "MethodSettings", "OMG", "Regional", "Switch", "Weave", "get_method",
]  # fmt: skip
