"""A job: one scene by one method with all that its outcome depends on.

Its key is a hash of that description, so a finished job is found again whatever file or order it
came in, and a change of a default, of the miniature or of the package makes it a new one.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import MethodError
from ..methods import get_method
from ..miniature.judged import TRUE_MASKS, YARDSTICKS, own_settings
from ..miniature.prompts import PLACED, SUITES, ConceptScene, Split, scenes
from ..miniature.shipped import WEIGHTS, lora_file

SIZES = {"quick": (15, 2), "full": (20, 2)}
"""Number of scenes, and of noises for each."""
PLACED_COUNTS = {
    "quick": {1: 8, 2: 8, 3: 8, 4: 4, 5: 4}, "full": {1: 40, 2: 40, 3: 30, 4: 20, 5: 20},
}  # fmt: skip
"""Number of scenes where each has its own layout, by the number of concepts."""


@dataclass(frozen=True)
class Job:
    """One picture to be drawn and judged.

    Attributes:
        suite, split: where the scene is from.
        names, background, seed, style: the scene.
        method: or yardstick.
        settings: all of the method's, defaults too.
        steps: of denoising.
        miniature: version of what the scene depends on, see `miniature_version`.
        package: version.
        attribute: of the scene, if it has one.
        device: that it is drawn on.
    """

    suite: str
    split: Split
    names: tuple[str, ...]
    background: str
    seed: int
    style: str | None
    method: str
    settings: Mapping[str, Any]
    steps: int
    miniature: str
    package: str
    attribute: tuple[str, str] | None = None
    device: str = "cpu"

    @property
    def scene(self) -> ConceptScene:
        """The scene alone."""
        placed = self.suite in PLACED
        return ConceptScene(
            self.names, self.background, self.seed, self.style, placed, self.attribute
        )

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of SHA-256 of the description."""
        text = json.dumps(self.description(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def description(self) -> dict[str, Any]:
        """Plain data for JSON."""
        text = {**asdict(self), "names": list(self.names), "settings": dict(self.settings)}
        for later, usual in (("attribute", None), ("device", "cpu")):
            if text[later] == usual:
                del text[later]  # keys of former results are older than these fields
        return text


def suite_jobs(
    suite: str, methods: Sequence[str], size: str = "quick", *, split: Split = "report",
    steps: int = 50, settings: Mapping[str, Mapping[str, Any]] | None = None,
    first: int | None = None, device: str = "cpu",
) -> list[Job]:  # fmt: skip
    """The jobs of a suite, scene by scene.

    Args:
        suite: a name of `SUITES`.
        methods: of `loraweave.METHODS`, or yardsticks.
        size: a name of `SIZES`.
        split: `report`, or `tuning` for choosing settings.
        steps: of denoising.
        settings: by method, where they are not the defaults.
        first: so many scene-seeds only.
        device: that they are drawn on.

    Raises:
        MethodError: no such suite, size, method or setting.
    """
    for kind, name, known in (("suite", suite, SUITES), ("size", size, SIZES)):
        if name not in known:
            raise MethodError(f"no {kind} {name!r}; there are: {', '.join(known)}")
    placed = suite in PLACED
    own = {m: _settings(m, (settings or {}).get(m, {}), placed) for m in methods}
    counts = (PLACED_COUNTS[size][SUITES[suite]], 1) if placed else SIZES[size]
    chosen = scenes(suite, split, *counts)[:first]
    versions = {scene: miniature_version(scene.loras) for scene in chosen}
    return [
        Job(suite, split, scene.names, scene.background, scene.seed, scene.style, method,
            own[method], steps, versions[scene], __version__, scene.attribute, device)
        for scene in chosen
        for method in methods
    ]  # fmt: skip


def _settings(method: str, given: Mapping[str, Any], placed: bool) -> dict[str, Any]:
    if method in YARDSTICKS:
        return {**(TRUE_MASKS if method == "true_masks" else {}), **given}
    return get_method(method, own_settings(method, given, placed)).settings.model_dump(mode="json")


def miniature_version(loras: Sequence[str]) -> str:
    """The first 12 hexadecimal digits of a hash over what a scene with these LoRAs depends on.

    That is the base, the judge, the finder and those LoRAs: another one may change, and results
    without it stay valid.
    """
    paths = [p for p in sorted((WEIGHTS / "base").rglob("*")) if p.is_file()]
    paths += [*sorted((WEIGHTS / "judge").iterdir()), WEIGHTS / "finder.safetensors"]
    paths += [lora_file(name) for name in sorted(loras)]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(WEIGHTS)} {_digest(path)}".encode())
    return digest.hexdigest()[:12]


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
