"""The training loss and the random choices that go into it.

Loss (DreamBooth, Ruiz et al. 2023, equations 1 and 2): the squared error of the denoiser's
prediction on a picture with its caption, plus, with prior preservation, `prior` times that on a
picture of the class with the caption "a <class>".

Shapes: B pictures a step (twice that with prior preservation), C latent channels, (h, w) cells.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.errors import TrainingError
from loraweave.train.inputs import Inputs, embed
from loraweave.train.settings import TrainSettings

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def training_scheduler(pipe: Any) -> DDPMScheduler:
    """The pipeline's noise schedule with all its training steps.

    Raises:
        TrainingError: the model predicts something that has no loss here.
    """
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert isinstance(scheduler, DDPMScheduler)  # a pair only if asked for unused settings
    prediction = scheduler.config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise TrainingError(f"Models that predict {prediction!r} cannot be trained yet.")
    return scheduler


@dataclass(frozen=True)
class Batch:
    """Random choices of one step; with prior preservation the second half is class pictures.

    Attributes:
        latents: (B, C, h, w), clean.
        noise: (B, C, h, w).
        times: (B,), steps of the noise schedule.
        texts: B captions.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    texts: list[str]


class Batches:
    """Draws batches; everything random is drawn on the CPU, so a seed means the same everywhere."""

    def __init__(self, inputs: Inputs, settings: TrainSettings, schedule_length: int):
        self.inputs, self.size, self.schedule_length = inputs, settings.batch_size, schedule_length
        self.generator = torch.Generator().manual_seed(settings.seed + 1)
        self.order: list[int] = []
        self.class_order: list[int] = []

    def draw(self) -> Batch:
        inputs = self.inputs
        chosen = self._take(self.order, len(inputs.latents))
        latents = self._versions(inputs.latents, chosen)
        texts = [inputs.captions[i] for i in chosen]
        if inputs.class_latents is not None:
            chosen = self._take(self.class_order, len(inputs.class_latents))
            latents = torch.cat([latents, self._versions(inputs.class_latents, chosen)])
            texts += [inputs.class_prompt] * self.size
        noise = torch.randn(latents.shape, generator=self.generator)
        times = torch.randint(0, self.schedule_length, (len(texts),), generator=self.generator)
        return Batch(latents, noise.to(latents.device), times.to(latents.device), texts)

    def _take(self, order: list[int], count: int) -> list[int]:
        """The next indices below `count`: each epoch in a new order, the rest stays in `order`."""
        while len(order) < self.size:
            order += torch.randperm(count, generator=self.generator).tolist()
        taken, order[:] = order[: self.size], order[self.size :]
        return taken

    def _versions(self, latents: Tensor, chosen: list[int]) -> Tensor:
        """(B, C, h, w): the chosen pictures, each in one of its V versions at random."""
        versions = torch.randint(0, latents.shape[1], (len(chosen),), generator=self.generator)
        return latents[chosen, versions.to(latents.device)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self.generator.get_state(),
            "order": list(self.order),
            "class_order": list(self.class_order),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["rng"])
        self.order, self.class_order = list(state["order"]), list(state["class_order"])


def denoising_loss(
    pipe: Any, scheduler: DDPMScheduler, batch: Batch, inputs: Inputs, settings: TrainSettings,
    backbone: StableDiffusion1 | None = None,
) -> Tensor:  # fmt: skip
    """Loss of one batch, a scalar with gradient to the LoRA layers that are in the pipeline.

    Args:
        pipe, scheduler, batch, inputs, settings: of the run.
        backbone: of an ED-LoRA, one that knows the tokens; the gradient goes to their vectors, too.
    """
    unet = pipe.unet
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.times)  # type: ignore[arg-type]
    dtype = getattr(torch, settings.dtype)
    with torch.autocast(unet.device.type, dtype, enabled=dtype != torch.float32):
        if backbone is not None:
            different = list(dict.fromkeys(batch.texts))
            text = backbone.encode(different)[[different.index(text) for text in batch.texts]]
        elif settings.text_encoder:
            text = embed(pipe, batch.texts)
        else:
            text = torch.cat([inputs.embeddings[text] for text in batch.texts])
        guess = unet(noisy.to(unet.dtype), batch.times, text.to(unet.dtype)).sample.float()

    prediction = scheduler.config["prediction_type"]
    target = {"epsilon": batch.noise, "sample": batch.latents}.get(prediction)
    if target is None:
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.times)  # type: ignore
    errors = (guess - target).square().mean(dim=(1, 2, 3))  # (B,)
    if settings.min_snr is not None:
        snr = compute_snr(scheduler, batch.times).to(errors.device)
        errors = errors * snr_weight(snr, settings.min_snr, prediction)
    if inputs.class_latents is None:
        return errors.mean()
    own, prior = errors.chunk(2)
    return own.mean() + settings.prior * prior.mean()


def snr_weight(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Min-SNR weights (Hang et al. 2023, section 3.4) for what the model predicts, (B,)."""
    clipped = snr.clamp(max=gamma)
    if prediction == "sample":
        return clipped
    return clipped / (snr + 1 if prediction == "v_prediction" else snr)
