"""The style reader, from drawings in all styles, most of them through the autoencoder."""

import random

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from ...progress import track
from ..codec import pixels_of
from ..segmenter import SIDE
from ..style_reader import NAMES, StyleReader, styled
from ..world import CROWDED_WORLD, render, sample_drawing
from .judge import coded, worn
from .run import Fit, Run

BATCH = 32


def styled_scene(seed: int) -> tuple[Image.Image, int]:
    """A drawing in a random style or in none, and the number of that style."""
    style = random.Random(f"style {seed}").choice(NAMES)
    image = render(sample_drawing(seed, CROWDED_WORLD), SIDE).image
    return styled(image, style), NAMES.index(style)


def styled_pool(run: Run, vae: AutoencoderKL, count: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, H, W) and numbers of their styles (N,); two thirds were decoded."""
    pixels, numbers = [], []
    starts = range(0, count, BATCH)
    for start in track(starts, "miniature: styles", total=len(starts)):
        g = run.generator("styles", start)
        seeds = torch.randint(2**31, (min(BATCH, count - start),), generator=g).tolist()
        scenes = [styled_scene(seed) for seed in seeds]
        drawn = pixels_of([image for image, _ in scenes])
        pixels.append(coded(drawn, vae, g) if start // BATCH % 3 else drawn)
        numbers += [number for _, number in scenes]
    return torch.cat(pixels), torch.tensor(numbers)


def train_style_reader(
    run: Run, vae: AutoencoderKL, steps: int, scenes: int, rate: float = 3e-3
) -> StyleReader:
    """Train the style reader, or finish a run that was interrupted."""
    torch.manual_seed(run.seed)
    reader = StyleReader()
    fit = Fit(run, "style", reader, steps=steps, rate=rate, average=0.98, weight_decay=1e-2)
    images, numbers = styled_pool(run, vae, scenes) if fit.first < steps else (None, None)
    for step in fit.steps():
        assert images is not None
        assert numbers is not None
        g = run.generator("style", step.number)
        chosen = torch.randint(len(images), (BATCH,), generator=g)
        scores = reader(worn(images[chosen], g))
        loss = F.cross_entropy(scores, numbers[chosen])
        fit.update(step, loss)
        right = (scores.argmax(1) == numbers[chosen]).float().mean().item()
        step.figures |= {"loss": loss.item(), "right": right}
    fit.finish()
    return reader.eval()
