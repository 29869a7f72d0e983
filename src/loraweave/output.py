"""What a composition returns, and pictures that carry how they were made."""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from .errors import SceneError
from .files import write_atomically
from .schedulers import SCHEDULERS

LIBRARIES = ("loraweave", "torch", "diffusers", "transformers")
JSON_KEY = "loraweave"


@dataclass(frozen=True)
class ComposeOutput:
    """Pictures and how they came about. One entry per picture in each list.

    Attributes:
        images: PIL pictures, or an array or tensor if `output_type` asked for that.
        masks: per picture (steps, N, h, w): where each concept wrote, values in [0, 1]; empty
            tensor for methods without masks. N in the order of `info["concepts"]`.
        maps: per picture (steps, N, h, w): each concept's attention, its words' maps divided by
            their maxima and averaged, values in [0, 1].
        info: scene, method, settings, base, LoRAs and conditions with their hashes, versions,
            seconds, denoiser calls and rows; per picture seeds, losses, "regions" (boxes that were
            laid out, by concept; empty without `auto_regions`), "nsfw" (whether the base's safety
            checker made it black, None without one) and "caveats" (why the record is not enough to
            make it again, None if it is); "notes", sentences about what was found in the LoRAs'
            files. Where it was measured, "cost" (`evaluate.cost.drawn_with_cost`).
        work: what the denoiser's calls computed, and how often.
    """

    images: Any
    masks: list[Tensor]
    maps: list[Tensor]
    info: dict[str, Any] = field(default_factory=dict)
    work: Mapping[Any, int] = field(default_factory=dict)

    def save(self, path: str | Path, index: int = 0) -> Path:
        """Write picture `index` as PNG with its metadata; see `save_png`.

        Raises:
            SceneError: the picture is no PIL picture (another `output_type`); see `save_png` too.
        """
        image = self.images[index]
        if not isinstance(image, Image.Image):
            raise SceneError(f"a {type(image).__name__} cannot be saved; use output_type='pil'")
        return save_png(image, path, picture_record(self.info, index))


def picture_record(info: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The part of `info` that makes picture `index` again."""
    keys = ("scene", "method", "settings", "base", "dtype", "device", "loras", "conditions",
            "versions")  # fmt: skip
    record = {key: info[key] for key in keys}
    record["scene"] = {**info["scene"], "seed": info["seeds"][index]}
    if boxes := info.get("regions"):
        record["scene"]["regions"] = {**record["scene"]["regions"], **boxes[index]}
    record["caveat"] = info["caveats"][index]
    if "cost" in info:  # never told unasked: it differs from run to run, and the file with it
        record["cost"] = dict(info["cost"])
    return record


def versions() -> dict[str, str]:
    """Versions of the libraries that a picture depends on."""
    return {name: version(name) for name in LIBRARIES}


def save_png(image: Image.Image, path: str | Path, record: Mapping[str, Any]) -> Path:
    """Write a PNG with A1111's `parameters` text and the whole record as JSON.

    The file appears complete or not at all.

    Raises:
        SceneError: the folder does not exist or cannot be written, or the name is not .png.
    """
    path = Path(path)
    check_output_path(path)
    write_atomically(path, png_bytes(image, record))
    return path


def png_bytes(image: Image.Image, record: Mapping[str, Any]) -> bytes:
    """What `save_png` writes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", _parameters(image, record))
    info.add_text(JSON_KEY, json.dumps(record))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def check_output_path(path: Path) -> None:
    """Raise SceneError if a PNG cannot be written there."""
    if path.suffix.lower() != ".png":
        raise SceneError(f"{path} is not a .png; pictures are written as PNG")
    if path.is_dir():
        raise SceneError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise SceneError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise SceneError(f"the folder {path.parent} cannot be written")


def read_png_record(path: str | Path) -> dict[str, Any]:
    """The record that `save_png` put into a picture.

    Raises:
        SceneError: not a picture, or one without a record.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(JSON_KEY)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SceneError(f"cannot read the picture {path}: {error}") from None
    if not text:
        raise SceneError(f"{path} carries no LoRAWeave record; it was made or saved elsewhere")
    kinds = {"scene": dict, "method": str, "settings": dict, "base": dict, "loras": dict,
             "versions": dict}  # fmt: skip
    try:
        record = json.loads(text)
        whole = all(isinstance(record[key], kind) for key, kind in kinds.items())
        whole = whole and all(isinstance(lora, dict) for lora in record["loras"].values())
        conditions = record.setdefault("conditions", [])  # older pictures have none
        whole = whole and isinstance(conditions, list)
        whole = whole and all(isinstance(one, dict) for one in conditions)
        whole = whole and isinstance(record.get("cost", {}), dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise SceneError(f"the LoRAWeave record in {path} is damaged")
    return record


def _parameters(image: Image.Image, record: Mapping[str, Any]) -> str:
    scene = record["scene"]
    lines = [scene["prompt"]]
    if scene["negative_prompt"]:
        lines.append(f"Negative prompt: {scene['negative_prompt']}")
    hashes = ", ".join(  # without commas in the names, as in A1111
        f"{name.replace(',', '')}: {lora['sha256'][:12]}" for name, lora in record["loras"].items()
    )
    values = {
        "Steps": scene["num_inference_steps"],
        "Sampler": SCHEDULERS[named].label
        if (named := scene.get("scheduler")) in SCHEDULERS
        else record["base"].get("scheduler", "").removesuffix("Scheduler"),
        "CFG scale": scene["guidance_scale"],
        "Seed": scene["seed"],
        "Size": f"{image.width}x{image.height}",
        "Model": record["base"]["name"],
        "Method": record["method"],
        "Lora hashes": hashes,
        "Version": f"LoRAWeave {record['versions']['loraweave']}",
    }
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in values.items() if v != ""))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """As A1111 writes it: in quotes if it would be taken for more than one value."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text
