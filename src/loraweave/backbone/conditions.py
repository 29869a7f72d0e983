"""T2I-Adapters (Mou et al. 2023): what they make of a picture, checked against the base.

An adapter reads a picture once and gives one tensor for each down block of the U-Net, which adds
it to that block's states at every step. Pictures are read as diffusers' own pipeline reads them,
values in [0, 1].
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import T2IAdapter
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..brightness import DEEP
from ..errors import BaseModelMismatch, ModelNotFound, SceneError

KINDS = ("full_adapter", "light_adapter")
"""Of diffusers' adapters those for U-Nets that halve the latent from block to block."""
COARSE_KINDS = ("full_adapter_xl",)
"""And those for a first block without attention, which halves before the feature is added."""
WEIGHTS = "diffusion_pytorch_model"
MODES = {1: "L", 3: "RGB"}


def load_adapter(
    folder: Path, dtype: torch.dtype, device: torch.device, allow_pickle: bool = False
) -> tuple[T2IAdapter, str]:
    """An adapter, and the SHA-256 of its weights' file.

    Args:
        folder: of a diffusers `T2IAdapter`; nothing is downloaded.
        dtype, device: of the weights.
        allow_pickle: read `.bin` weights too, with torch's weights-only reader.

    Raises:
        ModelNotFound: no such folder, or one that holds no adapter.
    """
    suffixes = (".safetensors", ".bin") if allow_pickle else (".safetensors",)
    files = [folder / f"{WEIGHTS}{suffix}" for suffix in suffixes]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        pickled = (folder / f"{WEIGHTS}.bin").is_file()
        hint = "a pickle is there; allow it, or save it as safetensors" if pickled else "restore it"
        raise ModelNotFound(f"{files[0]} is not there; {hint}")
    try:
        adapter: Any = T2IAdapter.from_pretrained(
            folder, dtype=dtype, local_files_only=True,
            use_safetensors=file.suffix == ".safetensors",
        )  # fmt: skip
    except Exception as error:  # the loader raises many kinds for damaged folders
        raise ModelNotFound(f"the adapter in {folder} cannot be loaded: {error}") from error
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return adapter.to(device).requires_grad_(False).eval(), digest


def adapter_config(folder: Path) -> Mapping[str, Any]:
    """An adapter's configuration, with diffusers' defaults where the file leaves some out.

    Raises:
        ModelNotFound: no such folder, or one that holds no adapter.
    """
    needed = "give a local folder of a diffusers T2IAdapter (config.json and its weights)"
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "is not there"
        raise ModelNotFound(f"the adapter {folder} {what}; {needed} (nothing is downloaded)")
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFound(f"{folder} has no config.json, so it is no adapter; {needed}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kind = found["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelNotFound(f"{path} is damaged or no model's configuration: {error!r}") from None
    if kind != T2IAdapter.__name__:
        raise ModelNotFound(f"{folder} holds a {kind}, not a T2IAdapter; {needed}")
    defaults = {
        "in_channels": 3, "channels": [320, 640, 1280, 1280], "downscale_factor": 8,
        "adapter_type": KINDS[0],
    }  # fmt: skip
    whole = {**defaults, **found}
    counts = [whole["in_channels"], whole["downscale_factor"]]
    if isinstance(whole["channels"], list):
        counts += whole["channels"] or [None]
    else:
        counts.append(None)
    if not all(type(count) is int and count > 0 for count in counts):
        raise ModelNotFound(
            f"{path} is damaged: in_channels is {whole['in_channels']!r}, channels is "
            f"{whole['channels']!r}, downscale_factor is {whole['downscale_factor']!r}"
        )
    if whole["in_channels"] not in MODES:
        raise ModelNotFound(
            f"the adapter in {folder} reads pictures of {whole['in_channels']} channels; 1 (grey) "
            "and 3 (RGB) are supported"
        )
    return whole


def fitting_kinds(down_blocks: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The kinds of adapters for a U-Net with these down blocks, and by how much more than the
    latent their first feature shrinks the picture."""
    return (KINDS, 1) if "CrossAttn" in down_blocks[0] else (COARSE_KINDS, 2)


def check_fits(
    name: str | Path, adapter: Mapping[str, Any], unet: Mapping[str, Any], factor: int
) -> None:
    """Raise BaseModelMismatch if an adapter was made for another U-Net.

    Args:
        name: of the adapter, for errors.
        adapter, unet: their configurations.
        factor: pixels to a cell of the latent.
    """
    kind, blocks = adapter["adapter_type"], list(unet["down_block_types"])
    kinds, coarser = fitting_kinds(blocks)
    if kind not in kinds:
        raise BaseModelMismatch(
            f"the adapter {name} is a {kind}, made for another kind of base; this one needs "
            f"one of {', '.join(kinds)}"
        )
    found, expected = list(adapter["channels"]), list(unet["block_out_channels"])
    if found != expected:
        raise BaseModelMismatch(
            f"the adapter {name} was made for another base: its features have {found} channels, "
            f"this base's blocks {expected}; give an adapter of this base"
        )
    if adapter["downscale_factor"] != coarser * factor:
        raise BaseModelMismatch(
            f"the adapter {name} was made for another base: it makes one cell of "
            f"{adapter['downscale_factor']} pixels a side, this base one of {coarser * factor}; "
            "give an adapter of this base"
        )
    if not all("CrossAttn" in block for block in blocks[1:-1]):
        # There the feature would be added after the halving, which no adapter's size fits.
        raise BaseModelMismatch(
            f"the adapter {name} does not fit this base, whose U-Net has blocks without attention "
            "between its first and its last one; Stable Diffusion 1.x has none"
        )


def read_picture(
    source: Path | Image.Image, channels: int, size: tuple[int, int]
) -> tuple[Float[Tensor, "1 C H W"], str]:
    """A picture as an adapter reads it, values in [0, 1], and the SHA-256 of its pixels.

    Args:
        source: a file or a picture at hand.
        channels: 1 for grey, 3 for RGB.
        size: width and height of the canvas, which the picture must have.

    Raises:
        SceneError: it cannot be read, or has another size.
    """
    name = "the given picture" if isinstance(source, Image.Image) else f"the picture {source}"
    try:
        if isinstance(source, Image.Image):
            converted = _converted(source, name, channels, size)
        else:
            with Image.open(source) as image:
                converted = _converted(image, name, channels, size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SceneError(f"cannot read {name} of a condition: {error}") from None
    pixels = np.array(converted).reshape(size[1], size[0], channels)
    digest = hashlib.sha256(f"{converted.mode} {size}".encode() + pixels.tobytes())
    values = torch.from_numpy(pixels.astype(np.float32) / 255)
    return values.permute(2, 0, 1)[None].contiguous(), digest.hexdigest()


def _converted(image: Image.Image, name: str, channels: int, size: tuple[int, int]) -> Image.Image:
    if image.size != size:
        raise SceneError(
            f"{name} of a condition has {image.width}x{image.height} pixels and the scene "
            f"{size[0]}x{size[1]}; resize it, or set the scene's width and height"
        )
    if image.mode.startswith(DEEP):
        raise SceneError(f"{name} of a condition has the mode {image.mode}; save it with 8 bits")
    return image.convert(MODES[channels])
