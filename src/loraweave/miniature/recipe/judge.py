"""Stage 4: the judge, from drawings that went through what generated pictures go through."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ..concepts import CONCEPTS, draw_concepts
from ..judge.identity import describe
from ..judge.judge import SIDE, Judge
from ..judge.segmenter import Segmenter
from ..judge.verdict import Thresholds
from ..world import BACKGROUNDS, WorldSettings, render, sample_drawing
from .pool import pixels_of
from .run import Fit, Run
from .vae import decoded, posterior_of

CONCEPT_SHARE = 0.3  # of the training scenes show concepts instead of random subjects


def training_scene(seed: int, world: WorldSettings) -> tuple[Image.Image, np.ndarray]:
    """A picture and its classes at half resolution, (SIDE/2, SIDE/2)."""
    rng = np.random.default_rng(seed)
    if rng.random() < CONCEPT_SHARE:
        names = rng.choice(list(CONCEPTS), rng.integers(1, 3), replace=False).tolist()
        drawn = draw_concepts(names, rng.choice(world.backgrounds), seed, SIDE)
    else:
        drawn = render(sample_drawing(seed, world), SIDE)
    classes = np.zeros((SIDE, SIDE), dtype=np.int64)
    for subject, mask in zip(drawn.drawing.subjects, drawn.masks):
        classes[mask] = 1 + world.kinds.index(subject.kind)
    return drawn.image, classes[1::2, 1::2]


def worn(pixels: Tensor, vae: AutoencoderKL | None, g: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) after what a generated picture suffers: codec, noise, blur, colour."""
    if vae is not None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            latents = posterior_of(vae, pixels).mean.float()
            strength = torch.rand(len(latents), 1, 1, 1, generator=g) * 0.5
            noise = torch.randn(latents.shape, generator=g) * latents.std() * strength
            pixels = decoded(vae, latents + noise).float().clamp(-1, 1)
    if torch.rand(1, generator=g) < 0.4:
        pixels = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="reflect"), 3, 1)
    gain = 1 + 0.15 * torch.randn(len(pixels), 3, 1, 1, generator=g)
    shift = 0.08 * torch.randn(len(pixels), 3, 1, 1, generator=g)
    noise = 0.06 * torch.rand(1, generator=g) * torch.randn(pixels.shape, generator=g)
    return (pixels * gain + shift + noise).clamp(-1, 1)


def train_segmenter(
    run: Run, vae: AutoencoderKL, world: WorldSettings, steps: int, batch: int = 24,
    rate: float = 3e-3,
) -> Segmenter:  # fmt: skip
    """Train the segmenter, or finish a run that was interrupted."""
    torch.manual_seed(run.seed)
    segmenter = Segmenter(len(world.kinds) + 1)
    fit = Fit(run, "judge", segmenter, steps=steps, rate=rate, average=0.99, weight_decay=1e-3)
    for step in fit.steps():
        i = step.number
        g = run.generator("judge", i)
        seeds = torch.randint(2**31, (batch,), generator=g).tolist()
        scenes = [training_scene(seed, world) for seed in seeds]
        target = torch.from_numpy(np.stack([classes for _, classes in scenes]))
        pixels = worn(pixels_of([image for image, _ in scenes]), vae if i % 2 else None, g)
        scores = segmenter(pixels)
        loss = F.cross_entropy(scores, target)
        fit.update(step, loss)
        right = (scores.detach().argmax(1) == target)[target > 0].float().mean().item()
        step.figures |= {"loss": loss.item(), "subject_pixels": right}
    fit.finish()
    return segmenter.eval()


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
def concept_descriptors(vae: AutoencoderKL, views: int = 24) -> dict[str, np.ndarray]:
    """Mean descriptor of each concept over decoded drawings of it alone and beside others."""
    descriptors = {}
    for name in CONCEPTS:
        found = []
        for view in range(views):
            rng = np.random.default_rng(view)
            others = [n for n in CONCEPTS if n != name]
            names = [name] if view % 2 else [name, others[rng.integers(len(others))]]
            drawn = draw_concepts(names, BACKGROUNDS[view % 4], 90_000 + view, SIDE)
            seen = through(vae, [drawn.image])[0]
            half = np.asarray(seen.resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX)) / 255.0
            found.append(describe(half, drawn.masks[0][1::2, 1::2]))
        descriptors[name] = np.mean(found, axis=0)
    return descriptors


@torch.no_grad()
def through(vae: AutoencoderKL, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures encoded and decoded."""
    out = decoded(vae, posterior_of(vae, pixels_of(images)).mean)
    pixels = ((out.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(p) for p in pixels]


def save_judge(judge: Judge, folder: Path) -> None:
    """Write a judge's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in judge.segmenter.state_dict().items()}
    save_file(weights, folder / "segmenter.safetensors")
    data = {
        "kinds": judge.kinds,
        "least_area": {str(n): round(a, 5) for n, a in judge.least_area.items()},
        "least_similarity": {k: round(v, 4) for k, v in judge.thresholds.least_similarity.items()},
        "least_lead": judge.thresholds.least_lead,
        "descriptors": {k: [round(float(x), 5) for x in d] for k, d in judge.descriptors.items()},
    }
    (folder / "judge.json").write_text(json.dumps(data, indent=1) + "\n")


def new_judge(segmenter: Segmenter, vae: AutoencoderKL, world: WorldSettings) -> Judge:
    """A judge that is not calibrated yet: nothing counts as blended."""
    return Judge(
        segmenter, world.kinds, least_areas(world), concept_descriptors(vae), Thresholds({}, 0.02)
    )
