"""What a training run depends on besides the model and the pictures."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraweave.errors import TrainingError


@dataclass(frozen=True)
class TrainSettings:
    """Settings of `train_lora`; everything that is not plausible is refused at once.

    Attributes:
        kind: "lora", or "ed-lora" for a LoRA with two tokens of its own whose vectors are trained,
            too, one for each cross-attention layer (Mix-of-Show).
        rank: of every update.
        alpha: the update is applied at alpha / rank; None for alpha = rank.
        learning_rate: of AdamW for the denoiser's updates.
        steps: optimiser steps.
        batch_size: pictures a step.
        seed: of everything random.
        size: side of the square training picture in pixels; None for the model's own size.
        flip: also train on mirrored pictures; wrong for subjects that are not symmetric.
        text_encoder: also train the text encoder's attention; None for what the kind says: an
            ED-LoRA trains it, a LoRA does not. It is True or False once the settings are made.
        text_learning_rate: of the text encoder's updates; None for `learning_rate`.
        embedding_learning_rate: of an ED-LoRA's token vectors.
        prior: weight of the prior-preservation loss (DreamBooth, section 3.2); 0 switches it off.
        class_images: how many class pictures to draw with the base model for it.
        class_folder: class pictures to use instead of drawing some.
        class_steps: denoising steps for each class picture.
        min_snr: gamma of the min-SNR loss weight (Hang et al. 2023, 5 in the paper); None for the
            plain mean squared error.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        dtype: arithmetic of the forward pass; the updates themselves stay float32.
        checkpoint_every: steps between checkpoints; 0 for none.
        preview_every: steps between preview pictures; 0 for none.
        preview_steps: denoising steps for each preview.
        guidance_scale: for previews and class pictures.
    """

    kind: Literal["lora", "ed-lora"] = "lora"
    rank: int = 8
    alpha: float | None = None
    learning_rate: float = 1e-4
    steps: int = 800
    batch_size: int = 1
    seed: int = 0
    size: int | None = None
    flip: bool = False
    text_encoder: bool | None = None
    text_learning_rate: float | None = None
    embedding_learning_rate: float = 1e-3
    prior: float = 0.0
    class_images: int = 100
    class_folder: str | Path | None = None
    class_steps: int = 30
    min_snr: float | None = None
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_every: int = 100
    preview_every: int = 0
    preview_steps: int = 30
    guidance_scale: float = 7.5

    def __post_init__(self):
        for name in ("rank", "steps", "batch_size", "class_images", "class_steps", "preview_steps"):
            self._need(name, _whole(getattr(self, name), 1), "a whole number of at least 1")
        for name in ("seed", "checkpoint_every", "preview_every"):
            self._need(name, _whole(getattr(self, name), 0), "a whole number of at least 0")
        self._need("size", self.size is None or _whole(self.size, 1), "a number of pixels")
        for name in ("learning_rate", "embedding_learning_rate", "max_grad_norm"):
            self._need(name, _number(getattr(self, name), positive=True), "a number above 0")
        for name in ("alpha", "text_learning_rate", "min_snr"):
            value = getattr(self, name)
            self._need(name, value is None or _number(value, positive=True), "a number above 0")
        for name in ("prior", "weight_decay", "guidance_scale"):
            self._need(name, _number(getattr(self, name)), "a number of at least 0")
        known = ("float32", "bfloat16", "float16")
        self._need("dtype", self.dtype in known, f"one of {', '.join(known)}")
        self._need("kind", self.kind in ("lora", "ed-lora"), "one of lora, ed-lora")
        if self.text_encoder is None:
            object.__setattr__(self, "text_encoder", self.kind == "ed-lora")

    def _need(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise TrainingError(f"{name} is {getattr(self, name)!r}; it must be {expected}.")

    @property
    def scale_alpha(self) -> float:
        """alpha, with the default filled in."""
        return float(self.rank if self.alpha is None else self.alpha)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: object, positive: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return value > 0 if positive else value >= 0
