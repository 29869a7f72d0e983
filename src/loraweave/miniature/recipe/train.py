"""The miniature from nothing: every stage in its order, each resumable."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, T2IAdapter
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from ...errors import TrainingError
from ...methods import METHODS
from ..finder import load_finder
from ..golden import golden_blocks
from ..half import save_half
from ..judge import Judge
from ..segmenter import Segmenter
from ..shipped import latent_factor
from ..sketch import NAME as SKETCH
from ..style_reader import StyleReader
from ..world import (
    BUSY_WORLD,
    CROWDED_WORLD,
    FIRST_WORLD,
    FULL_WORLD,
    TAUGHT_WORLD,
    WorldSettings,
)  # fmt: skip
from .alone import alone_pictures
from .base import train_base
from .calibrate import calibrated
from .clip import train_clip
from .decoder import make_sure, train_decoder
from .dino import train_dino
from .encoder import crop_pool, train_encoder
from .judge import new_judge, save_judge, train_segmenter
from .loras import train_loras
from .pool import build_pool
from .references import write_references
from .run import Run, save_model
from .sketch import SKETCHED, train_adapter
from .style import train_style_reader
from .tokenizer import train_tokenizer
from .vae import train_vae


@dataclass(frozen=True)
class Part:
    """A leg of the base's training; each goes on from the one before.

    Attributes:
        world: what is learned.
        vae_steps, base_steps: optimiser steps; without the first, the autoencoder stays as it is.
        pool: scenes that the base learns from.
        pixels: side of the pictures that the base learns from, if not that of the whole.
        crowds: a scene is seen the more often the more subjects it has.
    """

    world: WorldSettings
    vae_steps: int
    pool: int
    base_steps: int
    pixels: int | None = None
    crowds: bool = False


@dataclass(frozen=True)
class Size:
    """How long each stage is, and for which pictures.

    Attributes:
        parts: of the autoencoder's and the base's training.
        judge_steps, finder_steps, encoder_steps: optimiser steps of the judge's segmenter, of the
            other one and of the identity encoder.
        judge_scenes, families: what these learn from.
        dream_steps, dreams: of the encoder with families that the denoiser painted over.
        style_steps, style_scenes: of the reader of styles.
        decoder_steps: of the decoder alone, at the end.
        views: drawings of each concept on each class for the judge.
        lora_steps: of each LoRA.
        sketch_steps: of the adapter for sketches.
        clip_steps, dino_steps: of the encoders for the papers' scores.
        references: pictures of each LoRA alone that these compare with.
        alone: pictures of each LoRA alone for the judge, two or more.
        pixels: side of the pictures.
        channels: of the base's U-Net, level by level.
        batch, rate: of the base's training, scenes a step and the highest learning rate.
        layout: weight of the loss of a head that reads from the base what stands where.
        matrices: the base's are trained with Muon.
        loras: names of those that are made; all if None.
        lora_rank: of those that are no ED-LoRAs.
    """

    parts: tuple[Part, ...]
    judge_steps: int
    finder_steps: int
    judge_scenes: int
    encoder_steps: int
    families: int
    dream_steps: int
    dreams: int
    style_steps: int
    style_scenes: int
    decoder_steps: int
    views: int
    lora_steps: int
    sketch_steps: int
    clip_steps: int
    dino_steps: int
    references: int
    alone: int
    pixels: int = 128
    channels: tuple[int, ...] = (80, 160)
    batch: int = 32
    rate: float = 1e-3
    layout: float = 0.0
    matrices: bool = False
    loras: tuple[str, ...] | None = None
    lora_rank: int = 8


SIZES = {
    "small": Size(
        parts=(
            Part(FIRST_WORLD, vae_steps=2800, pool=16_000, base_steps=10_400),
            Part(TAUGHT_WORLD, vae_steps=2200, pool=24_000, base_steps=11_000),
        ),
        judge_steps=4500, finder_steps=2500, judge_scenes=8000, encoder_steps=6000, families=2500,
        dream_steps=1500, dreams=1000, style_steps=400, style_scenes=1500, decoder_steps=1500,
        views=8, lora_steps=160, sketch_steps=3000, clip_steps=1600, dino_steps=2500,
        references=50, alone=40,
    ),
    "full": Size(
        parts=(
            Part(TAUGHT_WORLD, vae_steps=6_000, pool=48_000, base_steps=8_000, pixels=128),
            Part(BUSY_WORLD, vae_steps=0, pool=60_000, base_steps=8_000, crowds=True),
        ),
        pixels=256, channels=(64, 96, 160), batch=64, rate=2e-3, layout=0.1, matrices=True,
        lora_rank=6,  # with 8 the weights that ship would be over 36 MB
        judge_steps=4500, finder_steps=2500, judge_scenes=8000, encoder_steps=6000, families=2500,
        dream_steps=1500, dreams=1000, style_steps=400, style_scenes=1500, decoder_steps=3000,
        views=8, lora_steps=160, sketch_steps=3000, clip_steps=1600, dino_steps=2500,
        references=50, alone=40,
    ),
    "trial": Size(
        parts=(
            Part(FIRST_WORLD, 2, 64, 2, pixels=64), Part(BUSY_WORLD, 0, 64, 2, crowds=True),
            Part(TAUGHT_WORLD, 2, 64, 2),
        ),
        layout=0.1, matrices=True,
        judge_steps=2, finder_steps=2, judge_scenes=32, encoder_steps=2, families=16,
        dream_steps=2, dreams=8, style_steps=2, style_scenes=32, decoder_steps=2,
        views=1, lora_steps=1, sketch_steps=2, clip_steps=2, dino_steps=2,
        references=2, alone=2, loras=("blackcat", "golddog", "pencil"),
    ),
}  # fmt: skip
"""`small` is what ships; `full` the larger one that is to follow it; `trial` runs every stage for a
moment, to see that it works."""


STAGES = ("vae", "base", "loras", "sketch", "decoder", "judge", "all")
"""Where a run may end, in their order."""


def train_miniature(
    folder: str | Path, size: str = "small", seed: int = 0, device: str = "cpu", workers: int = 0,
    until: str = "all",
) -> dict[str, str]:  # fmt: skip
    """Train tokenizer, autoencoder, base, LoRAs and judge into `folder`; resumes what is there.

    Args:
        folder: where checkpoints, the log and the result go; `folder/weights` has the layout of
            the weights that ship with the package.
        size: a name of `SIZES`.
        seed: of everything random.
        device: that trains and draws; the judge works on the processor.
        workers: processes that draw ahead what a GPU learns from; see `Run`.
        until: the last of `STAGES` that is trained; a machine may be lent for less than all.

    Returns:
        The result's folder (that of the run, if it ends before) and the size.

    Raises:
        TrainingError: no such size or stage.
    """
    if until not in STAGES:
        raise TrainingError(f"no stage {until!r}; there are: {', '.join(STAGES)}")
    if size not in SIZES:
        raise TrainingError(f"no size {size!r}; there are: {', '.join(SIZES)}")
    recipe, run = SIZES[size], Run(Path(folder), seed, device, workers)
    run.log(
        "start", size=size, seed=seed, torch=torch.__version__, device=device, batch=recipe.batch
    )
    made = next(result for stage, result in _stages(recipe, run) if stage == until)
    return {"folder": str(made), "size": size}


def _stages(recipe: Size, run: Run) -> Iterator[tuple[str, Path]]:
    """Each of `STAGES` when it is done, with the folder of what there is then."""
    seed, tokenizer = run.seed, train_tokenizer(seed=run.seed)
    legs = [run.part(f"part{number}", seed + number) for number in range(len(recipe.parts))]
    vaes: list[AutoencoderKL] = []
    for leg, part in zip(legs, recipe.parts):
        before = vaes[-1] if vaes else None
        vaes.append(_autoencoder(leg, part, recipe.pixels, before))
    vae = make_sure(vaes[-1])
    yield "vae", run.folder
    pipe = None
    for leg, part, own in zip(legs, recipe.parts, vaes):
        pipe = _base(leg, part, recipe, tokenizer, own, pipe)
    assert pipe is not None
    yield "base", run.folder
    loras = train_loras(
        pipe, run.folder, recipe.lora_steps, recipe.loras, recipe.pixels, recipe.lora_rank
    )
    yield "loras", run.folder
    last = recipe.parts[-1]
    pool = build_pool(legs[-1], vae, last.world, recipe.pixels, min(last.pool, SKETCHED))
    adapter = train_adapter(run, pipe, pool, recipe.pixels, recipe.sketch_steps)
    del pool  # of some gigabytes
    yield "sketch", run.folder
    world = replace(last.world, mirrored=0.5)
    pipe.vae = train_decoder(run, pipe.vae, world, recipe.pixels, recipe.decoder_steps)
    yield "decoder", run.folder
    judge, finder = _judge(run, recipe, vae, pipe)
    yield "judge", run.folder
    judge = calibrated(run, judge, alone_pictures(run, pipe, loras, recipe.alone))
    reader = train_style_reader(
        run, vae, recipe.style_steps, recipe.style_scenes, side=recipe.pixels
    )
    clip = train_clip(run, tokenizer, FULL_WORLD, recipe.clip_steps)
    dino = train_dino(run, FULL_WORLD, recipe.dino_steps)
    yield (
        "all",
        collect(run.folder, judge, finder, reader, adapter, pipe, clip, dino, recipe.references),
    )


def _autoencoder(run: Run, part: Part, pixels: int, start: AutoencoderKL | None) -> AutoencoderKL:
    if start is not None and not part.vae_steps:
        return start
    path = run.folder / "vae"
    if path.exists():
        return run.there(AutoencoderKL.from_pretrained(path, use_safetensors=True).eval())
    world = replace(part.world, mirrored=0.5)  # what faces left is learned at no cost
    vae = train_vae(run, world, pixels, part.vae_steps, start=start)
    save_model(vae, path)
    return vae


def _base(
    run: Run, part: Part, recipe: Size, tokenizer: CLIPTokenizer, vae: AutoencoderKL,
    start: StableDiffusionPipeline | None,
) -> StableDiffusionPipeline:  # fmt: skip
    path = run.folder / "base"
    if not path.exists():
        pool = build_pool(run, vae, part.world, part.pixels or recipe.pixels, part.pool)
        pipe = train_base(
            run, tokenizer, vae, pool, part.base_steps, start=start, batch=recipe.batch,
            channels=recipe.channels, side=recipe.pixels // latent_factor(vae.config),
            rate=recipe.rate, layout=recipe.layout, matrices=recipe.matrices, crowds=part.crowds,
        )  # fmt: skip
        save_model(pipe, path)
    pipe = StableDiffusionPipeline.from_pretrained(
        path, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        local_files_only=True, use_safetensors=True,
    )  # fmt: skip
    return pipe.to(run.device)


def _judge(
    run: Run, recipe: Size, vae: AutoencoderKL, pipe: StableDiffusionPipeline
) -> tuple[Judge, Segmenter]:
    """The judge, not calibrated, and the segmenter for methods that need one."""
    world, scenes, side = CROWDED_WORLD, recipe.judge_scenes, recipe.pixels
    segmenter = train_segmenter(run, "judge", vae, world, recipe.judge_steps, scenes, side=side)
    finder = train_segmenter(
        run, "finder", vae, world, recipe.finder_steps, scenes, concepts=0.0, side=side
    )
    drawn = crop_pool(run, vae, FULL_WORLD, recipe.families, side=side)
    encoder = train_encoder(run, "encoder", [drawn], recipe.encoder_steps)
    dreams = crop_pool(run, vae, FULL_WORLD, recipe.dreams, pipe, side)
    encoder = train_encoder(
        run, "dreams", [drawn, dreams], recipe.dream_steps, rate=5e-4, start=encoder
    )
    return new_judge(segmenter, encoder, pipe, FULL_WORLD, recipe.views, side), finder


def collect(
    folder: Path, judge: Judge, finder: Segmenter, reader: StyleReader, adapter: T2IAdapter,
    pipe: StableDiffusionPipeline, clip: CLIPModel, dino: ViTModel, references: int,
) -> Path:  # fmt: skip
    """Bring the results together as they ship: fp16, one folder for base, LoRAs and judge.

    A folder of weights that is there already is replaced as a whole.
    """
    weights, fresh = folder / "weights", folder / "weights.new"
    shutil.rmtree(fresh, ignore_errors=True)
    pipe.to(torch.float16).save_pretrained(fresh / "base", safe_serialization=True)
    shutil.copytree(folder / "loras", fresh / "loras", ignore=shutil.ignore_patterns("*.state"))
    adapter.half().save_pretrained(fresh / SKETCH)
    save_judge(judge, fresh / "judge")
    clip.half().save_pretrained(fresh / "clip")
    shutil.copytree(fresh / "base" / "tokenizer", fresh / "clip", dirs_exist_ok=True)
    dino.half().save_pretrained(fresh / "dino")
    _forget_origins(fresh)
    save_half(reader.state_dict(), fresh / "judge" / "style.safetensors")
    save_half(finder.state_dict(), fresh / "finder.safetensors")
    pipe.to(torch.float32)  # with the rounding of fp16, as users will load it
    write_references(fresh, pipe, judge, references)
    pipe.to("cpu")  # where tests draw it
    loras = {path.stem: path for path in (fresh / "loras").glob("*.safetensors")}
    finding = load_finder(fresh / "finder.safetensors")
    golden = {
        name: golden_blocks(pipe, name, loras, finding).round(4).tolist() for name in METHODS
    }  # fmt: skip
    (fresh / "golden.json").write_text(json.dumps(golden) + "\n")
    (fresh / "log.json").write_text(json.dumps(summary(folder), indent=1) + "\n")
    shutil.rmtree(weights, ignore_errors=True)
    fresh.rename(weights)
    return weights


def _forget_origins(folder: Path) -> None:
    """Take out of all configurations the paths that models were loaded from."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None):
            path.write_text(json.dumps(config, indent=2) + "\n")


def summary(folder: Path) -> list[dict]:
    """Every tenth line of the logs of figures, and the last of each stage of each part."""
    lines = []
    for path in [*sorted(folder.glob("part*/log.jsonl")), folder / "log.jsonl"]:
        part = {} if path.parent == folder else {"part": path.parent.name}
        lines += [part | json.loads(line) for line in path.read_text().splitlines()]
    last = {(line.get("part"), line["stage"]): i for i, line in enumerate(lines)}
    return [line for i, line in enumerate(lines) if i % 10 == 0 or i in last.values()]
