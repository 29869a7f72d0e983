"""Plain data from YAML and JSON that others wrote."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from loraweave.errors import SceneError

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML as people write it: keys are words, and 1e-2 is a number.

    YAML 1.1 reads the key `on` as true, and 1e-2 as a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    key.tag = self.DEFAULT_SCALAR_TAG
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$", re.ASCII),
    list("+-.0123456789"),
)  # fmt: skip


def read_yaml(text: str) -> Any:
    """Plain data from YAML.

    Raises:
        ValueError: it is not valid.
    """
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # it lets KeyError, AttributeError, ... out for bad values
        raise ValueError(str(error)) from error


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
    load = json.loads if path.suffix.lower() == ".json" else read_yaml
    try:
        return load(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error
