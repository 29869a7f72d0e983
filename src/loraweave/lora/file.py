"""Reading LoRA files from disk, with nothing executed and nothing allocated before it is checked.

A safetensors file starts with the length of a JSON header, the header (names, types, shapes and
byte ranges of the tensors, plus text metadata) and then the bytes. The header alone says how long
the file must be, so a damaged upload is noticed before any memory is reserved for tensors.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraweave.errors import LoraError, UnsupportedLoraFormat
from loraweave.lora.pickles import PICKLE_SUFFIXES, read_pickle

ADAPTER_CONFIG = "adapter_config.json"
"""Key in `LoraFile.metadata` of the PEFT configuration found beside the tensors, as JSON text."""

_MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
_MAX_CONFIG = 10_000_000
_FOLDER_NAMES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
_PARTS = ("unet", "text_encoder")
_EMBEDDINGS = ("learned_embeds.safetensors", "learned_embeds.bin")


@dataclass(frozen=True)
class LoraFile:
    """The tensors and texts of one LoRA.

    Attributes:
        path: the file that the tensors came from (inside the folder, if a folder was given), or
            the folder, if it has a part for each model.
        tensors: name in the file -> tensor, on the CPU.
        metadata: the header's texts; a PEFT configuration is added under `ADAPTER_CONFIG`.
        sha256: of the whole file, lower-case hexadecimal; of the hashes, if there are several.
        files: all files that were read.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    files: tuple[Path, ...] = ()


def read_lora(path: str | Path, allow_pickle: bool = False) -> LoraFile:
    """Read a LoRA from a safetensors file or from a PEFT or diffusers adapter folder.

    Textual-inversion embeddings beside it are read with it: `NAME_emb.safetensors` beside
    `NAME.safetensors`, and `learned_embeds.safetensors` or `.bin` in the folder.

    Args:
        path: a file, or a folder with `adapter_model.safetensors` (and `adapter_config.json`) or
            `pytorch_lora_weights.safetensors`, or one with such folders `unet` and
            `text_encoder`.
        allow_pickle: also read .bin, .pt, .pth and .ckpt, with torch's weights-only reader.

    Raises:
        LoraError: no such file or folder, or a folder without an adapter.
        UnsupportedLoraFormat: damaged, truncated, not safetensors, pickle without `allow_pickle`.
    """
    folder = Path(path).expanduser()
    if parts := parts_of(folder):
        return _read_parts(folder, parts, allow_pickle)
    source = find_file(path)
    tensors, metadata = _read_tensors(source, allow_pickle)
    config = read_adapter_config(source)
    if config is not None:
        metadata = {**metadata, ADAPTER_CONFIG: config}
    files = [source]
    for beside in embeddings_beside(source, folder.is_dir()):
        files.append(beside)
        for name, tensor in _read_tensors(beside, allow_pickle)[0].items():
            if name in tensors:
                raise UnsupportedLoraFormat(
                    f"{source.name} and {beside.name} beside it both have {name}; remove one."
                )
            tensors[name] = tensor
    if not tensors:
        raise UnsupportedLoraFormat(f"{source.name} holds no tensors, so it is not a LoRA.")
    return LoraFile(source, tensors, metadata, _joint_sha256(files), tuple(files))


def _read_tensors(source: Path, allow_pickle: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if source.suffix.lower() in PICKLE_SUFFIXES:
        return read_pickle(source, allow_pickle), {}
    metadata = read_header(source)[1]
    try:
        return load_file(source), metadata
    except (SafetensorError, ValueError) as error:
        raise UnsupportedLoraFormat(
            f"{source.name} is damaged: {error}. Download it again."
        ) from error


def _read_parts(folder: Path, parts: list[str], allow_pickle: bool) -> LoraFile:
    """A folder with an adapter for each model, as peft's own trainers write it."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    files: list[Path] = []
    for part in parts:
        own = read_lora(folder / part, allow_pickle)
        tensors |= {f"{part}.{name}": tensor for name, tensor in own.tensors.items()}
        found = json.loads(own.metadata.get(ADAPTER_CONFIG, "{}"))
        config |= {f"{part}.{name}": value for name, value in found.items()}
        metadata |= {k: v for k, v in own.metadata.items() if k != ADAPTER_CONFIG}
        files += own.files
    for beside in embeddings_beside(folder / "unet", True):
        tensors |= _read_tensors(beside, allow_pickle)[0]
        files.append(beside)
    metadata[ADAPTER_CONFIG] = json.dumps(config)
    return LoraFile(folder, tensors, metadata, _joint_sha256(files), tuple(files))


def _joint_sha256(files: list[Path]) -> str:
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def parts_of(folder: Path) -> list[str]:
    """Folders in this one that hold a part of one LoRA each; none if it is no such folder."""
    parts = [part for part in _PARTS if (folder / part).is_dir()]
    return [] if adapter_in(folder) else parts


def embeddings_beside(source: Path, in_folder: bool) -> list[Path]:
    """Files with the embeddings that belong to the adapter `source`."""
    names = [f"{source.stem}_emb.safetensors", *(_EMBEDDINGS if in_folder else ())]
    return [source.with_name(name) for name in names if source.with_name(name).is_file()]


def adapter_in(folder: Path) -> Path | None:
    """The file of the adapter that a folder holds."""
    return next((folder / n for n in _FOLDER_NAMES if (folder / n).is_file()), None)


def find_file(path: str | Path) -> Path:
    """The file to read: `path` itself, or the adapter inside the folder `path`."""
    source = Path(path).expanduser()
    if source.is_file():
        return source
    if not source.exists():
        raise LoraError(f"No LoRA file {source}. Check the path; the folder is searched as given.")
    if found := adapter_in(source):
        return found
    raise LoraError(
        f"The folder {source} holds no adapter: expected {_FOLDER_NAMES[0]} (with "
        f"{ADAPTER_CONFIG}) or {_FOLDER_NAMES[1]}. Give the path of the LoRA file itself."
    )


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Header of a safetensors file: (tensor name -> dtype, shape, data_offsets), and metadata.

    Raises:
        UnsupportedLoraFormat: not safetensors, or the file's length is not what the header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= _MAX_HEADER:
            raise UnsupportedLoraFormat(_not_safetensors(path, start))
        if size < 8 + length:
            # Text read as a number is a huge length: say what the file is, if that can be seen.
            looks_right = file.read(1) == b"{"
            problem = _truncated(path, 8 + length, size) if looks_right else None
            raise UnsupportedLoraFormat(problem or _not_safetensors(path, start))
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", None) or {}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        metadata = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UnsupportedLoraFormat(_not_safetensors(path, start)) from error
    if size < 8 + length + end:
        raise UnsupportedLoraFormat(_truncated(path, 8 + length + end, size))
    if size > 8 + length + end:
        raise UnsupportedLoraFormat(
            f"{path.name} is {size} bytes, but its header accounts for {8 + length + end}: "
            "the file is damaged. Download it again."
        )
    return header, metadata


def _truncated(path: Path, expected: int, size: int) -> str:
    return (
        f"{path.name} is a truncated upload: its header needs {expected} bytes, the file has "
        f"{size}. Download it again; if it stays this size, the published file is broken."
    )


def _not_safetensors(path: Path, start: bytes) -> str:
    if start.startswith(b"version "):
        return f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull`."
    if start.lstrip().startswith(b"<"):
        return f"{path.name} is a web page, not a LoRA: the download needs another address."
    if start.startswith((b"PK", b"\x80")):
        return (
            f"{path.name} is a pickle or zip file under another name, and pickle files can run "
            "code. Convert it to safetensors, or name it .bin and allow pickle explicitly."
        )
    return f"{path.name} is not a safetensors file. Give a .safetensors LoRA."


def read_adapter_config(source: Path) -> str | None:
    """Text of the PEFT configuration that belongs to the adapter file `source`, if there is one.

    Also found under a common prefix: `cat_adapter_model.safetensors`, `cat_adapter_config.json`.
    """
    if "adapter_model" not in source.stem:
        return None
    beside = source.with_name(source.stem.replace("adapter_model", "adapter_config") + ".json")
    if not beside.is_file():
        return None
    if beside.stat().st_size > _MAX_CONFIG:
        raise UnsupportedLoraFormat(f"{beside.name} is far too large for a PEFT configuration.")
    try:
        text = beside.read_text(encoding="utf-8")
        config = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UnsupportedLoraFormat(
            f"{beside.name} is not valid JSON: {error}. The adapter's alpha is in it, so it is "
            "needed; download it again."
        ) from error
    if not isinstance(config, dict):
        raise UnsupportedLoraFormat(f"{beside.name} is not a PEFT configuration.")
    return text


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, for tensors that never were a file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
