"""Training a LoRA from a folder of pictures: one subject (DreamBooth with low-rank updates) or,
with captions and without a trigger, a style. Or an ED-LoRA of one subject."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.errors import TrainingError
from loraweave.lora.save import Format, lora_metadata, save_lora
from loraweave.train.edlora import new_vectors, saved_form
from loraweave.train.inputs import Inputs, prepare
from loraweave.train.loss import Batches, denoising_loss, training_scheduler
from loraweave.train.prior import draw, save_png
from loraweave.train.settings import TrainSettings
from loraweave.train.state import load_state, lora_layers, save_state

UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj"]

TOKENS = "tokens"

Layers = dict[str, dict[str, nn.Parameter]]
"""component -> name -> trainable parameter; an ED-LoRA's token vectors are a component, too"""


@dataclass(frozen=True)
class TrainReport:
    """What a training run did.

    Attributes:
        steps: optimiser steps of the LoRA, including those before an interruption.
        seconds: time spent on these steps.
        losses: one number a step.
        path: the LoRA file.
    """

    steps: int
    seconds: float
    losses: list[float]
    path: Path


def train_lora(
    pipe: Any,
    folder: str | Path,
    *,
    trigger: str = "",
    class_noun: str = "",
    out: str | Path,
    settings: TrainSettings | None = None,
    format: Format = "kohya",
    resume: bool = True,
    progress: bool = True,
    date: str | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainReport:
    r"""Train a LoRA on a folder of pictures and write it.

    The pipeline is left exactly as it was, also when an exception or Ctrl-C ends the run. An
    interrupted run goes on from its last checkpoint when it is called again in the same way.

    An ED-LoRA (`settings.kind`) gets two tokens from the trigger: `blackcat` makes <blackcat1> and
    <blackcat2>, which stand for the subject together. Captions may have them, or "blackcat cat" in
    their place as for a LoRA. In a prompt they are written `[\<blackcat1\> \<blackcat2\>](name)`,
    or with the noun behind them, `[\<blackcat1\> \<blackcat2\> cat](name)`, which `[cat](name)`
    becomes by itself.

    Args:
        pipe: any StableDiffusionPipeline, on any device, without LoRA layers.
        folder: pictures, each with an optional .txt caption beside it; without one the caption is
            "a <trigger> <class noun>".
        trigger: the word that shall stand for the subject; with the class noun it may be empty
            when every picture has a caption, as for a style. An ED-LoRA's is one plain word.
        class_noun: what the subject is; of an ED-LoRA, one token of the base.
        out: the file to write, ending in .safetensors. Beside it: `<out>.state` until the run is
            complete, and the folders `<stem>-preview` and `<stem>-class`.
        settings: see `TrainSettings`.
        format: names in the file: "kohya" for A1111 and ComfyUI, or "diffusers".
        resume: go on from `<out>.state` if it is there; otherwise it is deleted.
        progress: show a progress bar on stderr.
        date: ISO 8601, for the file's metadata.
        on_step: called after each step with the number of steps done and the loss; may raise to
            stop the run.

    Raises:
        TrainingError: input that cannot be trained from, a checkpoint of other settings, or a
            loss that is no longer a number.
    """
    settings = settings or TrainSettings()
    out = Path(out).expanduser()
    trigger, class_noun = " ".join(trigger.split()), " ".join(class_noun.split())
    if out.suffix != ".safetensors":
        raise TrainingError(f"The LoRA is written as .safetensors, but out is {out.name!r}.")
    checkpoint = out.with_name(f"{out.name}.state")
    if not resume:
        checkpoint.unlink(missing_ok=True)
    class_cache = out.with_name(f"{out.stem}-class")
    scheduler = training_scheduler(pipe)
    with _progress_bar(progress) as bar, torch.enable_grad(), ExitStack() as stack:
        inputs = prepare(pipe, folder, trigger, class_noun, class_cache, settings, bar)
        batches = Batches(inputs, settings, scheduler.config["num_train_timesteps"])
        layers, backbone = _wrap(pipe, settings, stack), None
        if settings.kind == "ed-lora":
            layers[TOKENS] = new_vectors(pipe, trigger, class_noun, settings.seed + 2)
            backbone = StableDiffusion1(pipe)
            stack.enter_context(backbone.tokens(layers[TOKENS]))
        optimizer = _optimizer(layers, settings)
        scaler = torch.GradScaler(pipe.unet.device.type, enabled=settings.dtype == "float16")
        parts = {"optimizer": optimizer, "scaler": scaler, "batches": batches}
        losses, before = _resume(checkpoint, inputs, layers, parts)

        start = time.perf_counter()
        task = bar.add_task("training", total=settings.steps, completed=len(losses), note="")
        for step in range(len(losses) + 1, settings.steps + 1):
            loss = denoising_loss(pipe, scheduler, batches.draw(), inputs, settings, backbone)
            losses.append(_checked(loss.item(), step))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()

            recent = losses[-50:]
            bar.update(task, advance=1, note=f"loss {sum(recent) / len(recent):.4f}")
            seconds = before + time.perf_counter() - start
            if _due(step, settings.checkpoint_every) and step < settings.steps:
                state = {name: part.state_dict() for name, part in parts.items()}
                values = {"lora": _values(layers), "losses": losses, "seconds": seconds}
                save_state(checkpoint, inputs.fingerprint, state | values)
            if _due(step, settings.preview_every):
                _preview(pipe, inputs, settings, out, step, backbone)
            if on_step is not None:
                on_step(step, losses[-1])
        seconds = before + time.perf_counter() - start
        states = _values(layers)
    save_lora(
        out,
        states["unet"],
        states.get("text_encoder"),
        rank=settings.rank,
        alpha=settings.scale_alpha,
        metadata=_metadata(pipe, inputs, settings, out.stem, trigger, class_noun, date),
        format=format,
        layered=saved_form(states.get(TOKENS, {})),
    )
    checkpoint.unlink(missing_ok=True)
    return TrainReport(settings.steps, seconds, losses, out)


def _progress_bar(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        disable=not show,
    )


def _wrap(pipe: Any, settings: TrainSettings, stack: ExitStack) -> Layers:
    """Trainable parameters of each component; the layers are taken out when `stack` closes."""
    generator = torch.Generator().manual_seed(settings.seed)
    models = {"unet": (pipe.unet, UNET_LAYERS)}
    if settings.text_encoder:
        models["text_encoder"] = (pipe.text_encoder, TEXT_LAYERS)
    layers: Layers = {}
    for component, (model, names) in models.items():
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.scale_alpha,  # type: ignore[arg-type]  # any number works
            target_modules=names,
            init_lora_weights="gaussian",
        )
        layers[component] = stack.enter_context(lora_layers(model, config, generator))
    return layers


def _optimizer(layers: Layers, settings: TrainSettings) -> torch.optim.AdamW:
    rates = {
        "text_encoder": settings.text_learning_rate or settings.learning_rate,
        TOKENS: settings.embedding_learning_rate,
    }
    groups = [
        {"params": list(parameters.values()), "lr": rates.get(component, settings.learning_rate)}
        for component, parameters in layers.items()
    ]
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def _resume(
    checkpoint: Path, inputs: Inputs, layers: Layers, parts: dict[str, Any]
) -> tuple[list[float], float]:
    """Losses and seconds up to the checkpoint, after loading it; ([], 0) if there is none."""
    saved = load_state(checkpoint, inputs.fingerprint)
    if saved is None:
        return [], 0.0
    for component, parameters in layers.items():
        for name, parameter in parameters.items():
            parameter.data.copy_(saved["lora"][component][name])
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["losses"], saved["seconds"]


def _values(layers: Layers) -> dict[str, dict[str, torch.Tensor]]:
    return {c: {n: p.detach().cpu() for n, p in named.items()} for c, named in layers.items()}


def _checked(loss: float, step: int) -> float:
    if not loss < float("inf"):  # true for nan as well
        raise TrainingError(
            f"The loss is {loss} at step {step}: the training has diverged. Use a lower learning "
            "rate."
        )
    return loss


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _preview(
    pipe: Any, inputs: Inputs, settings: TrainSettings, out: Path, step: int,
    backbone: StableDiffusion1 | None,
) -> None:  # fmt: skip
    words = inputs.prompt
    if backbone is not None:  # the pipeline itself does not know the tokens
        with torch.no_grad():
            negative, positive = backbone.encode(["", inputs.prompt]).split(1)
        words = negative, positive
    image = draw(
        pipe,
        words,
        settings.seed,
        inputs.size,
        settings.preview_steps,
        settings.guidance_scale,
    )
    if image is not None:
        save_png(image, out.with_name(f"{out.stem}-preview") / f"step_{step:06d}.png")


def _metadata(
    pipe: Any,
    inputs: Inputs,
    settings: TrainSettings,
    title: str,
    trigger: str,
    class_noun: str,
    date: str | None,
) -> dict[str, str]:
    """Header texts of the finished file."""
    if settings.kind == "ed-lora":
        trigger = inputs.phrase
    tags = Counter(tag.strip() for caption in inputs.captions for tag in caption.split(","))
    texts = lora_metadata(
        title=title,
        trigger_phrase=inputs.phrase,
        resolution=inputs.size,
        learning_rate=settings.learning_rate,
        images=len(inputs.captions),
        steps=settings.steps,
        tag_frequency={f"1_{inputs.phrase}": dict(tags)},
        base_version="sd_v2" if pipe.unet.config.cross_attention_dim == 1024 else "sd_v1",
        prediction_type=pipe.scheduler.config.get("prediction_type", "epsilon"),
        date=date,
        max_train_steps=settings.steps,
        total_batch_size=settings.batch_size,
        seed=settings.seed,
        mixed_precision=settings.dtype,
        prior_loss_weight=settings.prior,
        min_snr_gamma=settings.min_snr,
    )
    return {**texts, "loraweave.trigger": trigger, "loraweave.class_noun": class_noun}
