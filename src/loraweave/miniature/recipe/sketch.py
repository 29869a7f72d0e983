"""Stage 4: a T2I-Adapter that makes the base draw along outlines (Mou et al. 2023).

The base is frozen; scenes and captions are those that it learned from, sketches are the outlines
of their subjects.
"""

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, T2IAdapter
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from ...backbone.conditions import fitting_kinds
from ...progress import track
from ..sketch import sketch_of
from ..world import render
from .base import focused_error, training_attention
from .noise import SHAPING, as_hidden, new_scheduler, time_weight, timesteps
from .pool import Pool, drawn_from
from .run import Fit, Run

SKETCHED = 8000
"""Scenes that the adapter learns from, of the base's pool."""


def new_adapter(pipe: StableDiffusionPipeline) -> T2IAdapter:
    """An untrained adapter for grey pictures, with the channels of a base's down blocks."""
    unet = pipe.unet.config
    kinds, coarser = fitting_kinds(unet["down_block_types"])
    return T2IAdapter(
        in_channels=1,
        channels=list(unet["block_out_channels"]),
        num_res_blocks=1,
        downscale_factor=coarser * pipe.vae_scale_factor,
        adapter_type=kinds[0],
    )


def sketched(run: Run, pool: Pool, pixels: int, count: int) -> Tensor:
    """Sketches of the pool's first scenes, (count, pixels, pixels) booleans; kept on disk."""
    path = run.folder / "sketches.npy"
    if path.exists() and len(found := np.load(path)) == count:
        return torch.from_numpy(np.unpackbits(found, axis=2).astype(bool))
    drawn = [
        np.asarray(sketch_of(render(drawing, pixels).masks)) > 0
        for drawing in track(pool.drawings[:count], "miniature: sketches", total=count)
    ]
    stacked = np.stack(drawn)
    temporary = path.with_name("sketches.tmp.npy")
    np.save(temporary, np.packbits(stacked, axis=2))
    temporary.replace(path)
    return torch.from_numpy(stacked)


def train_adapter(
    run: Run, pipe: StableDiffusionPipeline, pool: Pool, pixels: int, steps: int, *,
    scenes: int = SKETCHED, rate: float = 5e-4, batch: int = 16,
) -> T2IAdapter:  # fmt: skip
    """Train, or finish a run that was interrupted; the adapter holds the averaged weights."""
    torch.manual_seed(run.seed)
    scenes = min(scenes, len(pool.latents))
    sketches = sketched(run, pool, pixels, scenes)
    adapter = new_adapter(pipe)
    unet, text_encoder = pipe.unet.requires_grad_(False), pipe.text_encoder.requires_grad_(False)
    unet.set_attn_processor(training_attention(run)())
    fit = Fit(run, "sketch", adapter, steps=steps, rate=rate, average=0.995, weight_decay=1e-2)
    scheduler = new_scheduler()
    shaping = as_hidden(SHAPING, pool.latents.shape[-1])
    snr = run.there(scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod))
    alike = torch.ones(scenes)
    for step in fit.steps():
        g = run.generator("sketch", step.number)
        drawn = drawn_from(pool, alike, pipe.tokenizer, batch, g)
        latents = run.there(pool.latents[drawn.chosen]).float()
        noise = run.noise("sketch", step.number, latents)
        t = run.there(timesteps(batch, shaping, g))
        noisy = scheduler.add_noise(latents, noise, t)  # type: ignore[arg-type]
        with run.autocast():
            with torch.no_grad():
                states = text_encoder(run.there(drawn.ids)).last_hidden_state
            features = adapter(run.there(sketches[drawn.chosen][:, None]).float())
            predicted = unet(
                noisy, t, states, down_intrablock_additional_residuals=list(features)
            ).sample
        target = scheduler.get_velocity(latents, noise, t)  # type: ignore[arg-type]
        masks = run.there(pool.masks[drawn.chosen]).float() / 255
        error = focused_error(predicted.float(), target, masks)
        loss = (error * time_weight(snr[t])).mean()
        fit.update(step, loss)
        step.figures["loss"] = loss.item()
    fit.finish()
    unet.set_attn_processor(AttnProcessor2_0())
    return adapter.eval()
