"""Pictures to latents and back, through an autoencoder."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def posterior_of(
    vae: AutoencoderKL, pixels: Float[Tensor, "B 3 H W"]
) -> DiagonalGaussianDistribution:
    """The distribution of latents of pictures in [-1, 1]."""
    return vae.encode(pixels.to(vae.device), return_dict=False)[0]  # type: ignore[arg-type]


def decoded(vae: AutoencoderKL, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
    """Pictures from latents, about in [-1, 1]."""
    return vae.decode(latents.to(vae.device), return_dict=False)[0]  # type: ignore[arg-type,return-value]


def pixels_of(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
    """RGB pictures of one size, in [-1, 1]."""
    stacked = np.stack([np.asarray(image) for image in images])
    return from_bytes(torch.from_numpy(stacked).permute(0, 3, 1, 2))


def images_of(pixels: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    """RGB pictures from values in [-1, 1]; what is beyond is clipped."""
    return [
        Image.fromarray(levels) for levels in to_bytes(pixels).permute(0, 2, 3, 1).cpu().numpy()
    ]


def to_bytes(pixels: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Values in [-1, 1] in 256 levels; what is beyond is clipped."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()


def from_bytes(levels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same values, in [-1, 1]."""
    return levels.float() / 127.5 - 1


@torch.no_grad()
def through(vae: AutoencoderKL, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures encoded and decoded."""
    return images_of(decoded(vae, posterior_of(vae, pixels_of(images)).mean))
