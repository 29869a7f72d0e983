"""Stage 4: the judge, from drawings that went through what generated pictures go through."""

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ...progress import track
from ..codec import (
    decoded,
    from_bytes,
    images_of,
    pixels_of,
    posterior_of,
    through,
    to_bytes,
)  # fmt: skip
from ..concepts import CONCEPTS, KNOWN, draw_concepts, draw_subjects
from ..half import save_half
from ..judge.colours import colours_of, palette
from ..judge.identity import IdentityEncoder
from ..judge.judge import OWN, PALETTE, Judge, looks_of, seen_as
from ..judge.verdict import Thresholds
from ..prompts import listed
from ..segmenter import SIDE, Segmenter, at_places, looked_at
from ..world import BACKGROUNDS, Rendering, Subject, WorldSettings, render, sample_drawing
from ..world.styles import STYLES, in_style
from .dream import dreamed
from .run import Fit, Run, save_tensors

CONCEPT_SHARE = 0.3  # of the judge's scenes show concepts instead of random subjects
STYLED_SHARE = 0.08  # of all scenes are in a style
LEAST_LEAD = 0.4  # over another concept of the scene; chosen on injured drawings
PALETTE_SIZE = 96  # colours that looks are told by
BLENDED_SHARE, BLENDED_MOST = 0.3, 0.3  # of pictures, and of another picture mixed into one


def training_scene(
    seed: int, world: WorldSettings, concepts: float = CONCEPT_SHARE, side: int = SIDE
) -> tuple[Image.Image, np.ndarray]:
    """A picture of `side` pixels, a multiple of SIDE, and its classes at (SIDE/2, SIDE/2) places.

    It shows concepts with probability `concepts`, else random subjects.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < concepts:
        number = 1 + rng.choice(len(world.counts), p=np.divide(world.counts, sum(world.counts)))
        names = rng.choice(list(CONCEPTS), number, replace=False).tolist()
        drawn = draw_concepts(names, rng.choice(world.backgrounds), seed, side)
    else:
        drawn = render(sample_drawing(seed, world), side)
    classes = np.zeros((side, side), dtype=np.int64)
    for subject, mask in zip(drawn.drawing.subjects, drawn.masks):
        classes[mask] = 1 + world.kinds.index(subject.kind)
    styled = rng.random() < STYLED_SHARE
    image = in_style(drawn.image, rng.choice(list(STYLES))) if styled else drawn.image
    return image, at_places(classes)


def scene_pool(
    run: Run, name: str, vae: AutoencoderKL, world: WorldSettings, count: int,
    concepts: float = CONCEPT_SHARE, side: int = SIDE,
) -> tuple[UInt8[Tensor, "N 3 S S"], UInt8[Tensor, "N s s"]]:  # fmt: skip
    """Pictures as the segmenter sees them, and classes, of `count` training scenes of `side`
    pixels, kept in `<name>.safetensors`.

    Two thirds of them went through the autoencoder.
    """
    path = run.folder / f"{name}.safetensors"
    if path.exists() and len((found := load_file(path))["classes"]) == count:
        return found["pixels"], found["classes"]
    pixels, classes = [], []
    starts = range(0, count, 32)
    for start in track(starts, f"miniature: {name}", total=len(starts)):
        g = run.generator(name, start)
        seeds = torch.randint(2**31, (min(32, count - start),), generator=g).tolist()
        scenes = [training_scene(seed, world, concepts, side) for seed in seeds]
        pixels.append(to_bytes(mostly_coded([image for image, _ in scenes], start // 32, vae, g)))
        classes.append(torch.from_numpy(np.stack([where for _, where in scenes]).astype(np.uint8)))
    pool = {"pixels": torch.cat(pixels).contiguous(), "classes": torch.cat(classes)}
    save_tensors(pool, path)
    return pool["pixels"], pool["classes"]


def mostly_coded(
    images: Sequence[Image.Image], number: int, vae: AutoencoderKL, g: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """The pictures of batch `number` as the judge's networks look at them; of three batches two
    went through the autoencoder."""
    if number % 3:
        images = images_of(coded(pixels_of(images), vae, g))
    return looked_at(images)


@torch.no_grad()
def coded(pixels: Tensor, vae: AutoencoderKL, g: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) through an autoencoder as a denoiser would have made their latents:
    with noise in them, and a little of another picture."""
    with torch.autocast(vae.device.type, torch.bfloat16):
        latents = posterior_of(vae, pixels).mean.float().cpu()
        share = torch.rand(len(latents), 1, 1, 1, generator=g) * BLENDED_MOST
        share *= torch.rand(share.shape, generator=g) < BLENDED_SHARE
        latents = (1 - share) * latents + share * latents.roll(1, 0)
        strength = torch.rand(len(latents), 1, 1, 1, generator=g) * 0.5
        noise = torch.randn(latents.shape, generator=g) * latents.std() * strength
        return decoded(vae, latents + noise).float().clamp(-1, 1).cpu()


def worn(pixels: Tensor, g: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) with blur, tint and noise."""
    if torch.rand(1, generator=g) < 0.4:
        pixels = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="reflect"), 3, 1)
    gain = 1 + 0.15 * torch.randn(len(pixels), 3, 1, 1, generator=g)
    shift = 0.08 * torch.randn(len(pixels), 3, 1, 1, generator=g)
    noise = 0.06 * torch.rand(1, generator=g) * torch.randn(pixels.shape, generator=g)
    return (pixels * gain + shift + noise).clamp(-1, 1)


def train_segmenter(
    run: Run, name: str, vae: AutoencoderKL, world: WorldSettings, steps: int, scenes: int,
    concepts: float = CONCEPT_SHARE, side: int = SIDE, batch: int = 24, rate: float = 3e-3,
) -> Segmenter:  # fmt: skip
    """Train a segmenter, or finish a run that was interrupted.

    Segmenters of different names start from other weights and see other scenes: one is the
    judge's, one is for methods that look at a picture while they draw it, and that one has never
    seen a concept.
    """
    images, classes = scene_pool(run, f"{name}_scenes", vae, world, scenes, concepts, side)
    torch.manual_seed(zlib.crc32(f"{run.seed}/{name}".encode()))
    segmenter = Segmenter(len(world.kinds) + 1)
    segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit = Fit(run, name, segmenter, steps=steps, rate=rate, average=0.99, weight_decay=1e-3)
    for step in fit.steps():
        g = run.generator(name, step.number)
        chosen = torch.randint(len(images), (batch,), generator=g)
        target = run.there(classes[chosen]).long()
        pixels = run.there(worn(from_bytes(images[chosen]), g))
        with run.autocast():
            scores = segmenter(pixels.to(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(scores, target)
        fit.update(step, loss)
        right = (scores.detach().argmax(1) == target)[target > 0].float().mean().item()
        step.figures |= {"loss": loss.item(), "subject_pixels": right}
    fit.finish()
    segmenter.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return segmenter.cpu().eval()


def least_areas(world: WorldSettings, samples: int = 400) -> dict[int, float]:
    """A third of the smallest area that the world draws for a subject, by number of subjects."""
    out = {}
    for n in range(1, len(world.counts) + 1):
        counts = tuple(float(i == n - 1) for i in range(len(world.counts)))
        single = WorldSettings(**{**world.__dict__, "counts": counts})
        areas = [
            render(sample_drawing(seed, single), SIDE // 2).masks.mean((1, 2)).min()
            for seed in range(samples)
        ]
        out[n] = float(min(areas)) / 3
    return out


@torch.no_grad()
def concept_looks(
    encoder: IdentityEncoder, pipe: StableDiffusionPipeline, kinds: Sequence[str], views: int,
    side: int = SIDE,
) -> tuple[dict[str, Float[Tensor, "N E"]], Float[np.ndarray, "K 3"]]:  # fmt: skip
    """By class the mean direction of each concept's looks on it, and the palette of all colours.

    Half of the views are decoded drawings, half were painted over by the base model.
    """
    seen: dict[tuple[str, str], list[tuple[Image.Image, np.ndarray]]] = {}
    for kind in track(kinds, "miniature: looks", total=len(kinds)):
        for name, concept in KNOWN.items():
            dressed = replace(concept.subject, kind=kind)
            drawn = [_look(name, dressed, view, side) for view in range(views)]
            seen[kind, name] = _seen(pipe, drawn)
    rng = np.random.default_rng(0)
    some = [rng.choice(colours_of(*pairs[0]), 60) for pairs in seen.values()]
    centres = palette(np.concatenate(some), PALETTE_SIZE).astype(np.float32)
    looks = {}
    for kind in kinds:
        rows = []
        for name in KNOWN:
            views_of = [seen_as(encoder, centres, i, [mask]) for i, mask in seen[kind, name]]
            rows.append([torch.cat(part).mean(0) for part in zip(*views_of)])
        encoded, colours = (torch.stack(part) for part in zip(*rows))
        looks[kind] = looks_of(encoded, colours)
    return looks, centres


def _seen(
    pipe: StableDiffusionPipeline, drawings: Sequence[Rendering]
) -> list[tuple[Image.Image, np.ndarray]]:
    """Pictures of drawings with the first subject's mask at the segmenter's places."""
    images = [drawn.image for drawn in drawings]
    painted = -(-len(images) // 2)  # the first ones; the others are only decoded
    captions = [
        listed([s.kind for s in drawn.drawing.subjects], drawn.drawing.background)
        for drawn in drawings[:painted]
    ]
    g = torch.Generator().manual_seed(90_000)
    seen = images_of(dreamed(pipe, pixels_of(images[:painted]), captions, g))
    if images[painted:]:
        seen += through(pipe.vae, images[painted:])
    return [(image, at_places(drawn.masks[0])) for image, drawn in zip(seen, drawings)]


def _look(name: str, dressed: Subject, view: int, side: int) -> Rendering:
    """A drawing of a concept's looks on some class: alone, or beside another concept."""
    rng = random.Random(f"{name} {view}")
    other = KNOWN[rng.choice([n for n in KNOWN if n != name])].subject
    subjects = [dressed] if view % 2 else [dressed, other]
    return draw_subjects(subjects, rng.choice(BACKGROUNDS), 90_000 + view, side)


def save_judge(judge: Judge, folder: Path) -> None:
    """Write a judge's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("segmenter", judge.segmenter), ("encoder", judge.encoder)):
        save_half(module.state_dict(), folder / f"{name}.safetensors")
    data = {
        "kinds": judge.kinds,
        "least_area": {str(n): round(a, 5) for n, a in judge.least_area.items()},
        "least_similarity": {k: round(v, 4) for k, v in judge.thresholds.least_similarity.items()},
        "least_lead": judge.thresholds.least_lead,
        "concepts": judge.concepts,
    }
    looks = judge.looks | {PALETTE: torch.from_numpy(judge.centres), OWN: judge.own}
    save_half(looks, folder / "looks.safetensors")
    (folder / "judge.json").write_text(json.dumps(data, indent=1) + "\n")


def new_judge(
    segmenter: Segmenter,
    encoder: IdentityEncoder,
    pipe: StableDiffusionPipeline,
    world: WorldSettings,
    views: int,
    side: int = SIDE,
) -> Judge:
    """A judge that is not calibrated yet: only what is like another concept counts as blended."""
    looks, centres = concept_looks(encoder, pipe, world.kinds, views, side)
    return Judge(
        segmenter, encoder, kinds=world.kinds, least_area=least_areas(world),
        concepts=list(KNOWN), looks=looks, own=torch.zeros_like(looks[world.kinds[0]]),
        centres=centres, thresholds=Thresholds({}, LEAST_LEAD),
    )  # fmt: skip
