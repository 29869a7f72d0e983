"""Scenes drawn and encoded once: what the base model learns from.

Encoding costs as much as a training step of the U-Net, so a pool of scenes is drawn, encoded and
kept; captions are worded anew each time a scene is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTokenizer

from ...progress import track
from ..codec import from_bytes, pixels_of, posterior_of, to_bytes
from ..shipped import latent_factor
from ..world import Caption, Drawing, WorldSettings, caption_drawing, render, sample_drawing
from .run import Run, save_tensors

MAX_SUBJECTS = 5
CHUNK = 4096  # scenes of a file, some minutes of a processor's work


@dataclass(frozen=True)
class Pool:
    """Encoded scenes.

    Attributes:
        latents: (N, C, h, w) posterior means, unscaled, fp16.
        masks: (N, 5, h, w) share of each latent cell that each subject covers, 0 to 255, uint8.
        drawings: what was drawn.
    """

    latents: Tensor
    masks: Tensor
    drawings: list[Drawing]

    def subjects(self) -> Float[Tensor, " N"]:
        """How many each scene has."""
        return torch.tensor([float(len(drawing.subjects)) for drawing in self.drawings])

    def caption(self, index: int, seed: int) -> Caption:
        """Words for a scene, another wording for each seed."""
        detail = (0.1, 0.5, 0.9)[seed % 3]
        return caption_drawing(self.drawings[index], seed, detail)


class Drawn(NamedTuple):
    """Scenes of a pool, as a step learns from them.

    Attributes:
        chosen: (B,), their numbers.
        captions: one wording of each.
        named: the rows whose captions are told; a tenth are not.
        ids: (B, T), tokens of what is told.
    """

    chosen: Tensor
    captions: list[Caption]
    named: list[int]
    ids: Tensor


def drawn_from(
    pool: Pool, weights: Float[Tensor, " n"], tokenizer: CLIPTokenizer, batch: int,
    g: torch.Generator,
) -> Drawn:  # fmt: skip
    """`batch` scenes of a pool at random, each of its first n as likely as its weight says."""
    chosen = torch.multinomial(weights, batch, replacement=True, generator=g)
    wordings = torch.randint(2**31, (batch,), generator=g).tolist()
    captions = [pool.caption(n, w) for n, w in zip(chosen.tolist(), wordings)]
    dropped = (torch.rand(batch, generator=g) < 0.1).tolist()
    texts = ["" if d else c.text for c, d in zip(captions, dropped)]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return Drawn(chosen, captions, [i for i, d in enumerate(dropped) if not d], ids)


def build_pool(
    run: Run, vae: AutoencoderKL, world: WorldSettings, size: int, count: int, first_seed: int = 0
) -> Pool:
    """Draw and encode `count` scenes, or read as many of those that an earlier start left.

    They are kept in files of `CHUNK` scenes, so a start that was interrupted goes on.
    """
    drawings = [sample_drawing(first_seed + i, world) for i in range(count)]
    side = size // latent_factor(vae.config)
    # Taken at once: what is kept of each batch would lie between what is freed, and the process
    # would grow to ten times of what it holds.
    latents = torch.empty(count, vae.config["latent_channels"], side, side, dtype=torch.float16)
    masks = torch.empty(count, MAX_SUBJECTS, side, side, dtype=torch.uint8)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        path = run.folder / f"pool{start // CHUNK:03}.safetensors"
        if not _read(path, latents[part], masks[part]):
            _encode(run, vae, drawings[part], size, latents[part], masks[part])
            save_tensors({"latents": latents[part], "masks": masks[part]}, path)
    return Pool(latents, masks, drawings)


def _read(path: Path, latents: Tensor, masks: Tensor) -> bool:
    """Fill both with what a file has; whether it is there and has enough."""
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        found = file.get_slice("latents"), file.get_slice("masks")
        enough = found[0].get_shape()[0] >= len(latents)
        if enough:
            latents.copy_(found[0][: len(latents)])
            masks.copy_(found[1][: len(masks)])
    return enough


@torch.no_grad()
def _encode(
    run: Run, vae: AutoencoderKL, drawings: Sequence[Drawing], size: int, latents: Tensor,
    masks: Tensor, batch: int = 32,
) -> None:  # fmt: skip
    """Fill both with some drawings."""

    def rendered(start: int) -> tuple[Tensor, Tensor]:
        made = [render(drawing, size) for drawing in drawings[start : start + batch]]
        levels = to_bytes(pixels_of([one.image for one in made]))  # a quarter of the memory
        return levels, cell_masks([one.masks for one in made], latents.shape[-1])

    starts = range(0, len(drawings), batch)
    made = zip(starts, run.made(rendered, starts))
    for start, (levels, cells) in track(made, "miniature: pool", total=len(starts)):
        with run.autocast():
            mean = posterior_of(vae, from_bytes(run.there(levels))).mean
        latents[start : start + batch] = mean
        masks[start : start + batch] = cells


def cell_masks(masks: Sequence[np.ndarray], side: int) -> Tensor:
    """Instance masks averaged over latent cells: (B, 5, side, side), 0 to 255."""
    out = np.zeros((len(masks), MAX_SUBJECTS, side, side), dtype=np.uint8)
    for i, mask in enumerate(masks):
        n, height, width = mask.shape
        cells = mask.reshape(n, side, height // side, side, width // side).mean((2, 4))
        out[i, :n] = np.rint(cells * 255)
    return torch.from_numpy(out)
