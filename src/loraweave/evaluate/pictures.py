"""All scores of pictures that carry how they were made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..detect import Segmenter
from ..errors import SceneError
from ..output import read_png_record
from ..progress import track
from ..prompt import pass_prompt
from ..scene import Scene, scene_from_dict
from .cost import told_cost
from .encoders import Clip, Dino
from .findings import boxes_of, measured
from .references import read_picture, read_references
from .scores import Features, Scorer, features_of
from .similarity import instances_of
from .summary import by_method, means


@dataclass(frozen=True)
class Made:
    """A picture, and what its record says.

    Attributes:
        path, image: the picture.
        scene: that it shows.
        method: that drew it.
        hashes: by LoRA, of its file.
        versions: of the libraries that drew it.
        cost: of drawing it, as far as the record says it; see `cost.COSTS`.
    """

    path: Path
    image: Image.Image
    scene: Scene
    method: str
    hashes: Mapping[str, str]
    versions: Mapping[str, str]
    cost: Mapping[str, Any]

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
        image, drawn_by = read_picture(path), record["versions"]
        found.append(
            Made(path, image, scene, record["method"], hashes, drawn_by, told_cost(record))
        )
    return found


def evaluate_pictures(
    pictures: Sequence[Made], *, clip: Clip | None = None, dino: Dino | None = None,
    references: Path | Mapping[str, Features] | None = None, segmenter: Segmenter | None = None,
    judge: Callable[[Made], Mapping[str, str] | None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Scores of each picture, their means, and the methods beside one another.

    `clip_t` needs `clip` only; `clip_i` and `dino` need references too, and `instance_clip_i` and
    `instance_dino` a segmenter besides. The text of `clip_t` is the prompt with plain nouns:
    triggers mean nothing to CLIP. With a segmenter there is also what becomes of each concept
    (`outcomes`), and of those that have boxes whether they are in them (`iou`, `containment`), see
    `Found`; the means are shares of the concepts then. Of a prompt that is too long for CLIP the
    beginning is read, as in the papers' code, and the entry says so (`truncated`).

    Args:
        pictures: from `read_made`.
        clip, dino: encoders.
        references: folder with a folder of pictures for each concept, see `draw_references`; or
            their features, see `Scorer`.
        segmenter: that finds instances, in pictures and references.
        judge: that says what becomes of the concepts, where it can; else segmenter and encoders do.

    Returns:
        `pictures`, one entry for each, with its `cost`, where its record says it, and the
        `versions` that drew it; `mean` over them; `methods`, see `summary.by_method`, or why
        they are `not_compared`.

    Raises:
        SceneError: nothing to measure with, something that would not be used, no references of a
            concept, or one name for concepts that differ.
    """
    if references is None and (dino is not None or segmenter is not None):
        raise SceneError(
            "DINO and instances are compared with reference pictures; give their folder"
        )
    if clip is None and (references is None or dino is None):
        raise SceneError("give a CLIP model, or a DINO model with reference pictures, or both")
    scorer = Scorer(clip, dino)
    if references is not None:
        nouns = _common_nouns(pictures)
        if isinstance(references, Path):
            references = known_features(scorer, references, nouns, segmenter)
        scorer = replace(scorer, known=references)
    entries = []
    for made in track(pictures, "evaluate", total=len(pictures)):
        text = pass_prompt(made.scene.parsed, ()).text
        boxes = boxes_of(made.scene, *made.image.size)
        scores, found = measured(scorer, made.image, text, made.nouns, segmenter, boxes)
        if found and judge and (outcomes := judge(made)):
            found = replace(found, outcomes=dict(outcomes), blended=True)
        entry: dict[str, Any] = {
            "picture": str(made.path), "method": made.method, "scene": made.scene.prompt,
            "seed": made.scene.seed, **scores,
        }  # fmt: skip
        entry |= found.as_dict() if found else {}
        entry |= {"cost": dict(made.cost)} if made.cost else {}
        entry["versions"] = dict(made.versions)
        entries.append(entry)
    told: dict[str, Any] = {"pictures": entries, "mean": means(entries), "methods": {}}
    try:
        told["methods"] = by_method(entries)
    except SceneError as error:
        told["not_compared"] = str(error)
    return told


def known_features(
    scorer: Scorer, references: Path, nouns: Mapping[str, str], segmenter: Segmenter | None
) -> dict[str, Features]:
    """Features of some concepts' references, for a `Scorer`.

    Args:
        scorer: whose encoders are used.
        references: folder with a folder of pictures for each concept.
        nouns: by concept.
        segmenter: that finds instances in them; without it there are none of instances.

    Raises:
        SceneError: no references of a concept, or none that shows its noun.
    """
    own = read_references(references, list(nouns))
    known = {name: features_of(own, encoder) for name, encoder in scorer.encoders.items()}
    if segmenter is not None:
        cut = {c: _instances(images, nouns[c], segmenter, c) for c, images in own.items()}
        for name, encoder in scorer.encoders.items():
            known[f"instance_{name}"] = features_of(cut, encoder)
    return known


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


def _instances(
    images: Sequence[Image.Image], noun: str, segmenter: Segmenter, concept: str
) -> list[Image.Image]:
    """The first instance of each reference that has one."""
    found = [own[0].image for image in images if (own := instances_of(image, noun, segmenter))]
    if not found:
        raise SceneError(f"no {noun} is found in any reference picture of {concept!r}")
    return found
