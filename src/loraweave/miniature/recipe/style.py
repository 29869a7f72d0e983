"""The style reader, from drawings in all styles, most of them through the autoencoder."""

import random

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from ...progress import track
from ..segmenter import SIDE
from ..style_reader import NAMES, StyleReader, styled
from ..world import CROWDED_WORLD, render, sample_drawing
from .judge import mostly_coded, worn
from .run import Fit, Run

BATCH = 32


def styled_scene(seed: int, side: int = SIDE) -> tuple[Image.Image, int]:
    """A drawing of `side` pixels in a random style or in none, and the number of that style."""
    style = random.Random(f"style {seed}").choice(NAMES)
    image = render(sample_drawing(seed, CROWDED_WORLD), side).image
    return styled(image, style), NAMES.index(style)


def styled_pool(run: Run, vae: AutoencoderKL, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Pictures as the reader sees them (N, 3, SIDE, SIDE) and numbers of their styles (N,); two
    thirds were decoded."""
    pixels, numbers = [], []
    starts = range(0, count, BATCH)
    for start in track(starts, "miniature: styles", total=len(starts)):
        g = run.generator("styles", start)
        seeds = torch.randint(2**31, (min(BATCH, count - start),), generator=g).tolist()
        scenes = [styled_scene(seed, side) for seed in seeds]
        pixels.append(mostly_coded([image for image, _ in scenes], start // BATCH, vae, g))
        numbers += [number for _, number in scenes]
    return torch.cat(pixels), torch.tensor(numbers)


def train_style_reader(
    run: Run, vae: AutoencoderKL, steps: int, scenes: int, *, side: int = SIDE, rate: float = 3e-3
) -> StyleReader:
    """Train the style reader, or finish a run that was interrupted."""
    torch.manual_seed(run.seed)
    reader = StyleReader()
    fit = Fit(run, "style", reader, steps=steps, rate=rate, average=0.98, weight_decay=1e-2)
    images, numbers = styled_pool(run, vae, scenes, side) if fit.first < steps else (None, None)
    for step in fit.steps():
        assert images is not None
        assert numbers is not None
        g = run.generator("style", step.number)
        chosen = torch.randint(len(images), (BATCH,), generator=g)
        scores, right_ones = reader(run.there(worn(images[chosen], g))), run.there(numbers[chosen])
        loss = F.cross_entropy(scores, right_ones)
        fit.update(step, loss)
        right = (scores.argmax(1) == right_ones).float().mean().item()
        step.figures |= {"loss": loss.item(), "right": right}
    fit.finish()
    return reader.cpu().eval()
