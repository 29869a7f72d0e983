"""All scores of pictures that carry how they were made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..detect import Segmenter
from ..errors import SceneError
from ..output import read_png_record
from ..progress import track
from ..prompt import pass_prompt
from ..scene import Scene, scene_from_dict
from .encoders import Clip, Dino
from .references import read_picture, read_references
from .similarity import Encoder, instance_similarity, instances_of, to_references, to_text

Features = Mapping[str, Float[Tensor, "R D"]]


@dataclass(frozen=True)
class Made:
    """A picture, and what its record says.

    Attributes:
        path, image: the picture.
        scene: that it shows.
        method: that drew it.
        hashes: by LoRA, of its file.
    """

    path: Path
    image: Image.Image
    scene: Scene
    method: str
    hashes: Mapping[str, str]

    @property
    def nouns(self) -> dict[str, str]:
        """By concept."""
        return {concept.name: concept.noun for concept in self.scene.concepts}


def read_made(paths: Sequence[Path]) -> list[Made]:
    """Pictures with their records.

    Raises:
        SceneError: no picture, one without a record, or one of a scene without concepts.
    """
    found = []
    for path in paths:
        record = read_png_record(path)
        try:
            scene = scene_from_dict(record["scene"])
        except SceneError as error:
            raise SceneError(f"the scene of {path}: {error}") from None
        if not scene.concepts:
            raise SceneError(f"the scene of {path} has no concepts to look for")
        hashes = {name: str(lora.get("sha256")) for name, lora in record["loras"].items()}
        found.append(Made(path, read_picture(path), scene, record["method"], hashes))
    return found


def evaluate_pictures(
    pictures: Sequence[Made], *, clip: Clip | None = None, dino: Dino | None = None,
    references: Path | None = None, segmenter: Segmenter | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Scores of each picture, and their means.

    `clip_t` needs `clip` only; `clip_i` and `dino` need references too, and `instance_clip_i` and
    `instance_dino` a segmenter besides. The text of `clip_t` is the prompt with plain nouns:
    triggers mean nothing to CLIP. Of a prompt that is too long for CLIP the beginning is read, as
    in the papers' code, and the entry says so (`truncated`).

    Args:
        pictures: from `read_made`.
        clip, dino: encoders.
        references: folder with a folder of pictures for each concept, see `draw_references`.
        segmenter: that finds instances, in pictures and references.

    Returns:
        `pictures`, one entry for each, and `mean` over them.

    Raises:
        SceneError: nothing to measure with, something that would not be used, no references of a
            concept, or one name for concepts that differ.
    """
    if references is None and (dino is not None or segmenter is not None):
        raise SceneError(
            "DINO and instances are compared with reference pictures; give their folder"
        )
    named: dict[str, Encoder | None] = {"clip_i": clip, "dino": dino}
    encoders = {name: one for name, one in named.items() if one is not None}
    if clip is None and (references is None or not encoders):
        raise SceneError("give a CLIP model, or a DINO model with reference pictures, or both")
    nouns = _common_nouns(pictures) if references else {}
    own = read_references(references, list(nouns)) if references else {}
    known = {name: _features(own, encoder) for name, encoder in encoders.items()}
    if segmenter is not None:
        cut = {c: _instances(images, nouns[c], segmenter, c) for c, images in own.items()}
        for name, encoder in encoders.items():
            known[f"instance_{name}"] = _features(cut, encoder)
    entries = []
    for made in track(pictures, "evaluate", total=len(pictures)):
        entry: dict[str, Any] = {"picture": str(made.path), "method": made.method}
        features = {name: one.images([made.image])[0] for name, one in encoders.items()}
        if clip is not None:
            entry["clip_t"] = _like_text(made, features["clip_i"], clip)
        if references:
            entry |= _like_references(made, features, encoders, known, segmenter)
        entries.append(entry)
    return {"pictures": entries, "mean": _means(entries)}


def _common_nouns(pictures: Sequence[Made]) -> dict[str, str]:
    """The noun of each concept, which has to be the same in all pictures, as its LoRA has to."""
    nouns: dict[str, str] = {}
    hashes: dict[str, str] = {}
    for made in pictures:
        for name, noun in made.nouns.items():
            sha256 = made.hashes.get(name, "")
            if nouns.setdefault(name, noun) != noun or hashes.setdefault(name, sha256) != sha256:
                raise SceneError(
                    f"{name!r} is another concept in {made.path} than in a picture before it; "
                    "evaluate them one after the other, with references of their own"
                )
    return nouns


def _features(images: Mapping[str, Sequence[Image.Image]], encoder: Encoder) -> Features:
    return {name: encoder.images(own) for name, own in images.items()}


def _instances(
    images: Sequence[Image.Image], noun: str, segmenter: Segmenter, concept: str
) -> list[Image.Image]:
    """The first instance of each reference that has one."""
    found = [own[0] for image in images if (own := instances_of(image, noun, segmenter))]
    if not found:
        raise SceneError(f"no {noun} is found in any reference picture of {concept!r}")
    return found


def _like_text(made: Made, features: Float[Tensor, " D"], clip: Clip) -> dict[str, Any]:
    text = pass_prompt(made.scene.parsed, ()).text
    score = to_text(features, clip.texts([text])[0])
    return {**score, **({} if clip.fits(text) else {"truncated": True})}


def _like_references(
    made: Made, features: Mapping[str, Float[Tensor, " D"]], encoders: Mapping[str, Encoder],
    known: Mapping[str, Features], segmenter: Segmenter | None,
) -> dict[str, Any]:  # fmt: skip
    scores: dict[str, Any] = {}
    nouns, cut = made.nouns, {}
    if segmenter is not None:
        each = {n: instances_of(made.image, n, segmenter) for n in dict.fromkeys(nouns.values())}
        cut = {noun: images for noun, images in each.items() if images}
    for name, encoder in encoders.items():
        own = {concept: known[name][concept] for concept in nouns}
        scores[name] = to_references(features[name], own).as_dict()
        if segmenter is not None:
            own = {concept: known[f"instance_{name}"][concept] for concept in nouns}
            found = instance_similarity(_features(cut, encoder), nouns, own)
            scores[f"instance_{name}"] = found.as_dict()
    return scores


def _means(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of every score, over the pictures that have it."""
    found: dict[str, Any] = {}
    for name in ("clip_t", "clip_i", "dino", "instance_clip_i", "instance_dino"):
        rows = [entry[name] for entry in entries if name in entry]
        keys = ("cosine", "score") if name == "clip_t" else ("min", "avg", "max")
        if rows:
            values = {key: [row[key] for row in rows if row[key] is not None] for key in keys}
            found[name] = {key: mean(own) if own else None for key, own in values.items()}
            if name.startswith("instance"):
                found[name]["missing"] = sum(len(row["missing"]) for row in rows)
    return found
