"""Plain data from YAML and JSON files that others wrote."""

import json
from pathlib import Path
from typing import Any

import yaml

from loraweave.errors import SceneError

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 1_000_000


def read_data(path: Path) -> Any:
    """What a .yaml, .yml or .json file of at most 1 MB holds.

    Raises:
        SceneError: it cannot be read, is too large, or is not valid.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SceneError(f"{path} is no scene file; name it .yaml, .yml or .json")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SceneError(f"cannot read the scene file {path}: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise SceneError(f"{path} is larger than {MAX_FILE_BYTES} bytes, so no scene; check it")
    load = json.loads if path.suffix.lower() == ".json" else yaml.safe_load
    try:
        return load(raw.decode("utf-8-sig"))
    except Exception as error:  # safe_load lets KeyError, AttributeError, ... out for bad values
        raise SceneError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error
