"""The noise that the base learns to take away, and at which timesteps of it what is decided."""

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

CHOSEN_SIDE = 16
"""Cells a side of the latents for which timesteps of the recipe were chosen."""
SHAPING, SHAPING_SHARE = (400, 950), 0.6
"""Timesteps at which it is decided what stands where, and how often they are drawn on purpose."""


def new_scheduler() -> DDIMScheduler:
    """DDIM with the noise schedule of Stable Diffusion 1.5, predicting velocity.

    Velocity (Salimans and Ho 2022) weighs what the first steps decide, which is where a model
    that is trained for an hour otherwise never learns to listen to its prompt.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def as_hidden(times: tuple[int, int], side: int) -> tuple[int, int]:
    """Timesteps at which noise hides as much in latents of `side` cells as at `times` in those of
    `CHOSEN_SIDE` cells; 1000 if it never does.

    A subject of four times as many cells is seen through noise of twice the strength (Hoogeboom et
    al. 2023, arXiv 2301.11093, on noise schedules).
    """
    alphas = new_scheduler().alphas_cumprod
    ratio = alphas / (1 - alphas)
    first, last = (int((ratio > ratio[t] * (CHOSEN_SIDE / side) ** 2).sum()) for t in times)
    return first, last


def timesteps(batch: int, shaping: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Times of a batch in [0, 1000): `SHAPING_SHARE` of them from `shaping`, the rest from all."""
    shapes = torch.randint(*shaping, (batch,), generator=generator)
    anywhere = torch.randint(1000, (batch,), generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < SHAPING_SHARE, shapes, anywhere)


def time_weight(snr: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Weight of a velocity's error by the signal-to-noise ratio: fine detail matters least."""
    return (5 / (snr + 1)).clamp(max=1)
