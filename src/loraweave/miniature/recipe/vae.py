"""Stage 1: the autoencoder, from drawn scenes.

Trained mostly on crops: but for the statistics of its group norms it is a local model, and a crop
of half the side costs a quarter. The last part sees whole pictures. Subjects weigh more than
backgrounds, because that is where a small autoencoder loses its colours.

An autoencoder must also hold what no base model is taught, because LoRAs are: a part of its
pictures are in the styles and places of single LoRAs.

It can be taught a larger world later without a new base model: `start` gives the trained one,
and a penalty holds its latents where they are.
"""

import copy
import random
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from ..codec import decoded, posterior_of
from ..world import Rendering, WorldSettings, render, sample_drawing
from ..world.spec import OWN_ACCESSORIES, OWN_BACKGROUNDS
from ..world.styles import STYLES, in_style
from .balance import balance
from .run import Fit, Run

LATENT_CHANNELS = 16
STYLED, ELSEWHERE = 0.12, 0.06
"""Shares of pictures in a style, and in a place, that only LoRAs teach."""
HOLD = 0.05
"""Weight of the squared distance to the latents of the autoencoder that training started from."""


def new_vae(size: int, channels: tuple[int, ...] = (24, 32, 64, 64)) -> AutoencoderKL:
    """An untrained autoencoder of factor 8 for pictures of `size` pixels a side."""
    n = len(channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * n,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * n,  # type: ignore[arg-type]
        block_out_channels=channels,  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )


def drawn_batch(
    seeds: list[int], world: WorldSettings, size: int, crop: int, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Drawn scenes (B, 3, crop, crop) in [-1, 1] and subject masks (B, 1, crop, crop)."""
    images, masks = [], []
    for seed in seeds:
        drawn = drawn_freely(seed, world, size)
        top, left = torch.randint(0, size - crop + 1, (2,), generator=g).tolist()
        window = np.s_[top : top + crop, left : left + crop]
        images.append(np.asarray(drawn.image)[window])
        masks.append(np.any(drawn.masks, axis=0)[window])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack(masks)).float()[:, None]


def drawn_for(
    run: Run, stage: str, step: int, count: int, world: WorldSettings, size: int, crop: int
) -> tuple[Tensor, Tensor]:
    """The drawings of one step of a stage, see `drawn_batch`."""
    g = run.generator(stage, step)
    seeds = torch.randint(2**31, (count,), generator=g).tolist()
    return drawn_batch(seeds, world, size, crop, g)


def drawn_freely(seed: int, world: WorldSettings, size: int) -> Rendering:
    """A scene of the world, now and then with what only LoRAs teach."""
    rng = random.Random(f"freely {seed}")
    drawing = sample_drawing(seed, world)
    if rng.random() < ELSEWHERE:
        drawing = replace(drawing, background=rng.choice(OWN_BACKGROUNDS))
        worn = replace(drawing.subjects[0], accessory=rng.choice(OWN_ACCESSORIES))
        drawing = replace(drawing, subjects=(worn, *drawing.subjects[1:]))
    drawn = render(drawing, size)
    if rng.random() < STYLED:
        drawn = replace(drawn, image=in_style(drawn.image, rng.choice(list(STYLES))))
    return drawn


def reconstruction_loss(output: Tensor, target: Tensor, subjects: Tensor) -> Tensor:
    """L1, subjects weighted threefold, plus L1 of the differences between neighbours."""
    weight = 1 + 2 * subjects
    loss = ((output - target).abs() * weight).mean()
    for axis in (2, 3):
        loss = loss + (output.diff(dim=axis) - target.diff(dim=axis)).abs().mean()
    return loss


def train_vae(
    run: Run, world: WorldSettings, size: int, steps: int, *, start: AutoencoderKL | None = None,
    rate: float = 2e-3, batch: int = 16,
) -> AutoencoderKL:  # fmt: skip
    """Train the autoencoder, or finish a run that was interrupted.

    The averaged weights come back, with balanced latents (see balance.py); with the latents of
    `start`, about, if that is given.
    """
    torch.manual_seed(run.seed)
    vae = new_vae(size) if start is None else copy.deepcopy(start).train()
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fit = Fit(
        run, "vae", vae, steps=steps, rate=rate, average=0.995, weight_decay=1e-4,
        compiled=(vae.encoder, vae.decoder),
    )  # fmt: skip

    def batch_of(i: int) -> tuple[Tensor, Tensor]:
        whole = i >= 0.85 * steps
        crop, count = (size, max(1, batch // 4)) if whole else (size // 2, batch)
        return drawn_for(run, "vae", i, count, world, size, crop)

    for step, (pixels, subjects) in fit.fed(batch_of):
        pixels, subjects = run.there(pixels), run.there(subjects)
        pixels = pixels.to(memory_format=torch.channels_last)
        with run.autocast():
            posterior = posterior_of(vae, pixels)
            noise = run.noise("vae", step.number, posterior.mean)
            output = decoded(vae, (posterior.mean + posterior.std * noise).float())
        reconstruction = reconstruction_loss(output.float(), pixels, subjects)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction + 5e-4 * divergence
        if start is not None:
            with torch.no_grad(), run.autocast():
                held = posterior_of(start, pixels).mean.float()
            drift = F.mse_loss(mean, held)
            loss = loss + HOLD * drift
            step.figures["drift"] = drift.item()
        fit.update(step, loss)
        step.figures |= {
            "loss": reconstruction.item(),
            "kl": divergence.item(),
            "psnr": psnr(output.detach().float().clamp(-1, 1), pixels),
        }
    fit.finish()
    vae.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return vae if start is not None else balanced(vae, world, size)


@torch.no_grad()
def balanced(
    vae: AutoencoderKL, world: WorldSettings, size: int, count: int = 512
) -> AutoencoderKL:
    """Balance the latents by those of `count` drawings."""
    means, variances = [], []
    for start in range(0, count, 32):
        seeds = list(range(start, min(start + 32, count)))
        pixels, _ = drawn_batch(seeds, world, size, size, torch.Generator())
        posterior = posterior_of(vae, pixels)
        means.append(posterior.mean)
        variances.append(posterior.var.mean((0, 2, 3)))
    balance(vae, torch.cat(means), torch.stack(variances).mean(0))
    return vae


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    return float(-10 * torch.log10(F.mse_loss(output, target) / 4))
