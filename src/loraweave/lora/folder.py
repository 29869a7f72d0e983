"""A folder of LoRAs, where names are enough.

A name is a file's name without `.safetensors`, or that of an adapter's folder, of peft or
diffusers. The way from the top is a name too, `styles/ink`, and comes first where several share
a name. Files with the embeddings of a LoRA belong to it and have no names. All are listed and the
name is looked up in the list, so no name leads out of the folder.
"""

import os
from collections import defaultdict
from pathlib import Path

from loraweave.errors import LoraError
from loraweave.lora.file import adapter_in, embeddings_beside, parts_of
from loraweave.messages import close_match

LORA_DIR_VARIABLE = "LORAWEAVE_LORA_DIR"

_SUFFIX = ".safetensors"


def find_lora(folder: str | Path, name: str) -> Path:
    """The LoRA of that name, anywhere below a folder.

    Hidden folders and linked folders are not searched; linked files are found.

    Raises:
        LoraError: no such folder, no such name, or several of that name.
    """
    known = list_loras(folder)
    found = known.get(name, [])
    own = [path for path in found if _way(path, folder) == name]
    if len(own or found) == 1:
        return (own or found)[0]
    if found:
        ways = sorted(path.relative_to(folder).as_posix() for path in found)
        raise LoraError(
            f"{len(found)} LoRAs {name!r} in {folder}: {', '.join(ways)}; write "
            f"{ways[0].removesuffix(_SUFFIX)!r} in the prompt, or rename one"
        )
    raise LoraError(
        f"no LoRA {name!r} in {folder}{close_match(name, known)}; `{name}{_SUFFIX}` is looked for, "
        f"in folders below too, and {len({p for paths in known.values() for p in paths})} files "
        "are there"
    )


def list_loras(folder: str | Path) -> dict[str, list[Path]]:
    """All names in a folder of LoRAs, each with its files; more than one is ambiguous.

    Raises:
        LoraError: no such folder.
    """
    top = Path(folder)
    if not top.is_dir():
        raise LoraError(f"the folder of LoRAs {top} does not exist; check --lora-dir or "
                        f"{LORA_DIR_VARIABLE}")  # fmt: skip
    names: dict[str, list[Path]] = defaultdict(list)
    for place, folders, files in os.walk(top):
        folder = Path(place)
        adapter, parts = (None, []) if folder == top else _one_lora(folder)
        folders[:] = sorted(n for n in folders if not (n.startswith(".") or n in parts))
        shown = (file for file in sorted(files) if not file.startswith("."))
        found = [folder / file for file in shown if file.endswith(_SUFFIX)]
        belonging = {one for path in found for one in embeddings_beside(path, False)}
        if adapter or parts:
            belonging |= {adapter, *embeddings_beside(adapter or folder / "unet", True)}
            found = [folder, *found]
        for path in found:
            if path not in belonging:
                way = _way(path, top)
                for name in {way, way.rpartition("/")[2]}:
                    names[name].append(path)
    return dict(names)


def _one_lora(folder: Path) -> tuple[Path | None, list[str]]:
    """The file, or the folders of the parts, of the one LoRA that a folder is; neither if none."""
    parts = parts_of(folder)
    return adapter_in(folder), parts if any(adapter_in(folder / part) for part in parts) else []


def _way(path: Path, top: str | Path) -> str:
    return path.relative_to(top).as_posix().removesuffix(_SUFFIX)
