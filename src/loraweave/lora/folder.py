"""A folder of LoRAs, where names are enough.

A name is a file's name without `.safetensors`, or that of a PEFT adapter's folder. Where two in
different folders share it, the way from the top is a name too: `styles/ink`. The files are
listed and the name is looked up in the list, so no name leads out of the folder.
"""

import os
from collections import defaultdict
from pathlib import Path

from loraweave.errors import LoraError
from loraweave.messages import close_match

LORA_DIR_VARIABLE = "LORAWEAVE_LORA_DIR"

_SUFFIX = ".safetensors"
_ADAPTER = "adapter_model.safetensors"  # PEFT's name for the file in an adapter's folder


def find_lora(folder: str | Path, name: str) -> Path:
    """The LoRA of that name, anywhere below a folder.

    Hidden folders and linked folders are not searched; linked files are found.

    Raises:
        LoraError: no such folder, no such name, or several of that name.
    """
    known = list_loras(folder)
    found = known.get(name, [])
    if len(found) == 1:
        return found[0]
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
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if not file.endswith(_SUFFIX) or file.startswith("."):
                continue
            path = Path(place, file)
            if file == _ADAPTER and path.parent != top:
                path = path.parent
            way = path.relative_to(top).as_posix().removesuffix(_SUFFIX)
            for name in {way, way.rpartition("/")[2]}:
                names[name].append(path)
    return dict(names)
