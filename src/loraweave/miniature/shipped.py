"""What ships with the package: the base model, its LoRAs, and the judge's weights."""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import LoraError, ModelNotFound

WEIGHTS = Path(os.environ.get("LORAWEAVE_MINIATURE") or Path(__file__).parent / "weights")
"""Those that ship, or another miniature's, such as `loraweave miniature train` makes."""


def base_folder() -> Path:
    """The miniature as a diffusers folder.

    Raises:
        ModelNotFound: this installation came without weights.
    """
    folder = WEIGHTS / "base"
    if not (folder / "model_index.json").is_file():
        raise ModelNotFound(
            f"the miniature's weights are not in {WEIGHTS}; install the package again, or make "
            "them with `loraweave miniature train` and name their folder in LORAWEAVE_MINIATURE"
        )
    return folder


@cache
def native_side() -> int:
    """Pixels a side of the pictures that the base was made for."""
    unet = json.loads((base_folder() / "unet" / "config.json").read_text())
    vae = json.loads((base_folder() / "vae" / "config.json").read_text())
    return unet["sample_size"] * latent_factor(vae)


def latent_factor(vae: Mapping[str, Any]) -> int:
    """Pixels a side of a latent cell, by an autoencoder's configuration."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def lora_names() -> list[str]:
    """Names of the LoRAs that ship."""
    return sorted(path.stem for path in (WEIGHTS / "loras").glob("*.safetensors"))


def lora_file(name: str) -> Path:
    """The file of a LoRA that ships.

    Raises:
        LoraError: there is none of that name.
    """
    names = lora_names()
    if name not in names:
        raise LoraError(f"no LoRA {name!r} ships with the miniature; there are: {', '.join(names)}")
    return WEIGHTS / "loras" / f"{name}.safetensors"
