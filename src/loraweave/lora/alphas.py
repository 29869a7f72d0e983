"""Alpha where the tensors do not carry it: beside a PEFT file, or in a safetensors header.

A PEFT LoRA of rank 4 and alpha 16 must be applied at scale 4. Its tensors do not say so; only
`adapter_config.json` or the header entry `lora_adapter_metadata` that diffusers writes does.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from loraweave.errors import UnsupportedLoraFormat
from loraweave.lora.file import ADAPTER_CONFIG

HEADER_CONFIG = "lora_adapter_metadata"
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")


class Alphas:
    """Scales of one file's modules, from its PEFT configuration.

    Args:
        label: the file's name, for messages.
        metadata: `LoraFile.metadata`.

    Raises:
        UnsupportedLoraFormat: the configuration is unreadable or not one of a plain LoRA.
    """

    def __init__(self, label: str, metadata: Mapping[str, str]):
        self.label = label
        self.configs = read_configs(label, metadata)
        for config in self.configs.values():
            kind = config.get("peft_type") or "LORA"
            if kind != "LORA" or config.get("use_dora"):
                kind = "DORA" if kind == "LORA" else kind
                raise UnsupportedLoraFormat(
                    f"{label} is a {kind} adapter by its configuration; only plain LoRA is "
                    "supported yet."
                )

    def scale(self, component: str, path: str, rank: int) -> float:
        """alpha / rank of a module, or alpha / sqrt(rank) if rank-stabilised; 1 if not known."""
        config = self.configs.get(component) or self.configs.get("")
        if not config or config.get("lora_alpha") is None:
            return 1.0
        alpha = config["lora_alpha"]
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if self._matches(pattern, path):
                alpha = value
                break
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise UnsupportedLoraFormat(f"{self.label}: alpha {alpha!r} is not a number.")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _matches(self, pattern: str, path: str) -> bool:
        # PEFT would run the pattern as a regular expression; a file from elsewhere may not do
        # that here, and the patterns in use are module names.
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", name):
            raise UnsupportedLoraFormat(
                f"{self.label}: its alpha_pattern {pattern!r} is not a module name."
            )
        name, path = name.removeprefix("text_model."), path.removeprefix("text_model.")
        return path == name or (not pattern.startswith("^") and path.endswith(f".{name}"))


def read_configs(label: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Component ("" for all) -> PEFT configuration, from the header and from beside the file."""
    configs: dict[str, dict[str, Any]] = {}
    for key in (HEADER_CONFIG, ADAPTER_CONFIG):
        if key not in metadata:
            continue
        try:
            flat = dict(json.loads(metadata[key]))
        except (ValueError, TypeError, RecursionError) as error:
            raise UnsupportedLoraFormat(
                f"{label}: its {key} is not valid JSON, and alpha is in it: {error}."
            ) from error
        for name, value in flat.items():
            head, _, rest = name.partition(".")
            component, name = (head, rest) if head in _COMPONENTS and rest else ("", name)
            configs.setdefault(component, {})[name] = value
    return configs
