"""CLoRA as its authors' code computes it, written again from the description with stock parts only.

One pass after the other, LoRAs switched by diffusers, every cross-attention recorded by a processor
of its own, plain loops. Slow on purpose; for float64.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class PlainPass:
    """One pass: its text, the LoRA that is on (or None) with its weight, and token positions."""

    text: str
    lora: str | None
    weight: float
    tokens: list[int]  # trigger and noun of its concept; none for the base


class Recording:
    """Attention computed in the plain way, kept where there are `positions` places."""

    def __init__(self, positions):
        self.positions, self.kept = positions, []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(f(context)) for f in (attn.to_k, attn.to_v))
        scores = query @ key.transpose(1, 2) * attn.scale
        probabilities = scores.softmax(-1)
        if cross and hidden_states.shape[1] == self.positions:
            self.kept.append(probabilities)
        out = attn.batch_to_head_dim(probabilities @ value)
        return attn.to_out[1](attn.to_out[0](out))


def plain_clora(
    pipe, passes: list[PlainPass], groups: list[list[tuple[int, int]]], noise: Tensor, *,
    steps: int, guidance: float, updates: list[int], step_size: float, threshold: float,
    temperature: float,
) -> list[Tensor]:  # fmt: skip
    """The latents after every step.

    Args:
        pipe: with all LoRAs loaded; its processors are replaced.
        passes: the base first.
        groups: per concept the (pass, token) of its embeddings.
        noise: (1, C, h, w).
        updates: how often the latent is moved at each step.
    """
    recorder = Recording(noise.shape[-1] * noise.shape[-2])
    pipe.unet.set_attn_processor(recorder)
    pipe.unet.requires_grad_(False)
    with torch.no_grad():
        texts = []
        for one in passes:
            _switch(pipe, one)
            conditional, unconditional = pipe.encode_prompt(one.text, "cpu", 1, True, "")
            texts.append(torch.cat([unconditional, conditional]))

    def evaluate(z, t):
        noises, maps = [], []
        for one, text in zip(passes, texts):
            _switch(pipe, one)
            recorder.kept = []
            noises.append(pipe.unet(z.expand(2, -1, -1, -1), t, text).sample)
            maps.append(torch.cat(recorder.kept).mean(0))  # halves, heads and layers alike
        return noises, maps

    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    z, seen = noise * scheduler.init_noise_sigma, []
    for i, t in enumerate(scheduler.timesteps):
        if not updates[i]:
            with torch.no_grad():
                noises, maps = evaluate(z, t)
        for _ in range(updates[i]):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                noises, maps = evaluate(leaf, t)
                loss = contrast(maps, groups, temperature)
                gradient = torch.autograd.grad(loss, leaf)[0]
            z = z - step_size * gradient
        masks = [torch.zeros(noise.shape[-2:], dtype=z.dtype) for _ in passes]
        for k, one in enumerate(passes):
            for token in one.tokens:
                own = maps[k][:, token].detach().reshape(noise.shape[-2:])
                masks[k] = torch.maximum(masks[k], (own > threshold * own.max()).to(z.dtype))
        masks[0] = (sum(masks[1:]) == 0).to(z.dtype)
        total = sum(masks)
        fused = sum(m * n.detach() for m, n in zip(masks, noises)) / total
        unconditional, conditional = fused
        prediction = unconditional + guidance * (conditional - unconditional)
        z = scheduler.step(prediction[None], t, z).prev_sample
        seen.append(z)
    return seen


def contrast(maps: list[Tensor], groups: list[list[tuple[int, int]]], temperature: float) -> Tensor:
    """NT-Xent with all ordered positive pairs, by loops."""
    embeddings, labels = [], []
    for label, group in enumerate(groups):
        for k, token in group:
            own = maps[k][:, token]
            embeddings.append((own - own.min()) / (own.max() - own.min()))
            labels.append(label)
    unit, terms = [F.normalize(e, dim=0) for e in embeddings], []
    for a, anchor in enumerate(unit):
        negatives = sum(
            torch.exp(anchor @ other / temperature)
            for other, label in zip(unit, labels) if label != labels[a]
        )  # fmt: skip
        for p, positive in enumerate(unit):
            if p != a and labels[p] == labels[a]:
                own = torch.exp(anchor @ positive / temperature)
                terms.append(-torch.log(own / (own + negatives)))
    return torch.stack(terms).mean()


def _switch(pipe, one: PlainPass) -> None:
    if one.lora is None:
        pipe.disable_lora()
    else:
        pipe.enable_lora()
        pipe.set_adapters([one.lora], [one.weight])
