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

import torch

from .. import __version__
from ..errors import MethodError
from ..methods import get_method
from ..miniature.judged import TRUE_MASKS, YARDSTICKS, Judged, SceneDrawer, own_settings
from ..miniature.scenes import ConceptScene, Split
from ..miniature.scoring import scorer_version
from ..miniature.shipped import WEIGHTS, lora_file
from ..output import ComposeOutput
from ..precision import DType
from ..schedulers import scheduler_name
from .suites import SIZES, Size, read_suite, suite_names

LATER: Mapping[str, Any] = {
    "placed": False, "attribute": None, "place": None, "worn": None, "relation": None, "wording": 0,
    "crowded": False, "device": "cpu", "scheduler": None, "dtype": "float32",
}  # fmt: skip
LATER_SETTINGS: Mapping[str, Any] = {
    "update_every": 1, "mask_until": None, "frozen": "passes", "unconditional": "own",
    "room": 0.0, "refresh": 0.0, "placed_updates": None,
}  # fmt: skip
"""Fields, and settings of methods, that keys of former results are older than: they count where
they are not the usual."""


@dataclass(frozen=True)
class Job:
    """One picture to be drawn and judged.

    Attributes:
        suite, split: where the scene is from.
        scene: with its own noise.
        method: or yardstick.
        settings: all of the method's, defaults too.
        steps: of denoising.
        miniature: version of what the scene depends on, see `miniature_version`.
        package: version.
        device: that it is drawn on.
        scheduler: a name of `loraweave.schedulers`; the miniature's own if None.
        dtype: that it is drawn in.
    """

    suite: str
    split: Split
    scene: ConceptScene
    method: str
    settings: Mapping[str, Any]
    steps: int
    miniature: str
    package: str
    device: str = "cpu"
    scheduler: str | None = None
    dtype: DType = "float32"

    @property
    def setting(self) -> str:
        """There is one miniature, in several precisions."""
        return self.dtype

    @property
    def label(self) -> str:
        """The scene in words."""
        return f"{', '.join(self.scene.names)} in {self.scene.background}, seed {self.scene.seed}"

    @property
    def pictures(self) -> list[str]:
        """Names of its pictures' files."""
        if self.method != "alone":
            return [f"{self.key}.png"]
        return [f"{self.key}_{name}.png" for name in self.scene.names]

    def drawer(self) -> "MiniatureDrawer":
        """What draws this job, and others for its device."""
        return MiniatureDrawer(self.device, self.dtype)

    @property
    def scene_key(self) -> tuple:
        """The same for the same scene of the same suite, by whatever method; in a fixed order."""
        scene = self.scene
        own = scene.names, scene.background, scene.seed, scene.style or ""
        return self.suite, *own, str(scene)

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of SHA-256 of the description."""
        text = json.dumps(self.description(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def description(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = told_settings(self.settings)
        flat = {**asdict(self), **asdict(self.scene), "settings": own}
        del flat["scene"]
        if self.suite in suite_names():  # which says whether it is placed
            del flat["placed"]
        told = {k: v for k, v in flat.items() if k not in LATER or v != LATER[k]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}


def told_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of all of a method's that a key has: all but what it is older than."""
    return {k: v for k, v in settings.items() if k not in LATER_SETTINGS or v != LATER_SETTINGS[k]}


class MiniatureDrawer:
    """Draws and judges jobs, if they are meant for this version and these weights.

    Args:
        device: that draws.
        dtype: in which.
    """

    def __init__(self, device: str, dtype: DType = "float32"):
        self.drawer = SceneDrawer(device, getattr(torch, dtype))
        self.measures = {"scorer": scorer_version()}

    def finish(self, job: Job) -> Judged:
        """One picture, drawn and judged.

        Raises:
            MethodError: the job asks for another version.
        """
        here = __version__, miniature_version(job.scene.loras)
        if here != (job.package, job.miniature):
            raise MethodError(f"its worker has loraweave {here[0]} or other weights")
        return self.drawer.draw(job.scene, job.method, job.settings, job.steps, job.scheduler)

    def draw(self, job: Job) -> list[ComposeOutput]:
        """Its pictures alone."""
        return self.drawer.outputs(job.scene, job.method, job.settings, job.steps, job.scheduler)


def suite_jobs(
    suite: str, methods: Sequence[str], size: Size = "quick", *, split: Split = "report",
    steps: int = 50, settings: Mapping[str, Mapping[str, Any]] | None = None,
    first: int | None = None, device: str = "cpu", scheduler: str | None = None,
    dtype: DType = "float32",
) -> list[Job]:  # fmt: skip
    """The jobs of a suite, scene by scene.

    Args:
        suite: a name of `suite_names`, or the path of a suite's file.
        methods: of `loraweave.METHODS`, or yardsticks.
        size: `quick` or `full`.
        split: `report`, or `tuning` for choosing settings.
        steps: of denoising.
        settings: by method, where they are not the defaults.
        first: so many scene-seeds only.
        device: that they are drawn on.
        scheduler: a name of `loraweave.schedulers`; the miniature's own if None.
        dtype: that they are drawn in.

    Raises:
        MethodError: no such suite, size, method or setting.
        SceneError: something is wrong with the suite's file, or no such scheduler.
    """
    if size not in SIZES:
        raise MethodError(f"no size {size!r}; there are: {', '.join(SIZES)}")
    read = read_suite(suite)
    if read.pool == "held_out" and split == "tuning":
        raise MethodError(f"nothing is tuned on the concepts of {read.name}; take another suite")
    own = {m: _settings(m, (settings or {}).get(m, {}), read.placed) for m in methods}
    for method, chosen in own.items():
        if chosen.get("layout") == "regions" and not read.placed:
            raise MethodError(
                f"the scenes of {read.name} have no boxes, which {method} needs with "
                "layout=regions; leave that out for strips, or take boxes2 to boxes5"
            )
    scheduler = None if scheduler is None else scheduler_name(scheduler)
    chosen = read.drawn(size, split)[:first]
    versions = {scene: miniature_version(scene.loras) for scene in chosen}
    return [
        Job(read.name, split, scene, method, own[method], steps, versions[scene], __version__,
            device, scheduler, dtype)
        for scene in chosen
        for method in methods
    ]  # fmt: skip


def _settings(method: str, given: Mapping[str, Any], placed: bool) -> dict[str, Any]:
    if method == "true_masks":
        own = {**TRUE_MASKS, **given}
        get_method("masked", own)  # says what is wrong with them
        return own
    if method in YARDSTICKS:
        if given:
            raise MethodError(f"the yardstick {method!r} has no settings; leave out {min(given)}")
        return {}
    return get_method(method, own_settings(method, given, placed)).settings.model_dump(mode="json")


@cache
def miniature_version(loras: tuple[str, ...]) -> str:
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
