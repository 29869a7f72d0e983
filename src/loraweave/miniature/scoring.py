"""The papers' scores with the encoders and references that ship with the miniature.

Of the references only means are kept: the mean cosine with unit vectors is the product with their
mean, so nothing is lost.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image
from safetensors.torch import load_file

from ..detect.components import left_to_right
from ..errors import ModelNotFound, SceneError
from ..evaluate.encoders import Clip, Dino
from ..evaluate.scores import SCORES, Features, Scorer
from .judge import Judge
from .shipped import WEIGHTS, lora_file, lora_names

CLIP, DINO = WEIGHTS / "clip", WEIGHTS / "dino"
REFERENCES = WEIGHTS / "references.safetensors"
"""`SCORE.CONCEPT`: (1, D), the mean of the references' unit vectors."""


class Looking:
    """The judge as a segmenter for pictures of some subjects.

    Args:
        judge: that looks.
        wanted: how many of each class there should be.
    """

    def __init__(self, judge: Judge, wanted: Mapping[str, int]):
        self.judge, self.wanted = judge, dict(wanted)

    def find(self, image: Image.Image, noun: str) -> list[Bool[np.ndarray, "h w"]]:
        """Masks of the instances of a class, from left to right."""
        found = self.judge.found(image, sum(self.wanted.values()), self.wanted)
        return left_to_right([mask for kind, mask in found if kind == noun])


@cache
def load_scorer() -> Scorer:
    """What scores pictures of the miniature's concepts; it works on the processor.

    Raises:
        ModelNotFound: this installation came without encoders.
    """
    if not REFERENCES.is_file():
        raise ModelNotFound(f"no {REFERENCES}; make it with `loraweave miniature train`")
    known: dict[str, dict] = {score: {} for score in SCORES}
    for key, mean in load_file(REFERENCES).items():
        score, _, name = key.partition(".")
        known[score][name] = mean
    return Scorer(Clip(CLIP), Dino(DINO), known)


def shipped_references(hashes: Mapping[str, str]) -> Mapping[str, Features]:
    """References of concepts by LoRAs that ship.

    Args:
        hashes: by concept the SHA-256 of its LoRA's file.

    Raises:
        SceneError: a LoRA that does not ship, or is no concept.
        ModelNotFound: see `load_scorer`.
    """
    known, names = load_scorer().known, shipped_names()
    found: dict[str, dict] = {score: {} for score in SCORES}
    for concept, sha256 in hashes.items():
        name = names.get(sha256)
        if name is None or name not in known["clip_i"]:
            raise SceneError(
                f"{concept!r} has no LoRA of a concept that ships with the miniature; draw its "
                "references with `loraweave references`"
            )
        for score in SCORES:
            found[score][concept] = known[score][name]
    return found


@cache
def shipped_names() -> dict[str, str]:
    """Names of the LoRAs that ship, by the SHA-256 of their files."""
    return {hashlib.sha256(lora_file(n).read_bytes()).hexdigest(): n for n in lora_names()}


@cache
def scorer_version() -> str:
    """The first 12 hexadecimal digits of a hash over what the scores of pictures depend on."""
    paths = [p for folder in (CLIP, DINO) for p in sorted(folder.iterdir())]
    paths += [REFERENCES, WEIGHTS / "judge" / "segmenter.safetensors"]
    return _digest(WEIGHTS, paths)[:12]


def references_version(weights: Path, names: Sequence[str]) -> str:
    """A hash over what the references of some concepts are made with; their file says it, too.

    Of the judge that is what finds instances, not how it decides what becomes of them.
    """
    paths = [p for part in ("base", "clip", "dino") for p in sorted((weights / part).rglob("*"))]
    paths.append(weights / "judge" / "segmenter.safetensors")
    paths += [weights / "loras" / f"{name}.safetensors" for name in names]
    areas = json.loads((weights / "judge" / "judge.json").read_text())["least_area"]
    own = _digest(weights, [path for path in paths if path.is_file()])
    return hashlib.sha256(f"{own} {json.dumps(areas)}".encode()).hexdigest()


def _digest(weights: Path, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        own = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(weights)} {own}".encode())
    return digest.hexdigest()
