"""A CLIP of the miniature's world (Radford et al. 2021), from drawings and their captions.

It is small, but a `CLIPModel` like OpenAI's, so the code that measures with theirs runs with it.
"""

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ...detect.pixels import CLIP_MEAN, CLIP_STD, normalised
from ..codec import pixels_of
from ..world import Drawing, WorldSettings, caption_drawing, render, sample_drawing
from .judge import worn
from .run import Fit, Run
from .tokenizer import END, START

SIDE, PATCH, SPACE = 128, 16, 64
DETAIL = (0.5, 0.9)
"""How much captions say of colours, patterns and places, at least and at most."""


def new_clip(tokenizer: CLIPTokenizer, side: int = SIDE) -> CLIPModel:
    """An untrained one for a tokenizer's vocabulary."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=77, projection_dim=SPACE,
        bos_token_id=tokenizer.convert_tokens_to_ids(START),  # type: ignore[arg-type]
        eos_token_id=tokenizer.convert_tokens_to_ids(END),  # type: ignore[arg-type]
        pad_token_id=tokenizer.convert_tokens_to_ids(END),  # type: ignore[arg-type]
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        image_size=side, patch_size=PATCH, projection_dim=SPACE,
    )  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=SPACE))


def captioned(
    seeds: list[int], world: WorldSettings, side: int, g: torch.Generator
) -> tuple[Float[Tensor, "B 3 s s"], list[str]]:
    """Drawings in [-1, 1], as worn as a denoiser's, and a caption of each."""
    rng = random.Random(seeds[0])
    drawings = [sample_drawing(seed, world) for seed in seeds]
    captions = [
        caption_drawing(drawing, seed, rng.uniform(*DETAIL)).text
        for drawing, seed in zip(drawings, seeds)
    ]
    return worn_drawings(drawings, side, g), captions


def worn_drawings(
    drawings: Sequence[Drawing], side: int, g: torch.Generator
) -> Float[Tensor, "B 3 s s"]:
    """Pictures of drawings in [-1, 1], as worn as a denoiser's."""
    return worn(pixels_of([render(drawing, side).image for drawing in drawings]), g)


def train_clip(
    run: Run, tokenizer: CLIPTokenizer, world: WorldSettings, steps: int, *, side: int = SIDE,
    rate: float = 1e-3, batch: int = 192,
) -> CLIPModel:  # fmt: skip
    """Train, or finish a run that was interrupted; the model holds the averaged weights."""
    torch.manual_seed(run.seed)
    model = new_clip(tokenizer, side)
    fit = Fit(run, "clip", model, steps=steps, rate=rate, average=0.99, weight_decay=0.05)

    def batch_of(i: int) -> tuple[Tensor, list[str]]:
        g = run.generator("clip", i)
        seeds = torch.randint(2**31, (batch,), generator=g).tolist()
        return captioned(seeds, world, side, g)

    for step, (pixels, captions) in fit.fed(batch_of):
        tokens = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        with run.autocast():
            out = model(
                input_ids=run.there(tokens.input_ids),
                attention_mask=run.there(tokens.attention_mask),
                pixel_values=normalised(run.there(pixels) / 2 + 0.5, CLIP_MEAN, CLIP_STD),
            )
        scale = model.logit_scale.clamp(max=math.log(100)).exp()
        scores = out.image_embeds.float() @ out.text_embeds.float().T * scale
        number = run.there(numbered(captions))
        loss = (one_of(scores, number) + one_of(scores.T, number)) / 2
        fit.update(step, loss)
        first = scores.argmax(1)
        step.figures["loss"] = loss.item()
        step.figures["first"] = (number[first] == number).float().mean().item()
    fit.finish()
    return model.cpu().eval()


def numbered(captions: list[str]) -> Int[Tensor, " B"]:
    """The same number for the same caption."""
    known = {caption: n for n, caption in enumerate(dict.fromkeys(captions))}
    return torch.tensor([known[caption] for caption in captions])


def one_of(scores: Float[Tensor, "B B"], number: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Cross-entropy of each row, its own column being right; others of its number do not count."""
    alike = number[:, None] == number[None, :]
    alike.fill_diagonal_(False)
    own = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores.masked_fill(alike, -torch.inf), own)
