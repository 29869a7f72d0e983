"""LoRAWeave puts several LoRAs into one picture, each where it belongs."""

__version__ = "0.1.0"

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
from .scene import LoraRef, Region, Scene

__all__ = [
    "METHODS", "BaseModelMismatch", "CLoRASettings", "ComposeOutput", "LoraError", "LoraRef",
    "LoraWeaveError", "MethodError", "ModelNotFound", "PromptSyntaxError", "Region",
    "RegionError", "Scene", "SceneError", "TrainingError", "UnsupportedLoraFormat",
    "__version__", "compose", "load",
]  # fmt: skip
