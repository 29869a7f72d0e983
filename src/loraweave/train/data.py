"""A folder of pictures, as a LoRA is trained from: any size, any format that Pillow reads.

A caption is the text in the .txt file of the same name beside a picture.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from loraweave.brightness import DEEP, brightness
from loraweave.errors import TrainingError

Image.init()
SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf", ".ps", ".eps", ".mpg", ".mpeg"}
"""File names that are taken for pictures; everything else in the folder is left alone."""


@dataclass(frozen=True)
class Example:
    """One training picture.

    Attributes:
        path: where it is.
        caption: text beside it, or None.
    """

    path: Path
    caption: str | None


def find_examples(folder: str | Path) -> list[Example]:
    """The pictures of a folder, by name; folders inside it are not searched.

    Raises:
        TrainingError: no such folder, no pictures in it, or a caption that is not UTF-8 text.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise TrainingError(f"No folder {folder}. Give the folder that holds the pictures.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise TrainingError(
            f"No pictures in {folder}. Put the pictures (.png, .jpg, .webp, ...) directly in it."
        )
    return [Example(path, _caption(path)) for path in paths]


def _caption(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        text = " ".join(beside.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise TrainingError(f"The caption {beside} is not UTF-8 text. Save it as UTF-8.") from error
    return text or None


def load_picture(path: Path, width: int, height: int) -> Image.Image:
    """Read, turn upright, flatten on white, resize and crop from the centre.

    Args:
        path: the picture.
        width: of the result, in pixels.
        height: of the result, in pixels.

    Raises:
        TrainingError: the picture cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.seek(0)
            upright = ImageOps.exif_transpose(image)
            return ImageOps.fit(
                _flatten(upright), (width, height), Image.Resampling.LANCZOS, centering=(0.5, 0.5)
            )
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise TrainingError(
            f"Cannot read the picture {path}: {error}. Replace it or take it out of the folder."
        ) from error


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, with whatever is transparent on white."""
    if image.mode.startswith(DEEP):
        image = Image.fromarray((brightness(image, (255, 65535)) * 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """(3, height, width) in [-1, 1], as the VAE reads it."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1) / 127.5 - 1.0


def examples_sha256(examples: list[Example]) -> str:
    """SHA-256 over names, bytes and captions: equal only if the training data is equal."""
    digest = hashlib.sha256()
    for example in examples:
        content = hashlib.sha256(example.path.read_bytes()).hexdigest()
        digest.update(f"{example.path.name}\0{content}\0{example.caption}\n".encode())
    return digest.hexdigest()
