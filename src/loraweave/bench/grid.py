"""Kept pictures of some scenes side by side, with what the judge found drawn in."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import SceneError
from ..evaluate.figures import labelled_grid, with_findings
from ..evaluate.references import read_picture
from ..miniature.concepts import KNOWN
from ..miniature.prompts import PLAIN_SUBJECT
from ..miniature.scene_judge import SceneJudge
from ..miniature.scenes import ConceptScene
from .jobs import Job
from .result_files import picture_files

SHOWN = 256
"""Pixels that pictures are high, if they are smaller and a whole factor makes them so."""


def grid(jobs: Sequence[Job], folder: Path) -> Image.Image:
    """A row for each scene, a column for each method.

    Every instance has a frame: green around those of concepts that are right, else red, with the
    concept's name, or its class and how it fails.

    Args:
        jobs: of one suite, scene by scene; those of `alone` are left out.
        folder: where results and pictures are.

    Raises:
        SceneError: a picture is missing or damaged.
    """
    judge = SceneJudge()
    rows: dict[ConceptScene, list[Image.Image]] = {}
    shown = [job for job in jobs if job.method != "alone"]
    if not shown:
        raise SceneError("`alone` has a picture for each concept; name other methods")
    paths = [picture_files(folder, job)[0] for job in shown]
    if missing := [path for path in paths if not path.is_file()]:
        raise SceneError(f"no picture at {missing[0]}; draw it with `bench run --pictures`")
    for job, image in zip(shown, map(read_picture, paths)):
        scale = max(1, SHOWN // image.height)
        rows.setdefault(job.scene, []).append(found_in(judge, image, job.scene, scale))
    methods = list(dict.fromkeys(job.method for job in shown))
    return labelled_grid(
        [(_label(scene), images) for scene, images in rows.items()],
        [method.replace("_", " ") for method in methods],
        title=f"{shown[0].suite}, on the miniature, with what the judge finds; green: right",
    )


def _label(scene: ConceptScene) -> str:
    """A scene's words, and the LoRA that makes their place or style another one."""
    others = [name for name in (scene.place, scene.style) if name is not None]
    return f"{scene.plain_prompt} ({', '.join(others)})" if others else scene.plain_prompt


def found_in(judge: SceneJudge, image: Image.Image, scene: ConceptScene, scale: int) -> Image.Image:
    """A picture with the judge's findings drawn in."""
    subjects = judge.subjects(image, scene)
    kinds = {name: KNOWN[name].kind for name in scene.names}
    if scene.attribute is not None:
        kinds[PLAIN_SUBJECT] = scene.attribute[0]
    frames = []
    for instance in judge.judge.instances(image, len(kinds), Counter(kinds.values())):
        owners = [name for name, one in subjects.assigned.items() if one.box == instance.box]
        if scene.style is not None:  # nobody is known by looks: the class stands for the concept
            owners = [name for name, kind in kinds.items() if kind == instance.kind]
        outcome = subjects.outcomes[owners[0]] if owners else ""
        words = owners[0] if outcome == "right" else f"{instance.kind} {outcome}".strip()
        frames.append((instance.box, words, outcome == "right"))
    absent = [name for name, outcome in subjects.outcomes.items() if outcome == "missing"]
    return with_findings(image, frames, f"missing: {', '.join(absent)}" if absent else "", scale)
