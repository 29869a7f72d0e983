"""LoRAWeave puts several LoRAs into one picture, each where it belongs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import compose
    from .errors import (
        BaseModelMismatch,
        LoraError,
        LoraWeaveError,
        MethodError,
        ModelNotFound,
        PromptSyntaxError,
        RegionError,
        SceneError,
        TrainingError,
        UnsupportedLoraFormat,
    )
    from .loading import load
    from .methods import METHODS, CLoRASettings
    from .output import ComposeOutput
    from .scene import ComponentWeights, Condition, LoraRef, Region, Scene

__all__ = [
    "METHODS", "BaseModelMismatch", "CLoRASettings", "ComponentWeights", "ComposeOutput",
    "Condition", "LoraError", "LoraRef", "LoraWeaveError", "MethodError", "ModelNotFound",
    "PromptSyntaxError", "Region", "RegionError", "Scene", "SceneError", "TrainingError",
    "UnsupportedLoraFormat", "__version__", "compose", "load",
]  # fmt: skip

# torch and diffusers take seconds to import: `loraweave --help` must not wait for them.
_HOMES = {
    "api": ("compose",),
    "loading": ("load",),
    "methods": ("METHODS", "CLoRASettings"),
    "output": ("ComposeOutput",),
    "scene": ("ComponentWeights", "Condition", "LoraRef", "Region", "Scene"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
