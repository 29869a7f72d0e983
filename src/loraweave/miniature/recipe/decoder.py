"""The last touch to the autoencoder: sharper decoding of the very same latents.

While encoder and decoder learn together, the decoder sees latents with the posterior's noise in
them, and what is noisier than it is useful it learns to ignore. The denoiser learns the means. So
at the end the decoder is trained on means alone, with a little noise for what a denoiser gets
wrong, and the posterior's variance is set to almost nothing: whoever samples it (trainers of LoRAs
do, image-to-image does) gets the latents that the denoiser knows.
"""

import copy

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from ..codec import decoded, posterior_of
from ..world import WorldSettings
from .run import Fit, Run
from .vae import drawn_for, psnr, reconstruction_loss

NOISE = 0.05  # of the latents while the decoder learns; they have a variance of about 1
LOG_VARIANCE = -10.0


@torch.no_grad()
def make_sure(vae: AutoencoderKL) -> AutoencoderKL:
    """Set the posterior's variance to e^-10 everywhere, in place; its means stay."""
    layer = vae.quant_conv
    assert layer is not None
    channels = vae.config["latent_channels"]
    layer.weight[channels:] = 0
    layer.bias[channels:] = LOG_VARIANCE  # type: ignore[index]
    return vae


def train_decoder(
    run: Run, vae: AutoencoderKL, world: WorldSettings, size: int, steps: int, *,
    rate: float = 1e-3, batch: int = 16,
) -> AutoencoderKL:  # fmt: skip
    """A copy of an autoencoder with its decoder trained further, or a run finished."""
    torch.manual_seed(run.seed)
    vae = run.there(copy.deepcopy(vae).eval())
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert vae.post_quant_conv is not None
    taught = nn.ModuleList([vae.post_quant_conv, vae.decoder])
    fit = Fit(
        run, "decoder", taught, steps=steps, rate=rate, average=0.995, weight_decay=1e-4,
        compiled=(vae.encoder, vae.decoder),
    )  # fmt: skip

    def batch_of(i: int) -> tuple[Tensor, Tensor]:
        return drawn_for(run, "decoder", i, batch, world, size, size // 2)

    for step, (pixels, subjects) in fit.fed(batch_of):
        pixels, subjects = run.there(pixels), run.there(subjects)
        pixels = pixels.to(memory_format=torch.channels_last)
        with run.autocast():
            with torch.no_grad():
                latents = posterior_of(vae, pixels).mean.float()
            latents = latents + NOISE * run.noise("decoder", step.number, latents)
            output = decoded(vae, latents)
        loss = reconstruction_loss(output.float(), pixels, subjects)
        fit.update(step, loss)
        step.figures |= {
            "loss": loss.item(),
            "psnr": psnr(output.detach().float().clamp(-1, 1), pixels),
        }
    fit.finish()
    return vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
