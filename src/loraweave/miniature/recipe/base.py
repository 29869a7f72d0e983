"""Stage 2: text encoder and U-Net together, from encoded scenes and worded captions."""

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...backbone.sites import reading_factor, reading_sites
from ...denoise.recorder import recording
from .grounding import PlainRecordingProcessor, Words, grounding_loss, places_of, words_of
from .layout import LayoutHead, Looks
from .noise import SHAPING, as_hidden, new_scheduler, time_weight, timesteps
from .pool import MAX_SUBJECTS, Drawn, Pool, drawn_from
from .run import Fit, Run
from .tokenizer import END, START
from .vae import LATENT_CHANNELS

TEXT_WIDTH = 128
SUBJECT_WEIGHT = 4.0
"""Extra weight of the loss where a subject is: the best prediction at a place does not depend on
the weight of that place, but backgrounds are learned in minutes and subjects are not."""


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder for a tokenizer's vocabulary."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.convert_tokens_to_ids(START),  # type: ignore[arg-type]
        eos_token_id=tokenizer.convert_tokens_to_ids(END),  # type: ignore[arg-type]
        pad_token_id=tokenizer.convert_tokens_to_ids(END),  # type: ignore[arg-type]
    )
    return CLIPTextModel(config)


def new_unet(latent_side: int, channels: tuple[int, ...] = (80, 160)) -> UNet2DConditionModel:
    """An untrained U-Net with cross-attention at every level of 16x16 cells and fewer: above, its
    self-attention would take most of the time of a picture on a processor."""
    attends = [latent_side >> level <= 16 for level in range(len(channels))]
    return UNet2DConditionModel(
        sample_size=latent_side,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=tuple("CrossAttnDownBlock2D" if own else "DownBlock2D" for own in attends),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if own else "UpBlock2D" for own in reversed(attends)
        ),
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def focused_error(
    predicted: Float[Tensor, "B C h w"], target: Float[Tensor, "B C h w"],
    masks: Float[Tensor, "B N h w"],
) -> Float[Tensor, " B"]:  # fmt: skip
    """Mean squared error with more weight on the subjects, whose masks are in [0, 1]."""
    focus = 1 + SUBJECT_WEIGHT * masks.sum(1, keepdim=True).clamp(max=1)
    return ((predicted - target).square() * (focus / focus.mean())).mean((1, 2, 3))


def training_attention(run: Run) -> type[AttnProcessor | AttnProcessor2_0]:
    """Plain attention on processors, where the fused one's backward pass costs 10 % of a step."""
    return AttnProcessor if run.device.type == "cpu" else AttnProcessor2_0


def train_base(
    run: Run, tokenizer: CLIPTokenizer, vae: AutoencoderKL, pool: Pool, steps: int, *,
    start: StableDiffusionPipeline | None = None, rate: float = 1e-3, batch: int = 32,
    channels: tuple[int, ...] = (80, 160), side: int | None = None, grounding: float = 0.05,
    layout: float = 0.0, matrices: bool = False, crowds: bool = False,
) -> StableDiffusionPipeline:  # fmt: skip
    """Train, or finish a run that was interrupted; the pipeline holds the averaged weights.

    Args:
        run: where checkpoints go.
        tokenizer, vae: of the pipeline.
        pool: what is learned.
        steps: of the whole training.
        start: a base with this tokenizer to go on from.
        rate: the highest learning rate.
        batch: scenes a step.
        channels: of the U-Net's levels.
        side: of the latents that it is made for; those of the pool if None.
        grounding: weight of that term of the loss.
        layout: weight of the loss of a head that reads what stands where, see layout.py.
        matrices: with Muon for these, see matrices.py.
        crowds: scenes are drawn from the pool in proportion to the number of their subjects, all
            alike otherwise.
    """
    torch.manual_seed(run.seed)
    text_encoder = new_text_encoder(tokenizer)
    unet = new_unet(side or pool.latents.shape[-1], channels)
    if start is not None:
        text_encoder.load_state_dict(start.text_encoder.state_dict())
        unet.load_state_dict(start.unet.state_dict())
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kind = training_attention(run)
    unet.set_attn_processor(kind())
    text_encoder.set_attn_implementation("eager" if kind is AttnProcessor else "sdpa")
    model = nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    head = LayoutHead(unet, Looks(pool.drawings, MAX_SUBJECTS)) if layout else None
    if head is not None:
        model["layout"] = head
    fit = Fit(
        run, "base", model, steps=steps, rate=rate, average=0.998, weight_decay=1e-2,
        compiled=(unet, text_encoder), matrices=matrices,
    )  # fmt: skip
    scheduler = new_scheduler()
    snr = run.there(scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod))
    shaping = as_hidden(SHAPING, pool.latents.shape[-1])
    sites, factor = reading_sites(unet), reading_factor(unet)
    weights = pool.subjects() if crowds else torch.ones(len(pool.latents))

    def batch_of(i: int) -> tuple[Drawn, Tensor, Words]:
        g = run.generator("base", i)
        drawn = drawn_from(pool, weights, tokenizer, batch, g)
        told = [drawn.captions[n] for n in drawn.named]
        return drawn, timesteps(batch, shaping, g), words_of(tokenizer, told, MAX_SUBJECTS)

    # One recorder for all steps: another one each time may be compiled anew.
    with recording(sites, PlainRecordingProcessor) as recorder:
        for step, (drawn, times, words) in fit.fed(batch_of):
            latents = run.there(pool.latents[drawn.chosen]).float()
            masks = run.there(pool.masks[drawn.chosen]).float() / 255
            noise, t = run.noise("base", step.number, latents), run.there(times)
            noisy = scheduler.add_noise(latents, noise, t).to(memory_format=torch.channels_last)  # type: ignore[arg-type]
            with run.autocast():
                states = text_encoder(run.there(drawn.ids)).last_hidden_state
                predicted = unet(noisy, t, states).sample
                maps = recorder.take().float()
            target = scheduler.get_velocity(latents, noise, t)  # type: ignore[arg-type]
            error = focused_error(predicted.float(), target, masks)
            weight = time_weight(snr[t])
            words = Words(*map(run.there, words))
            places = places_of(words, F.avg_pool2d(masks[drawn.named], factor))
            grounded, share = grounding_loss(
                maps[drawn.named], words.samples, words.tokens, places, words.presence
            )
            loss = (error * weight).mean() + grounding * grounded
            if head is not None:
                placed = head.loss(*head.looks.at(drawn.chosen, masks))
                loss = loss + layout * placed
                step.figures["layout"] = placed.detach()
            fit.update(step, loss)
            step.figures |= {
                "loss": (error.detach() * weight).mean(), "mse": error.detach().mean(),
                "grounding": grounded.detach(), "share": share.detach(),
            }  # fmt: skip
    fit.finish()
    if head is not None:
        head.remove()
    return assemble(tokenizer, text_encoder, unet, vae)


def assemble(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel,
    vae: AutoencoderKL,
) -> StableDiffusionPipeline:  # fmt: skip
    """A stock pipeline from its parts, in eval mode."""
    tokenizer.backend_tokenizer.no_padding()  # what the last call set would be saved
    tokenizer.backend_tokenizer.no_truncation()
    vae.register_to_config(scaling_factor=1.0)  # the latents are balanced, see balance.py
    unet.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    unet.set_attn_processor(AttnProcessor2_0())
    text_encoder.set_attn_implementation("sdpa")
    return StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet.eval(),
        scheduler=new_scheduler(), safety_checker=None, feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )  # fmt: skip
