"""Everything a training run computes once: captions, latents, text embeddings.

Shapes: C latent channels, (h, w) latent cells, T tokens, D text width, N pictures, V versions of
a picture (2 with mirroring, else 1).
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from loraweave.errors import TrainingError
from loraweave.train.data import Example, examples_sha256, find_examples, load_picture, to_tensor
from loraweave.train.edlora import tokens_of, with_tokens
from loraweave.train.prior import class_examples
from loraweave.train.settings import TrainSettings
from loraweave.train.state import base_sha256

# These do not change the result, so a run may go on when they have changed.
_NOT_IN_FINGERPRINT = {"checkpoint_every", "preview_every", "preview_steps", "class_folder"}


@dataclass(frozen=True)
class Inputs:
    """What the training loop reads.

    Attributes:
        size: (width, height) of the pictures in pixels.
        phrase: what stands for the subject: trigger and class noun, or an ED-LoRA's two tokens.
        prompt: "a <phrase>"; the first caption if there is no trigger.
        class_prompt: "a <class noun>".
        captions: one for each picture.
        latents: (N, V, C, h, w), scaled as the denoiser wants them.
        class_latents: the same for the class pictures; None without prior preservation.
        embeddings: text -> (1, T, D); empty if the text encoder or its tokens are trained.
        fingerprint: all that the result depends on, to recognise a checkpoint of the same run.
    """

    size: tuple[int, int]
    phrase: str
    prompt: str
    class_prompt: str
    captions: list[str]
    latents: Tensor
    class_latents: Tensor | None
    embeddings: dict[str, Tensor]
    fingerprint: dict[str, Any]


def checked_examples(
    folder: str | Path, trigger: str, class_noun: str, settings: TrainSettings
) -> list[Example]:
    """The pictures of a folder, if they and the words go together; needs no model.

    Raises:
        TrainingError: see `train_lora`.
    """
    if bool(trigger) != bool(class_noun) or (settings.prior and not class_noun):
        raise TrainingError(
            "The trigger and the class noun go together, and prior preservation needs them: give "
            "for example 'sks' and 'cat'; leave out both for a style, with a caption beside "
            "every picture."
        )
    if settings.kind == "ed-lora":
        tokens_of(trigger)
    examples = find_examples(folder)
    if not trigger and (bare := [e.path.name for e in examples if e.caption is None]):
        raise TrainingError(
            f"Without a trigger every picture needs a caption, but {len(bare)} have none, for "
            f"example {bare[0]}. Put a .txt file beside it, or give a trigger and a class noun."
        )
    return examples


def prepare(
    pipe: Any,
    folder: str | Path,
    trigger: str,
    class_noun: str,
    class_cache: Path,
    settings: TrainSettings,
    bar: Progress,
) -> Inputs:
    """Check and read everything; see `train_lora` for the arguments and errors."""
    examples = checked_examples(folder, trigger, class_noun, settings)
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise TrainingError(
            f"The denoiser reads {pipe.unet.config.in_channels} channels, but the VAE makes "
            f"{pipe.vae.config.latent_channels}: inpainting models cannot be trained."
        )
    size = picture_size(pipe, settings.size)
    phrase, needed = f"{trigger} {class_noun}".strip(), trigger
    if settings.kind == "ed-lora":
        phrase = needed = " ".join(tokens_of(trigger))
    prompt = f"a {phrase}" if trigger else str(examples[0].caption)
    class_prompt = f"a {class_noun}".strip()
    captions = [example.caption or prompt for example in examples]
    if settings.kind == "ed-lora":
        captions = [with_tokens(caption, trigger, class_noun) for caption in captions]
    _warn_without_trigger(captions, needed)

    base = base_sha256(pipe)
    prior: list[Example] = []
    if settings.prior:
        total = None if settings.class_folder else settings.class_images
        task = bar.add_task("class pictures", total=total, note="")
        prior = class_examples(
            pipe,
            settings,
            class_prompt,
            class_cache,
            base,
            size,
            advance=lambda done: bar.update(task, completed=done),
        )
        bar.remove_task(task)

    generator = torch.Generator().manual_seed(settings.seed)
    latents = encode_pictures(pipe, examples, size, settings.flip, generator, bar)
    class_latents = None
    if prior:
        class_latents = encode_pictures(pipe, prior, size, settings.flip, generator, bar)
    embeddings: dict[str, Tensor] = {}
    if not settings.text_encoder and settings.kind == "lora":
        with torch.no_grad():
            embeddings = {text: embed(pipe, [text]) for text in {*captions, class_prompt}}
    fingerprint = {
        **{k: v for k, v in asdict(settings).items() if k not in _NOT_IN_FINGERPRINT},
        "trigger": trigger,
        "class_noun": class_noun,
        "picture size": size,
        "pictures": examples_sha256(examples),
        "class pictures": examples_sha256(prior),
        "base model": base,
        "device": pipe.unet.device.type,
    }
    return Inputs(
        size, phrase, prompt, class_prompt, captions, latents, class_latents, embeddings,
        fingerprint,
    )  # fmt: skip


def picture_size(pipe: Any, side: int | None) -> tuple[int, int]:
    """(width, height) in pixels of the training pictures.

    Args:
        pipe: gives the default: latent cells times the VAE's factor.
        side: of a square picture, or None.

    Raises:
        TrainingError: `side` does not survive the denoiser's halvings.
    """
    factor = pipe.vae_scale_factor
    cells = pipe.unet.config.sample_size
    height, width = cells if isinstance(cells, list | tuple) else (cells, cells)
    size = (side, side) if side else (width * factor, height * factor)
    step = factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    if size[0] % step or size[1] % step:
        raise TrainingError(f"size is {size[0]}; for this model it must be a multiple of {step}.")
    return size


def encode_pictures(
    pipe: Any,
    examples: Sequence[Example],
    size: tuple[int, int],
    flip: bool,
    generator: torch.Generator,
    bar: Progress,
) -> Tensor:
    """(N, V, C, h, w) latents, one draw from the VAE's posterior for each version of a picture.

    Raises:
        TrainingError: a picture cannot be read, or the VAE overflows.
    """
    vae, latents = pipe.vae, []
    task = bar.add_task("reading pictures", total=len(examples), note="")
    for example in examples:
        image = to_tensor(load_picture(example.path, *size))
        versions = torch.stack([image, image.flip(-1)] if flip else [image])
        with torch.no_grad():
            posterior = vae.encode(versions.to(vae.device, vae.dtype)).latent_dist
        drawn = posterior.sample(generator).float()  # (V, C, h, w)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents.append((drawn - shift) * vae.config.scaling_factor)
        bar.advance(task)
    bar.remove_task(task)
    stacked = torch.stack(latents).to(pipe.unet.device)
    if not torch.isfinite(stacked).all():
        raise TrainingError("The VAE gives values that are not numbers; load it in float32.")
    return stacked


def embed(pipe: Any, texts: list[str]) -> Tensor:
    """(B, T, D) text embeddings, by the pipeline's own rules; differentiable."""
    return pipe.encode_prompt(texts, pipe.unet.device, 1, False)[0].to(pipe.unet.device)


def _warn_without_trigger(captions: list[str], trigger: str) -> None:
    lacking = sum(trigger not in caption for caption in captions)
    if lacking:
        warnings.warn(
            f"{lacking} of {len(captions)} captions do not contain the trigger {trigger!r}; the "
            "LoRA will not be tied to it there.",
            stacklevel=4,
        )
