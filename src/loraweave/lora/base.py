"""Which base model a LoRA file was made for, told from its names and shapes alone.

The width of the text that cross-attention reads (the in-dimension of `attn2.to_k`) tells the
families of Stable Diffusion apart; a file without cross-attention says less or nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from loraweave.lora.keys import split_name

Shapes = Mapping[str, tuple[int, ...]]

_WIDTHS = {
    128: "LoRAWeave's miniature",
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
}
_TEXT_WIDTHS = {
    128: "LoRAWeave's miniature",
    768: "Stable Diffusion 1.x, or the first text encoder of Stable Diffusion XL",
    1024: "Stable Diffusion 2.x",
    1280: "Stable Diffusion XL (its second text encoder)",
}
_TRANSFORMER = "a diffusion transformer (Flux, Stable Diffusion 3 or similar)"


@dataclass(frozen=True)
class BaseGuess:
    """What a file fits.

    Attributes:
        text: in words, with the evidence.
        width: width of the text that its cross-attention reads, if the file shows it.
        text_width: width of the text encoder, if the file shows only that.
        foreign: the file names parts that no Stable Diffusion 1.x or 2.x pipeline has.
    """

    text: str
    width: int | None = None
    text_width: int | None = None
    foreign: bool = False


def guess_base(shapes: Shapes) -> BaseGuess | None:
    """Guess the base from tensor name -> shape; None if nothing in the file tells."""
    text_guess = None
    for name, shape in shapes.items():
        parts = split_name(name)
        if parts is None:
            continue
        stem = parts.stem.replace(".processor", "").replace(".", "_")
        if parts.component == "transformer" or "double_blocks_" in stem:
            return BaseGuess(_TRANSFORMER, foreign=True)
        if parts.role != "down" or len(shape) < 2:
            continue
        if stem.endswith("attn2_to_k"):
            return BaseGuess(describe_width(shape[1]), width=shape[1])
        if parts.component in ("text_encoder_2", "text_encoder_3"):
            text_guess = BaseGuess(
                "Stable Diffusion XL or later (several text encoders)", foreign=True
            )
        elif text_guess is None and stem.endswith(("self_attn_q_proj", "self_attn_to_q")):
            known = _TEXT_WIDTHS.get(shape[1], "an unknown model")
            text = f"{known} (text encoder width {shape[1]})"
            text_guess = BaseGuess(text, text_width=shape[1])
    return text_guess


def describe_width(width: int) -> str:
    """The model family with this text width, in words."""
    return f"{_WIDTHS.get(width, 'an unknown model')} (text width {width})"


def model_width(unet: Any) -> int | None:
    """Text width of a loaded denoiser, from its configuration."""
    width = getattr(getattr(unet, "config", None), "cross_attention_dim", None)
    while isinstance(width, list | tuple) and width:
        width = width[0]
    return width if isinstance(width, int) else None


def text_width(modules: Mapping[str, nn.Module]) -> int | None:
    """Width of a loaded text encoder, from its plain modules by path."""
    for path, module in modules.items():
        if path.endswith("self_attn.q_proj") and isinstance(module, nn.Linear):
            return module.in_features
    return None
