"""Pictures that the base model draws itself: class pictures for prior preservation, previews.

Prior preservation (DreamBooth, Ruiz et al. 2023, section 3.2) trains on pictures of the class
beside those of the subject, so that "a cat" does not turn into this one cat.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from loraweave.errors import TrainingError
from loraweave.files import write_atomically
from loraweave.train.data import Example, find_examples
from loraweave.train.settings import TrainSettings


def class_examples(
    pipe: Any,
    settings: TrainSettings,
    prompt: str,
    cache: Path,
    base: str,
    size: tuple[int, int],
    advance: Callable[[int], None],
) -> list[Example]:
    """Class pictures for prior preservation: the user's own, or drawn and kept in `cache`.

    Args:
        pipe: the base pipeline, without LoRA layers.
        settings: `class_folder`, `class_images`, `class_steps`, `guidance_scale`, `seed`.
        prompt: what the pictures show.
        cache: folder to keep drawn pictures in; an unfinished set is completed.
        base: hash of the base model; pictures of another base are not used.
        size: (width, height) in pixels.
        advance: called with the number of pictures that are there.

    Raises:
        TrainingError: the cache belongs to other settings, or the safety checker hides too many.
    """
    if settings.class_folder is not None:
        return find_examples(settings.class_folder)
    record = {
        "prompt": prompt,
        "base": base,
        "size": list(size),
        "steps": settings.class_steps,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed,
    }
    _claim(cache, record)
    examples: list[Example] = []
    for attempt in range(3 * settings.class_images):
        path = cache / f"class_{attempt:05d}.png"
        if not path.exists():
            seed, steps = settings.seed + attempt, settings.class_steps
            image = draw(pipe, prompt, seed, size, steps, settings.guidance_scale)
            if image is None:
                continue
            save_png(image, path)
        examples.append(Example(path, None))
        advance(len(examples))
        if len(examples) == settings.class_images:
            return examples
    raise TrainingError(
        f"The pipeline's safety checker hid most pictures of {prompt!r}. Give class pictures of "
        "your own as class_folder."
    )


def _claim(cache: Path, record: dict[str, Any]) -> None:
    note = cache / "class.json"
    text = json.dumps(record, indent=2)
    if note.exists() and note.read_text(encoding="utf-8") != text:
        raise TrainingError(
            f"The class pictures in {cache} were drawn with other settings or another base model. "
            "Delete that folder, or give it as class_folder to use it as it is."
        )
    write_atomically(note, text.encode())


def draw(
    pipe: Any, prompt: str | tuple[Tensor, Tensor], seed: int, size: tuple[int, int], steps: int,
    guidance_scale: float,
) -> Image.Image | None:  # fmt: skip
    """One picture; None if the safety checker hid it. The pipeline is left as it was.

    Args:
        pipe: any Stable Diffusion pipeline.
        prompt: what to draw: a text, or the states (1, T, D) of an empty one and of a text.
        seed: of the first noise.
        size: (width, height) in pixels.
        steps: denoising steps.
        guidance_scale: of classifier-free guidance.
    """
    words: dict[str, Any] = {"prompt": prompt}
    if not isinstance(prompt, str):
        words = {"negative_prompt_embeds": prompt[0], "prompt_embeds": prompt[1]}
    before = dict(vars(pipe))  # a call leaves its guidance scale and the like in the pipeline
    try:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        output = pipe(
            **words,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
        )
    finally:
        vars(pipe).clear()
        vars(pipe).update(before)
    hidden = output.nsfw_content_detected
    return None if hidden and hidden[0] else output.images[0]


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture so that a half-written file never stays."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
