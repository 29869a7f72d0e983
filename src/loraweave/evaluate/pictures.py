"""All scores of pictures that carry how they were made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

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
from .references import read_references
from .similarity import Encoder, instance_similarity, instances_of, to_references, to_text

SPREAD = ("min", "avg", "max")


class Made(NamedTuple):
    """A picture, and the scene that its record has."""

    path: Path
    image: Image.Image
    scene: Scene
    method: str


def read_made(paths: Sequence[Path]) -> list[Made]:
    """Pictures with their records.

    Raises:
        SceneError: no picture, one without a record, or one of a scene without concepts.
    """
    found = []
    for path in paths:
        record = read_png_record(path)
        scene = scene_from_dict(record["scene"])
        if not scene.concepts:
            raise SceneError(f"the scene of {path} has no concepts to look for")
        with Image.open(path) as image:
            found.append(Made(path, image.convert("RGB"), scene, record["method"]))
    return found


def evaluate_pictures(
    pictures: Sequence[Made], *, clip: Clip | None = None, dino: Dino | None = None,
    references: Path | None = None, segmenter: Segmenter | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Scores of each picture, and their means.

    `clip_t` needs `clip` only; `clip_i` and `dino` need references too, and `instance_clip_i` and
    `instance_dino` a segmenter besides. The text of `clip_t` is the prompt with plain nouns:
    triggers mean nothing to CLIP.

    Args:
        pictures: from `read_made`.
        clip, dino: encoders.
        references: folder with a folder of pictures for each concept, see `draw_references`.
        segmenter: that finds instances, in pictures and references.

    Returns:
        `pictures`, one entry for each, and `mean` over them.

    Raises:
        SceneError: nothing to measure with, or no references of a concept.
    """
    image_encoders: dict[str, Encoder] = {}
    if references is not None:
        named: dict[str, Encoder | None] = {"clip_i": clip, "dino": dino}
        image_encoders = {name: encoder for name, encoder in named.items() if encoder is not None}
    if clip is None and not image_encoders:
        raise SceneError("give a CLIP model, or a DINO model with reference pictures, or both")
    if segmenter is not None and not image_encoders:
        raise SceneError("instances are compared with reference pictures; give their folder")
    nouns = {c.name: c.noun for made in pictures for c in made.scene.parsed.concepts}
    own = read_references(references, list(nouns)) if references is not None else {}
    known = {  # by score and concept
        name: {concept: encoder.images(images) for concept, images in own.items()}
        for name, encoder in image_encoders.items()
    }
    if segmenter is not None:
        cut = {c: _instances(images, nouns[c], segmenter, c) for c, images in own.items()}
        for name, encoder in image_encoders.items():
            known[f"instance_{name}"] = {c: encoder.images(images) for c, images in cut.items()}
    entries = []
    for made in track(pictures, "evaluate", total=len(pictures)):
        scores = _scores(made, clip, image_encoders, known, segmenter)
        entries.append({"picture": str(made.path), "method": made.method, **scores})
    return {"pictures": entries, "mean": _means(entries)}


def _instances(
    images: Sequence[Image.Image], noun: str, segmenter: Segmenter, concept: str
) -> list[Image.Image]:
    """The first instance of each reference that has one."""
    found = [own[0] for image in images if (own := instances_of(image, noun, segmenter))]
    if not found:
        raise SceneError(f"no {noun} is found in any reference picture of {concept!r}")
    return found


def _scores(
    made: Made, clip: Clip | None, encoders: Mapping[str, Encoder],
    known: Mapping[str, Mapping[str, Float[Tensor, "R D"]]], segmenter: Segmenter | None,
) -> dict[str, Any]:  # fmt: skip
    scores: dict[str, Any] = {}
    nouns = {words.name: words.noun for words in made.scene.parsed.concepts}
    if clip is not None:
        text = pass_prompt(made.scene.parsed, ()).text
        scores["clip_t"] = to_text(clip.images([made.image])[0], clip.texts([text])[0])
    for name, encoder in encoders.items():
        own = {concept: known[name][concept] for concept in nouns}
        scores[name] = to_references(encoder.images([made.image])[0], own).as_dict()
        if segmenter is not None:
            cut = {concept: known[f"instance_{name}"][concept] for concept in nouns}
            found = instance_similarity(made.image, nouns, segmenter, encoder, cut)
            scores[f"instance_{name}"] = found.as_dict()
    return scores


def _means(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of every score, over the pictures that have it."""
    found: dict[str, Any] = {}
    for name in ("clip_t", "clip_i", "dino", "instance_clip_i", "instance_dino"):
        rows = [entry[name] for entry in entries if name in entry]
        keys = ("cosine", "score") if name == "clip_t" else SPREAD
        if rows:
            values = {key: [row[key] for row in rows if row[key] is not None] for key in keys}
            found[name] = {key: mean(own) if own else None for key, own in values.items()}
            if name.startswith("instance"):
                found[name]["missing"] = sum(len(row["missing"]) for row in rows)
    return found
