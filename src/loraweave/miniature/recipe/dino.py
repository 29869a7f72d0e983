"""A vision transformer that learned from the miniature's pictures alone (DINO, Caron et al. 2021).

A student sees crops of a picture, a teacher, its moving average, sees the large ones; the student
learns to say of each crop what the teacher says of the others. No caption and no class is told. It
is a `ViTModel` like Meta's, so the code that measures with theirs runs with it.
"""

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ...detect.pixels import IMAGENET_MEAN, IMAGENET_STD, normalised
from ..world import WorldSettings, sample_drawing
from .clip import PATCH, SIDE, worn_drawings
from .run import Fit, Run

GLOBAL, LOCAL = (0.4, 1.0), (0.1, 0.4)
"""Share of the picture that a crop has."""
LOCALS = 4
STUDENT, TEACHER = 0.1, 0.04
"""Temperatures."""


def new_dino(side: int = SIDE) -> ViTModel:
    """An untrained one."""
    return ViTModel(
        ViTConfig(
            hidden_size=72, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4,
            image_size=side, patch_size=PATCH,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


class Head(nn.Module):
    """What both say: scores of prototypes."""

    def __init__(self, width: int, prototypes: int = 1024, hidden: int = 256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, 64),
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.randn(prototypes, 64))

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        return F.normalize(self.layers(features), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Pupil(nn.Module):
    """A transformer with its head, and the mean of what the teacher says, which is taken off."""

    centre: Tensor

    def __init__(self, side: int):
        super().__init__()
        self.body = new_dino(side)
        self.head = Head(self.body.config.hidden_size)
        self.register_buffer("centre", torch.zeros(len(self.head.prototypes)))

    def forward(self, crops: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B P"]:
        """The scores of some crops of one size, in [-1, 1]."""
        pixels = normalised(crops / 2 + 0.5, IMAGENET_MEAN, IMAGENET_STD)
        states = self.body(pixels, interpolate_pos_encoding=True).last_hidden_state
        return self.head(states[:, 0])


def crops_of(
    pixels: Float[Tensor, "B 3 H W"], share: tuple[float, float], side: int, g: torch.Generator
) -> Float[Tensor, "B 3 s s"]:
    """A random square of each picture, mirrored or not, its brightness and contrast changed."""
    n = len(pixels)
    area = share[0] + (share[1] - share[0]) * torch.rand(n, generator=g)
    scale = area.sqrt()
    place = (2 * torch.rand(n, 2, generator=g) - 1) * (1 - scale)[:, None]
    mirror = 1 - 2 * (torch.rand(n, generator=g) < 0.5).float()
    zeros = torch.zeros(n)
    theta = torch.stack([
        torch.stack([scale * mirror, zeros, place[:, 0]], 1),
        torch.stack([zeros, scale, place[:, 1]], 1),
    ], 1)  # fmt: skip
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    crops = F.grid_sample(pixels, grid, align_corners=False, padding_mode="reflection")
    gain = 1 + 0.2 * (2 * torch.rand(n, 1, 1, 1, generator=g) - 1)
    shift = 0.2 * (2 * torch.rand(n, 1, 1, 1, generator=g) - 1)
    return (crops * gain + shift).clamp(-1, 1)


def train_dino(
    run: Run, world: WorldSettings, steps: int, *, side: int = SIDE, rate: float = 1e-3,
    batch: int = 64,
) -> ViTModel:  # fmt: skip
    """Train, or finish a run that was interrupted; what is handed back is the teacher."""
    torch.manual_seed(run.seed)
    student = Pupil(side)
    # The moving average is the teacher, shorter than DINO's .996: the run is shorter too.
    fit = Fit(
        run, "dino", student, steps=steps, rate=rate, average=0.99, weight_decay=0.04, warm=False
    )
    teacher = copy.deepcopy(student).requires_grad_(False)

    def crops(i: int) -> tuple[Tensor, Tensor]:
        g = run.generator("dino", i)
        seeds = torch.randint(2**31, (batch,), generator=g).tolist()
        pixels = worn_drawings([sample_drawing(seed, world) for seed in seeds], side, g)
        large = [crops_of(pixels, GLOBAL, side, g) for _ in range(2)]
        small = [crops_of(pixels, LOCAL, side // 2, g) for _ in range(LOCALS)]
        return torch.cat(large), torch.cat(small)

    for step, (large, small) in fit.fed(crops):
        large, small = run.there(large), run.there(small)
        teacher.load_state_dict(fit.average.values)
        with run.autocast():
            with torch.no_grad():
                taught = teacher(large).float()
            told = [*student(large).float().chunk(2)]
            told += student(small).float().chunk(LOCALS)
        targets = ((taught - student.centre) / TEACHER).softmax(-1).chunk(2)
        terms = [
            -(target * (own / STUDENT).log_softmax(-1)).sum(-1).mean()
            for i, target in enumerate(targets)
            for j, own in enumerate(told)
            if i != j
        ]
        loss = torch.stack(terms).mean()
        student.centre.lerp_(taught.mean(0), 0.1)
        fit.update(step, loss)
        used = torch.cat(targets).mean(0)
        step.figures["loss"] = loss.item()
        # 1 if all prototypes are in use, 0 if there is one answer to everything
        step.figures["spread"] = -(used * used.clamp(min=1e-9).log()).sum().item() / math.log(
            len(used)
        )
    fit.finish()
    return student.body.cpu().eval()
