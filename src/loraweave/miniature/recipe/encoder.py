"""The judge's identity encoder, from pairs of views of one individual.

Each batch holds families: an individual and relatives of its class that differ from it in one
thing only (pattern, second colour, accessory, eyes, body colour), or that are half of it and half
of somebody else, so that the encoder has to look at all of them. Two views of an individual share
its looks and nothing else: place, size, side, background, neighbours and wear are drawn anew
(NT-Xent, Chen et al. 2020, with the family's other members among the negatives).

Views are drawn once and kept; training mirrors and tints them anew. A second part of the training
mixes them with views that the denoiser has painted over (`dream.py`): without these the encoder
takes the smears of a generated picture for another individual.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor

from ...progress import track
from ..codec import from_bytes, images_of, pixels_of, to_bytes
from ..judge.identity import IdentityEncoder, crop_of
from ..prompts import listed
from ..segmenter import SIDE, at_places
from ..world import Drawing, Subject, WorldSettings, render
from ..world.sample import EYES, half_blended, place_subjects, sample_subject
from .dream import dreamed
from .judge import coded, worn
from .run import Fit, Run, save_tensors

FAMILIES, MEMBERS = 16, 4  # of a batch, and of each of them
TEMPERATURE = 0.1


def family(rng: random.Random, world: WorldSettings, members: int = MEMBERS) -> list[Subject]:
    """An individual and relatives that each differ from it in one thing."""
    first = sample_subject(rng, rng.choice(world.kinds), world)
    relatives = [first]
    while len(relatives) < members:
        other = sample_subject(rng, first.kind, world)
        change = rng.choice(("pattern", "second", "accessory", "eye", "body", "half"))
        if change == "accessory":
            relative = replace(
                first, accessory=other.accessory, accessory_colour=other.accessory_colour
            )
        elif change == "second":
            relative = replace(first, second=other.second, pattern=_patterned(rng, first, world))
        elif change == "half":
            relative = half_blended(first, other)
        elif change == "eye":
            relative = replace(first, eye=rng.choice([e for e in EYES if e != first.eye]))
        else:
            relative = replace(first, **{change: getattr(other, change)})
        if relative not in relatives:
            relatives.append(relative)
    return relatives


def _patterned(rng: random.Random, subject: Subject, world: WorldSettings) -> str:
    """A pattern that shows the second colour: the subject's own if it has one."""
    if subject.pattern != "plain":
        return subject.pattern
    return rng.choice([p for p in world.patterns if p != "plain"])


class View(NamedTuple):
    """A scene, its bare caption, and where the subject is in it."""

    image: Image.Image
    mask: np.ndarray
    caption: str


def view(rng: random.Random, subject: Subject, world: WorldSettings, side: int = SIDE) -> View:
    """A scene of `side` pixels with the subject somewhere in it."""
    n = rng.choices((1, 2, 3), (0.3, 0.5, 0.2))[0]
    subjects = [sample_subject(rng, rng.choice(world.kinds), world) for _ in range(n)]
    own = rng.randrange(n)
    subjects[own] = subject
    placed = place_subjects(rng, subjects, overlap=0.1)
    drawn = render(Drawing(placed, rng.choice(world.backgrounds), rng.randrange(2**31)), side)
    if drawn.masks[own].mean() * SIDE**2 < 40:  # hidden: seen alone instead
        return view(rng, subject, replace(world, kinds=(subject.kind,)), side)
    caption = listed([one.kind for one in subjects], drawn.drawing.background)
    return View(drawn.image, drawn.masks[own], caption)


def frayed(mask: np.ndarray, rng: random.Random) -> np.ndarray:
    """A mask as a segmenter finds it: at half resolution, a little too large or small."""
    half = at_places(mask)
    grow = rng.choice((-1, 0, 0, 1))
    if grow > 0:
        half = ndimage.binary_dilation(half)
    elif grow < 0 and (smaller := ndimage.binary_erosion(half)).sum() > 10:
        half = smaller
    return half if half.any() else mask


def contrastive(vectors: Tensor, individuals: Tensor) -> Tensor:
    """NT-Xent: of all other views, the one of the same individual is the nearest.

    Args:
        vectors: (V, E) of unit length.
        individuals: (V,), each number twice.
    """
    scores = (vectors @ vectors.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    same = individuals[:, None] == individuals[None, :]
    target = same.fill_diagonal_(False).int().argmax(1)
    return F.cross_entropy(scores, target)


@torch.no_grad()
def crop_pool(
    run: Run, vae: AutoencoderKL, world: WorldSettings, families: int,
    pipe: StableDiffusionPipeline | None = None, side: int = SIDE,
) -> UInt8[Tensor, "F V 3 s s"]:  # fmt: skip
    """Crops of `families` families; of V views, 2 i and 2 i + 1 show member i.

    Read from a file in the run's folder if an earlier start left it.

    Args:
        run: for the file and the random numbers.
        vae: every second family went through it.
        world: whose individuals they are.
        families: how many.
        pipe: paints over all of them, if given.
        side: of the views that they are cut from, in pixels.
    """
    name = "crops" if pipe is None else "dreams"
    path = run.folder / f"{name}.safetensors"
    if path.exists() and len(found := load_file(path)["crops"]) == families:
        return found
    crops = []
    for number in track(range(families), f"miniature: {name}", total=families):
        g = run.generator(name, number)
        rng = random.Random(int(torch.randint(2**31, (1,), generator=g)))
        views = [view(rng, one, world, side) for one in family(rng, world) for _ in range(2)]
        pixels = pixels_of([one.image for one in views])
        if pipe is not None:
            pixels = dreamed(pipe, pixels, [one.caption for one in views], g)
        elif number % 2:
            pixels = coded(pixels, vae, g)
        crops.append(to_bytes(worn_crops(pixels, views, rng, g)))
    pool = torch.stack(crops).contiguous()
    save_tensors({"crops": pool}, path)
    return pool


def train_encoder(
    run: Run, stage: str, pools: Sequence[Tensor], steps: int, *, rate: float = 1e-3,
    start: IdentityEncoder | None = None,
) -> IdentityEncoder:  # fmt: skip
    """Train the encoder, or finish a run that was interrupted.

    Args:
        run: for checkpoints and the random numbers.
        stage: their name.
        pools: (F, V, 3, s, s) each; every batch has as many families of each.
        steps: of the optimiser.
        rate: the highest learning rate.
        start: goes on from this one, which is changed.
    """
    torch.manual_seed(run.seed)
    encoder = start or IdentityEncoder()
    fit = Fit(run, stage, encoder, steps=steps, rate=rate, average=0.995, weight_decay=1e-2)
    for step in fit.steps():
        g = run.generator(stage, step.number)
        share = FAMILIES // len(pools)
        chosen = torch.cat([p[torch.randperm(len(p), generator=g)[:share]] for p in pools])
        crops = run.there(varied(from_bytes(chosen.flatten(0, 1)), g))
        individuals = run.there(torch.arange(len(crops) // 2).repeat_interleave(2))
        with run.autocast():
            vectors = encoder(crops).float()
        loss = contrastive(vectors, individuals)
        fit.update(step, loss)
        step.figures |= {"loss": loss.item(), "nearest": nearest_is_same(vectors, individuals)}
    fit.finish()
    return encoder.cpu().eval()


def varied(crops: Float[Tensor, "B 3 s s"], g: torch.Generator) -> Float[Tensor, "B 3 s s"]:
    """Crops mirrored at random, shifted by up to two pixels and a little brighter or darker."""
    mirrored = torch.rand(len(crops), 1, 1, 1, generator=g) < 0.5
    crops = torch.where(mirrored, crops.flip(-1), crops)
    down, right = torch.randint(-2, 3, (2,), generator=g).tolist()
    crops = crops.roll((down, right), (2, 3))
    gain = 1 + 0.06 * torch.randn(len(crops), 1, 1, 1, generator=g)
    return (crops * gain).clamp(-1, 1)


def worn_crops(
    pixels: Float[Tensor, "B 3 H W"], views: Sequence[View], rng: random.Random, g: torch.Generator
) -> Float[Tensor, "B 3 s s"]:
    """Crops of views whose pictures went through more of what generated pictures go through."""
    seen = zip(images_of(worn(pixels, g)), (frayed(one.mask, rng) for one in views))
    return pixels_of([crop_of(image, mask) for image, mask in seen])


@torch.no_grad()
def nearest_is_same(vectors: Tensor, individuals: Tensor) -> float:
    """Share of views whose nearest other view shows the same individual."""
    scores = (vectors @ vectors.T).fill_diagonal_(-1)
    return (individuals[scores.argmax(1)] == individuals).float().mean().item()
