"""CLoRA in the plain way: what the figures of `bench speed` are compared with.

Written from the description of the authors' procedure with stock parts of diffusers and peft only:
one pass after the other, LoRAs switched by `set_adapters`, both halves of guidance in every pass,
all graphs of a step alive at once. Nothing is wasted on purpose: weights are frozen, gradients are
taken to the latent alone, attention is fused wherever nothing is recorded, and what needs no
gradient has no graph.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from ..backbone.sd1 import StableDiffusion1
from ..backbone.sites import reading_sites
from ..denoise.attention import replaced
from ..markup import parse_prompt
from ..prompt import pass_prompts


@dataclass
class NaivePass:
    """One pass: its text, the LoRA that is on (or None) with its weight, and token positions."""

    text: str
    lora: str | None
    weight: float
    tokens: list[int]  # trigger and noun of its concept; none for the base


class Recording:
    """Attention with its probabilities (both halves and all heads), which are kept."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states=None, *_, **__):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(f(context)) for f in (attn.to_k, attn.to_v))
        scores = query @ key.transpose(1, 2) * attn.scale
        probabilities = scores.softmax(-1)
        self.kept.append(probabilities)
        out = attn.batch_to_head_dim(probabilities @ value)
        return attn.to_out[1](attn.to_out[0](out))


def naive_clora(
    pipe: StableDiffusionPipeline, passes: Sequence[NaivePass],
    groups: Sequence[Sequence[tuple[int, int]]], noise: Tensor, *, steps: int, guidance: float,
    updates: Sequence[int], step_size: float, threshold: float, temperature: float,
) -> list[Tensor]:  # fmt: skip
    """The latents after every step.

    Args:
        pipe: with all LoRAs loaded into it.
        passes: the base first.
        groups: per concept the (pass, token) of its embeddings.
        noise: (1, C, h, w).
        steps: of denoising.
        guidance: scale.
        updates: how often the latent is moved at each step.
        step_size: of an update.
        threshold: of a mask, as a fraction of a map's largest value.
        temperature: of the contrast.
    """
    recorder, sites = Recording(), reading_sites(pipe.unet)
    wanting = [p for p in pipe.unet.parameters() if p.requires_grad]
    pipe.unet.requires_grad_(False)
    device = noise.device
    with torch.no_grad():
        texts = []
        for one in passes:
            _switch(pipe, one)
            conditional, unconditional = pipe.encode_prompt(one.text, device, 1, True, "")
            assert unconditional is not None
            texts.append(torch.cat([unconditional, conditional]))

    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps, device=device)

    def evaluate(z: Tensor, t: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        noises, maps = [], []
        for one, text in zip(passes, texts):
            _switch(pipe, one)
            recorder.kept = []
            scaled = scheduler.scale_model_input(z.expand(2, -1, -1, -1), t)
            noises.append(pipe.unet(scaled, t, text).sample)
            seen = torch.cat(recorder.kept).mean(0)  # halves, heads and layers alike
            maps.append(seen.to(torch.promote_types(seen.dtype, torch.float32)))
        return noises, maps

    z, latents = noise * scheduler.init_noise_sigma, []
    with torch.no_grad(), replaced(sites, recorder):
        for i, t in enumerate(scheduler.timesteps):
            noises, maps = [], []
            if not updates[i]:
                noises, maps = evaluate(z, t)
            for _ in range(updates[i]):
                with torch.enable_grad():
                    leaf = z.detach().requires_grad_()
                    noises, maps = evaluate(leaf, t)
                    gradient = torch.autograd.grad(contrast(maps, groups, temperature), leaf)[0]
                z = z - step_size * gradient
            fused = _joined(passes, noises, maps, threshold)
            unconditional, conditional = fused
            prediction = unconditional + guidance * (conditional - unconditional)
            z = scheduler.step(prediction[None], t, z, return_dict=False)[0]
            latents.append(z)
    for parameter in wanting:
        parameter.requires_grad_(True)
    return latents


def _joined(
    passes: Sequence[NaivePass], noises: Sequence[Tensor], maps: Sequence[Tensor], threshold: float
) -> Tensor:
    """(2, C, h, w): the passes' noises, each where its words look; overlaps are averaged."""
    size = noises[0].shape[-2:]
    scale = round((size[0] * size[1] / len(maps[0])) ** 0.5)
    level = -(-size[0] // scale), -(-size[1] // scale)
    masks = [noises[0].new_zeros(level) for _ in passes]
    for k, one in enumerate(passes):
        for token in one.tokens:
            own = maps[k][:, token].detach().reshape(level)
            masks[k] = torch.maximum(masks[k], (own > threshold * own.max()).to(masks[k]))
    masks[0] = (torch.stack(masks[1:]).sum(0) == 0).to(masks[0])
    wide = F.interpolate(torch.stack(masks)[:, None], size, mode="nearest")  # (P, 1, h, w)
    every = torch.stack([own.detach() for own in noises])  # (P, 2, C, h, w)
    return (every * wide[:, None]).sum(0) / wide.sum(0)


def contrast(
    maps: Sequence[Tensor], groups: Sequence[Sequence[tuple[int, int]]], temperature: float
) -> Tensor:
    """NT-Xent with all ordered positive pairs, by loops."""
    embeddings, labels = [], []
    for label, group in enumerate(groups):
        for k, token in group:
            own = maps[k][:, token]
            embeddings.append((own - own.min()) / (own.max() - own.min()))
            labels.append(label)
    unit, terms = [F.normalize(e, dim=0) for e in embeddings], []
    for a, anchor in enumerate(unit):
        negatives = torch.stack([
            torch.exp(anchor @ other / temperature)
            for other, label in zip(unit, labels) if label != labels[a]
        ]).sum()  # fmt: skip
        for p, positive in enumerate(unit):
            if p != a and labels[p] == labels[a]:
                own = torch.exp(anchor @ positive / temperature)
                terms.append(-torch.log(own / (own + negatives)))
    return torch.stack(terms).mean()


def _switch(pipe: StableDiffusionPipeline, one: NaivePass) -> None:
    if one.lora is None:
        pipe.disable_lora()
    else:
        pipe.enable_lora()
        pipe.set_adapters([one.lora], [one.weight])
    pipe.unet.requires_grad_(False)  # peft makes the factors of what is active trainable


def naive_picture(
    pipe: StableDiffusionPipeline, prompt: str, loras: Sequence[str], size: tuple[int, int],
    steps: int, updates: Sequence[int],
) -> int:  # fmt: skip
    """Draw a prompt with markup, with the published settings; gives the number of denoiser calls.

    Args:
        pipe: with the LoRAs loaded into it.
        prompt: with a concept for each LoRA.
        loras: their names.
        size: (width, height) in pixels.
        steps: of denoising.
        updates: how often the latent is moved at each step.
    """
    backbone, parsed = StableDiffusion1(pipe), parse_prompt(prompt)
    passes, words = [], []
    for k, text in enumerate(pass_prompts(parsed)):
        nouns, triggers = (
            {name: backbone.token_positions(text.text, span) for name, span in spans.items()}
            for spans in (text.nouns, text.triggers)
        )
        own = loras[k - 1] if k else None
        tokens = [*triggers.get(own, []), *nouns[own]] if own else []
        passes.append(NaivePass(text.text, own, 1.0, tokens))
        words.append(nouns)
    groups = [
        [(k, token) for k, nouns in enumerate(words)
         for token in (passes[k].tokens if k == n else nouns[name])]
        for n, name in enumerate(loras, 1)
    ]  # fmt: skip
    noise = backbone.noise(*size, torch.Generator().manual_seed(0))
    latents = naive_clora(
        pipe, passes, groups, noise, steps=steps, guidance=7.5, updates=updates, step_size=20.0,
        threshold=0.4, temperature=0.5,
    )[-1]  # fmt: skip
    backbone.decode(latents)
    return len(passes) * sum(max(1, count) for count in updates)
