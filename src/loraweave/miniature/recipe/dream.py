"""Pictures as the denoiser would paint them, for a judge that will see such pictures.

A drawing is given noise and the base model takes it away again: what comes out has the subjects,
the places and the colours of the drawing, and the strokes, smears and lost details of a generated
picture.
"""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..codec import decoded, posterior_of
from .noise import as_hidden

GIVEN = (60, 300)
"""Timesteps up to which noise is given, in latents of 16 cells a side: beyond these a subject loses
its pattern (by eye)."""
ROUNDS = 2
GUIDANCE = (1.0, 6.0)


@torch.no_grad()
def dreamed(
    pipe: StableDiffusionPipeline, pixels: Float[Tensor, "B 3 H W"], captions: Sequence[str],
    g: torch.Generator,
) -> Float[Tensor, "B 3 H W"]:  # fmt: skip
    """Each picture given noise and denoised, twice, the second time by half.

    Args:
        pipe: the base model.
        pixels: in [-1, 1].
        captions: of the pictures.
        g: of the noise, its amount and the guidance.
    """
    ids = pipe.tokenizer(
        [*([""] * len(captions)), *captions], padding="max_length", truncation=True,
        max_length=pipe.tokenizer.model_max_length, return_tensors="pt",
    ).input_ids  # fmt: skip
    alphas = pipe.scheduler.alphas_cumprod
    low, high = GUIDANCE
    scale = low + (high - low) * torch.rand(len(pixels), 1, 1, 1, generator=g)
    device = pipe.unet.device
    scale = scale.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        text = pipe.text_encoder(ids.to(device))[0]
        latents = posterior_of(pipe.vae, pixels).mean.float()
        t = int(torch.randint(*as_hidden(GIVEN, latents.shape[-1]), (1,), generator=g))
        for k in range(ROUNDS):
            a = alphas[t >> k]
            noise = torch.randn(latents.shape, generator=g).to(device)
            noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
            velocity = pipe.unet(torch.cat([noisy] * 2), t >> k, text).sample.float()
            plain, named = (a.sqrt() * noisy - (1 - a).sqrt() * v for v in velocity.chunk(2))
            latents = plain + scale * (named - plain)
        return decoded(pipe.vae, latents).float().clamp(-1, 1).cpu()
