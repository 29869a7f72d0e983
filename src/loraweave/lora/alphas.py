"""Alpha where the tensors do not carry it: beside a PEFT file, or in a safetensors header.

A PEFT LoRA of rank 4 and alpha 16 must be applied at scale 4. Its tensors do not say so; only
`adapter_config.json` or the header entry `lora_adapter_metadata` that diffusers writes does.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from loraweave.errors import UnsupportedLoraFormat
from loraweave.lora.file import ADAPTER_CONFIG

HEADER_CONFIG = "lora_adapter_metadata"
_KINDS = ("LORA", "LOHA", "LOKR")
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")


class Alphas:
    """Scales of one file's modules, from its PEFT configuration.

    Args:
        label: the file's name, for messages.
        metadata: `LoraFile.metadata`.

    Raises:
        UnsupportedLoraFormat: the configuration is unreadable, or of an adapter that is no LoRA.
    """

    def __init__(self, label: str, metadata: Mapping[str, str]):
        self.label = label
        self.configs = read_configs(label, metadata)
        self.kinds = {str(c.get("peft_type") or "LORA") for c in self.configs.values()}
        if strange := sorted(self.kinds - set(_KINDS)):
            raise UnsupportedLoraFormat(
                f"{label} is a {strange[0]} adapter by its configuration; of peft's kinds "
                f"{', '.join(_KINDS)} are read."
            )

    def check(self, families: Iterable[str], dora: bool) -> None:
        """The configuration and the tensors must be of one kind.

        Args:
            families: "LoRA", "LoHa", "LoKr" as the tensors have them.
            dora: whether they have magnitudes.

        Raises:
            UnsupportedLoraFormat: they are not.
        """
        found = sorted({family.upper() for family in families})
        if self.kinds and found and set(found) != self.kinds:
            raise UnsupportedLoraFormat(
                f"{self.label} is a {' and '.join(sorted(self.kinds))} adapter by its "
                f"configuration, but its tensors are those of {' and '.join(found)}. One of the "
                "two belongs to another adapter."
            )
        if not dora and any(config.get("use_dora") for config in self.configs.values()):
            raise UnsupportedLoraFormat(
                f"{self.label} is a DORA adapter by its configuration, but it has no magnitudes. "
                "Without them it would draw something else; save it again with them."
            )

    def scale(self, component: str, path: str, rank: int | None) -> float:
        """alpha / rank of a module, or alpha / sqrt(rank) if rank-stabilised; 1 if not known.

        Args:
            component: "unet", "text_encoder".
            path: of the module.
            rank: of its tensors; None for a LoKr of two whole factors, which has none, so that
                the configuration's own rank counts.
        """
        config = self.configs.get(component) or self.configs.get("") or {}
        alpha = self._own(config, path, "alpha_pattern", "lora_alpha", "alpha")
        if rank is None:
            rank = self._own(config, path, "rank_pattern", "r")
        if alpha is None or not isinstance(rank, int) or rank < 1:
            return 1.0
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise UnsupportedLoraFormat(f"{self.label}: alpha {alpha!r} is not a number.")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _own(self, config: Mapping[str, Any], path: str, patterns: str, *names: str) -> Any:
        """What the configuration says for one module, or else for all."""
        own = config.get(patterns) or {}
        if not isinstance(own, dict):
            raise UnsupportedLoraFormat(f"{self.label}: its {patterns} is not a table of modules.")
        for pattern, value in own.items():
            if self._matches(pattern, path):
                return value
        return next((config[name] for name in names if config.get(name) is not None), None)

    def _matches(self, pattern: str, path: str) -> bool:
        # PEFT would run the pattern as a regular expression; a file from elsewhere may not do
        # that here, and the patterns in use are module names.
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", name):
            raise UnsupportedLoraFormat(
                f"{self.label}: its configuration has the pattern {pattern!r}, which is not a "
                "module name."
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
