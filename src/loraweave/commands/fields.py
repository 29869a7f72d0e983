"""Changing single fields of a scene by dotted keys: `loras.cat.weight=0.5`."""

from collections.abc import Mapping
from typing import Any

from ..errors import SceneError
from ..prompt import parse_prompt
from ..scene import Scene, scene_from_dict

BY_NAME = ("loras", "regions", "prompts", "negative_prompts")


def changed(scene: Scene, fields: Mapping[str, Any], options: Mapping[str, Any]) -> Scene:
    """The scene with some fields replaced, checked once when all of them are.

    Args:
        scene: as it was.
        fields: by dotted key; what is nested may be given as a whole or in part.
        options: whole fields, by name, from options of their own.

    Raises:
        SceneError: a key that is given twice or leads nowhere, or a scene that is none.
    """
    if twice := sorted({key.partition(".")[0] for key in fields}.intersection(options)):
        raise SceneError(f"--scene-set {twice[0]} and its own option are both given; leave one out")
    if not fields:
        return scene.replace(**options) if options else scene
    data = {**scene.model_dump(mode="json"), **options}
    for key, value in fields.items():
        _put(data, _steps(key, scene, options), value, key)
    return scene_from_dict(data)


def _steps(key: str, scene: Scene, options: Mapping[str, Any]) -> list[str]:
    """A key taken apart at its dots, but not at those within the name of a LoRA."""
    field, dot, rest = key.partition(".")
    if field not in BY_NAME or not dot:
        return key.split(".")
    parsed = parse_prompt(options.get("prompt", scene.prompt))
    words = (*parsed.concepts, *parsed.styles)
    names = {one.name for one in words}.union(scene.loras, scene.regions, scene.negative_prompts)
    for name in sorted(names, key=len, reverse=True):
        if rest == name:
            return [field, name]
        if rest.startswith(f"{name}."):
            return [field, name, *rest[len(name) + 1 :].split(".")]
    return [field, *rest.split(".")]


def _put(data: dict[str, Any], steps: list[str], value: Any, key: str) -> None:
    for n, step in enumerate(steps[:-1]):
        inner = data.get(step)
        if inner is None:
            inner = data[step] = {}
        if not isinstance(inner, dict):
            place = ".".join(steps[: n + 1])
            raise SceneError(f"--scene-set {key}: {place} is {inner!r} and has no parts; give it "
                             f"as a whole, {place}={{{steps[n + 1]}: ...}}")  # fmt: skip
        data = inner
    data[steps[-1]] = value
