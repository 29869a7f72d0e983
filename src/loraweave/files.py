"""Writing files so that they are whole or not there."""

import os
from pathlib import Path
from zlib import crc32


def temporary_beside(path: Path) -> Path:
    """Where this process may prepare what becomes `path` by renaming; short, so that every name
    that the system takes can be written."""
    return path.with_name(f".{crc32(path.name.encode()):08x}.{os.getpid()}.tmp")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that `path` is always either the old or the whole new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
