"""Jobs on a real base model, by a manifest, and what draws them.

Their pictures are kept; scores and outcomes are measured with the encoders and the segmenter that
are named, while the picture is at hand.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..api import compose
from ..detect import Segmenter, get_segmenter
from ..errors import MethodError, ModelNotFound, SceneError
from ..evaluate.cost import cost_of
from ..evaluate.encoders import Clip, Dino
from ..evaluate.findings import boxes_of, measured
from ..evaluate.pictures import known_features
from ..evaluate.references import read_references
from ..evaluate.scores import Scorer
from ..layout.boxes import Box
from ..loading import check_base, load
from ..lora.file import read_lora
from ..memory.measured import peak_memory
from ..methods import METHODS, get_method
from ..miniature.judged import Judged, own_settings, wants_regions
from ..miniature.scene_judge import Findings
from ..output import ComposeOutput
from ..prompt import pass_prompt
from ..scene import Scene
from .jobs import told_settings
from .manifests import check, read_manifest

ENDS = 1 << 16
"""Bytes of each end of a file that tell it from others."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """What pictures of a real base are drawn and measured with; paths are those of every worker.

    Attributes:
        base: folder or file of the base model.
        dtype: a name of `DTYPES`.
        clip, dino: folders of encoders, for scores.
        references: folder from `loraweave references`; each concept has one in it.
        segmenter: for scores of instances and outcomes, with folders of its models.
        allow_partial: see `compose`; not what is drawn depends on it, only whether.
    """

    base: str
    dtype: str = "float32"
    clip: str | None = None
    dino: str | None = None
    references: str | None = None
    segmenter: str | None = None
    segmenter_models: tuple[str, ...] = ()
    allow_partial: bool = False

    def contents(self) -> dict[str, Any]:
        """What is in these folders, by hashes, for keys: the same on every machine."""
        named = {"clip": self.clip, "dino": self.dino, "references": self.references}
        models: dict[str, Any] = {k: path and fingerprint(path) for k, path in named.items()}
        models["segmenter"] = [self.segmenter, *map(fingerprint, self.segmenter_models)]
        base = {"sha256": fingerprint(self.base), "dtype": self.dtype}
        return {"base": base, "models": models}


@cache
def fingerprint(path: str) -> str:
    """The first 16 hexadecimal digits of a hash over a file, or over names in a folder and what is
    in them: all of small files, of large ones the size and both ends."""
    root = Path(path)
    digest = hashlib.sha256()
    for one in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if one.is_file():
            size = one.stat().st_size
            name = one.relative_to(root).as_posix() if one != root else ""
            digest.update(f"{name} {size} ".encode())
            with one.open("rb") as file:
                digest.update(file.read(ENDS))
                file.seek(max(size - ENDS, 0))
                digest.update(file.read(ENDS))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class RealJob:
    """One picture of a manifest's scene; see `jobs.Job`.

    Attributes:
        boxes: where the manifest wants the concepts, also where the method is not told.
    """

    suite: str
    scene: Scene
    method: str
    settings: Mapping[str, Any]
    loras: Mapping[str, str]
    package: str
    setting: Setting
    device: str = "cpu"
    boxes: Mapping[str, Sequence[Box]] = field(default_factory=dict)

    @property
    def scene_key(self) -> tuple:
        """The same for the same scene of the same suite, by whatever method."""
        return self.suite, self.scene.prompt, self.scene.seed

    @property
    def label(self) -> str:
        """The scene in words."""
        return f"{self.scene.prompt!r}, seed {self.scene.seed}"

    @property
    def key(self) -> str:
        """The first 16 hexadecimal digits of SHA-256 of the description."""
        text = json.dumps(self.description(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def pictures(self) -> list[str]:
        """Names of its pictures' files."""
        return [f"{self.key}.png"]

    def description(self) -> dict[str, Any]:
        """Plain data for JSON. Where files are on a machine is left out: hashes say which."""
        own = {name: lora.model_dump(mode="json", exclude={"path"})
               for name, lora in self.scene.loras.items()}  # fmt: skip
        scene = {**self.scene.model_dump(mode="json"), "loras": own}
        if scene["scheduler"] is None:  # keys of former results are older
            del scene["scheduler"]
        return {
            "suite": self.suite, "method": self.method,
            "settings": told_settings(self.settings),
            "scene": scene,
            "names": [concept.name for concept in self.scene.concepts],
            "loras": dict(self.loras), "package": self.package, "device": self.device,
            **({"boxes": dict(self.boxes)} if self.boxes and not self.scene.regions else {}),
            **self.setting.contents(),
        }  # fmt: skip

    def drawer(self) -> "RealDrawer":
        """What draws this job, and others of its setting."""
        return RealDrawer(self.setting, self.device)


def real_jobs(
    manifest: str, methods: Sequence[str], setting: Setting, lora_dir: Path,
    data: Path | None = None, *, settings: Mapping[str, Mapping[str, Any]] | None = None,
    first: int | None = None, device: str = "cpu",
) -> list[RealJob]:  # fmt: skip
    """The jobs of a manifest, scene by scene.

    Raises:
        MethodError: no such manifest, method or setting.
        SceneError: something is wrong with the manifest or its data, or LoRAs are missing.
        LoraError: a LoRA's file cannot be read.
    """
    name, read = read_manifest(manifest)
    scenes, faults = check(read, lora_dir, data)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise SceneError(f"{next(iter(faults.values()))}{more}; see `loraweave bench check {name}`")
    scenes = scenes[:first]
    _check(setting, scenes)
    own = {}
    for method in methods:
        if method not in METHODS:
            raise MethodError(f"no method {method!r}; there are: {', '.join(METHODS)}")
        for placed in {bool(scene.regions) for scene in scenes}:
            chosen = own_settings(method, (settings or {}).get(method), placed)
            told = (settings or {}).get(method, {}).get("layout")
            if "layout" in chosen and not placed and told != "strips":
                raise MethodError(
                    f"{name} has scenes without boxes, which {method} needs; leave it out, or cut "
                    f"the picture into strips with --set {method}.layout=strips"
                )
            own[method, placed] = get_method(method, chosen).settings.model_dump(mode="json")
    paths = {str(lora.path) for scene in scenes for lora in scene.loras.values()}
    hashes = {path: read_lora(Path(path)).sha256 for path in paths}
    return [
        RealJob(
            name, scene if wants_regions(method) else scene.replace(regions={}, prompts={}), method,
            own[method, bool(scene.regions)],
            {n: hashes[str(lora.path)] for n, lora in scene.loras.items()}, __version__, setting,
            device, boxes_of(scene, scene.width or 0, scene.height or 0),
        )
        for scene in scenes
        for method in methods
    ]  # fmt: skip


def _check(setting: Setting, scenes: Sequence[Scene]) -> None:
    """Raise for what would fail in every job: no base, no model, no references; and for models
    that nothing would be measured with."""
    folders = {"base model": setting.base, "CLIP model": setting.clip,
               "DINO model": setting.dino}  # fmt: skip
    named = [*folders.items(), *(("segmenter's model", path) for path in setting.segmenter_models)]
    for what, path in named:
        if path is not None and not Path(path).exists():
            raise ModelNotFound(f"no {what} at {path}; models are not downloaded")
    check_base(Path(setting.base))
    encoders = [kind(path) for kind, path in ((Clip, setting.clip), (Dino, setting.dino)) if path]
    if setting.segmenter is not None:
        get_segmenter(setting.segmenter, *map(Path, setting.segmenter_models))
    elif setting.segmenter_models:
        raise SceneError("--segmenter-model is given without --segmenter")
    if setting.references is None and (setting.dino or setting.segmenter):
        raise SceneError("DINO and failures are measured against --references; give their folder")
    if setting.references is not None and not encoders:
        raise SceneError("pictures are compared with references by --clip or --dino; give one")
    if setting.references is not None:
        for name in sorted({concept.name for scene in scenes for concept in scene.concepts}):
            own = read_references(Path(setting.references), [name])[name]
            if setting.segmenter is not None and len(own) < 2:
                raise SceneError(
                    f"{name!r} has one reference picture; what is blended can be told from two on"
                )


class RealDrawer:
    """Draws and measures jobs of one setting.

    Args:
        setting: see `Setting`.
        device: where everything works.
    """

    def __init__(self, setting: Setting, device: str):
        self.setting, self.device = setting, device
        self.measures: dict[str, Any] = {}
        self.pipe = load(setting.base, dtype=DTYPES[setting.dtype], device=device)
        self._known: dict[tuple, Mapping[str, Any]] = {}

    @cached_property
    def scorer(self) -> Scorer:
        """Without references."""
        clip, dino = self.setting.clip, self.setting.dino
        return Scorer(
            Clip(clip, self.device) if clip else None, Dino(dino, self.device) if dino else None
        )

    @cached_property
    def segmenter(self) -> Segmenter | None:
        """That finds instances, if one is named."""
        if self.setting.segmenter is None:
            return None
        folders = [Path(folder) for folder in self.setting.segmenter_models]
        return get_segmenter(self.setting.segmenter, *folders, device=self.device)

    def finish(self, job: RealJob) -> Judged:
        """One picture, drawn and measured."""
        # What lacks references is said before anything is drawn; they are kept for the others.
        self._features({concept.name: concept.noun for concept in job.scene.concepts})
        with peak_memory(self.device) as memory:
            output = self.draw(job)
        cost = cost_of([output], memory)
        return Judged([output], self._findings(job, output.images[0]), cost)

    def draw(self, job: RealJob) -> ComposeOutput:
        """Its picture alone."""
        return compose(
            self.pipe, job.scene, method=job.method, settings=dict(job.settings),
            progress=False, allow_partial=self.setting.allow_partial,
        )  # fmt: skip

    def _findings(self, job: RealJob, image: Any) -> Findings:
        nouns = {concept.name: concept.noun for concept in job.scene.concepts}
        known = self._features(nouns)
        scorer = Scorer(self.scorer.clip, self.scorer.dino, known)
        text = pass_prompt(job.scene.parsed, ()).text
        segmenter = self.segmenter if known else None
        made, found = measured(scorer, image, text, nouns, segmenter, job.boxes)
        scores: dict[str, Any] = {}
        for name, like in made.items():
            scores[name] = like["cosine"] if name == "clip_t" else dict(like["by_concept"])
        if found is None:
            return Findings({}, scores=scores)
        places, contained = found.places or None, found.contained or None
        return Findings(found.outcomes, places, contained, scores=scores)

    def _features(self, nouns: Mapping[str, str]) -> Mapping[str, Any]:
        """Of the references of some concepts, each read once.

        Raises:
            SceneError: of one the segmenter finds too few.
        """
        if self.setting.references is None:
            return {}
        folder = Path(self.setting.references)
        merged: dict[str, dict] = {}
        for item in nouns.items():
            if item not in self._known:
                own = dict([item])
                found = known_features(self.scorer, folder, own, self.segmenter)
                seen = min((len(found[k][item[0]]) for k in found if "instance" in k), default=2)
                if seen < 2:
                    raise SceneError(
                        f"the segmenter finds a {item[1]} in {seen} of the references of "
                        f"{item[0]!r} in {folder}; what is blended can be told from two on: draw "
                        "more with `loraweave references`"
                    )
                self._known[item] = found
            for score, features in self._known[item].items():
                merged.setdefault(score, {}).update(features)
        return merged
