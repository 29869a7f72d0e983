"""`loraweave references` and `loraweave evaluate`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..scene import MINIATURE
from . import options
from .job import check_device, load_model, make_job

if TYPE_CHECKING:
    from ..evaluate.pictures import Made
    from ..evaluate.scores import Features


def references(
    prompt: options.Prompt = None,
    lora: options.Loras = None,
    lora_dir: options.LoraDir = None,
    scene: options.SceneFile = None,
    picture: options.Picture = None,
    own_prompt: options.OwnPrompt = None,
    base: options.Base = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures of each concept.")] = 50,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder; each concept gets one in it.")
    ] = Path("references"),
    dtype: options.Precision = "float32",
    device: options.Device = None,
    allow_pickle: options.AllowPickle = False,
    allow_partial: options.AllowPartial = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw each concept of a scene alone, for `evaluate`; pictures that are there stay."""
    from ..evaluate.references import draw_references

    job = make_job(
        prompt, scene, picture, base, options.read_loras(lora), lora_dir=lora_dir,
        own_prompt=own_prompt, num_inference_steps=steps, guidance_scale=guidance,
    )  # fmt: skip
    drawn = draw_references(
        load_model(job.base, dtype, device), job.scene, out, count, allow_pickle, allow_partial
    )
    names = [concept.name for concept in job.scene.concepts]
    if as_json:
        typer.echo(json.dumps({"drawn": drawn, "concepts": names, "folder": str(out)}))
    else:
        typer.echo(f"{drawn} pictures drawn; {count} of each of {', '.join(names)} are in {out}")


def evaluate(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures made by LoRAWeave.")],
    clip: Annotated[
        Path | None,
        typer.Option(help="Folder of a CLIP model, or miniature."),
    ] = None,
    dino: Annotated[Path | None, typer.Option(help="Folder of a DINO model; or miniature.")] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pictures of each concept, from `loraweave references`; or miniature."
        ),
    ] = None,
    segmenter: Annotated[
        str | None,
        typer.Option(help="For instances, failures, boxes: miniature, clipseg or grounded_sam."),
    ] = None,
    segmenter_model: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of the segmenter's model; grounded_sam has two."),
    ] = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Scores of pictures as in the papers: CLIP-T, and CLIP-I and DINO against references.

    With a segmenter also what becomes of each concept, and whether it is in its box.
    """
    from ..detect import get_segmenter
    from ..evaluate.encoders import Clip, Dino
    from ..evaluate.pictures import evaluate_pictures, read_made
    from ..loading import default_device
    from ..miniature.scoring import CLIP, DINO
    from ..progress import silence_libraries
    from .report import show_values

    if segmenter_model and not segmenter:
        raise typer.BadParameter("--segmenter-model is given without --segmenter")
    silence_libraries()
    where = device or default_device()
    check_device(where)
    made = read_made(pictures)
    finder = get_segmenter(segmenter, *(segmenter_model or ()), device=where) if segmenter else None
    found = evaluate_pictures(
        made, clip=Clip(_shipped(clip, CLIP), where) if clip else None,
        dino=Dino(_shipped(dino, DINO), where) if dino else None,
        references=_references(references, clip, dino, made), segmenter=finder,
        judge=_judge(references, segmenter),
    )  # fmt: skip
    if "not_compared" in found:
        typer.echo(f"note: {found['not_compared']}", err=True)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for entry in found["pictures"]:
        show_values(entry)
    if len(found["methods"]) > 1:
        for method, row in found["methods"].items():
            show_values({"method": method, **row})
    elif len(pictures) > 1:
        show_values({"mean of": f"{len(pictures)} pictures", **found["mean"]})


def _judge(
    references: Path | None, segmenter: str | None
) -> "Callable[[Made], Mapping[str, str] | None] | None":
    """The miniature's, for pictures of its LoRAs, where everything else is its own, too."""
    if segmenter != MINIATURE or str(references) != MINIATURE:
        return None
    from ..miniature.scene_judge import LoraJudge

    judge = LoraJudge()
    return lambda made: judge.outcomes(made.image, list(made.nouns), made.hashes)


def _shipped(folder: Path, own: Path) -> Path:
    return own if str(folder) == MINIATURE else folder


def _references(
    references: Path | None, clip: Path | None, dino: Path | None, made: "Sequence[Made]"
) -> "Path | Mapping[str, Features] | None":
    """Those that ship are known by their LoRAs, and by the encoders that ship only."""
    from ..miniature.scoring import shipped_references

    if references is None or str(references) != MINIATURE:
        return references
    if any(folder is not None and str(folder) != MINIATURE for folder in (clip, dino)):
        raise typer.BadParameter("--references miniature needs --clip and --dino miniature")
    hashes = {name: own.hashes.get(name, "") for own in made for name in own.nouns}
    return shipped_references(hashes)
