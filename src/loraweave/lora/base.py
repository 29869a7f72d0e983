"""Which base model a LoRA file was made for, told from its names and shapes alone.

The width of the text that cross-attention reads (the in-dimension of `attn2.to_k`) tells the
families of Stable Diffusion apart; a file without cross-attention says less or nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import nn

from loraweave.lora.embeddings import is_embedding
from loraweave.lora.keys import Role, split_name
from loraweave.lora.numbered import NUMBERED

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
_UNET_WIDTHS = (320, 640, 1280)
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

    @property
    def known(self) -> bool:
        """Whether it is a public model's width; the miniature and unknown models are not."""
        widths = {*_WIDTHS, *_TEXT_WIDTHS} - {128}
        return self.foreign or (self.width or self.text_width) in widths


def guess_base(shapes: Shapes) -> BaseGuess | None:
    """Guess the base from tensor name -> shape; None if nothing in the file tells."""
    text_guess = None
    for name, shape in shapes.items():
        if is_embedding(name, shapes) and shape:
            text_guess = text_guess or _text_guess(shape[-1])
        parts = split_name(name)
        if parts is None:
            continue
        stem = parts.stem.replace(".processor", "").replace(".", "_")
        if parts.component == "transformer" or "double_blocks_" in stem:
            return BaseGuess(_TRANSFORMER, foreign=True)
        width = _input_width(name, parts.role, shapes)
        if width is None:
            continue
        if stem.endswith("attn2_to_k"):
            return BaseGuess(describe_width(width), width=width)
        if parts.component in ("text_encoder_2", "text_encoder_3"):
            text_guess = BaseGuess(
                "Stable Diffusion XL or later (several text encoders)", foreign=True
            )
        elif text_guess is None and stem.endswith(("self_attn_q_proj", "self_attn_to_q")):
            text_guess = _text_guess(width)
    return _numbered_guess(shapes) or text_guess


def _text_guess(width: int) -> BaseGuess:
    known = _TEXT_WIDTHS.get(width, "an unknown model")
    return BaseGuess(f"{known} (text encoder width {width})", text_width=width)


def _input_width(name: str, role: Role, shapes: Shapes) -> int | None:
    """Input width of the module of a tensor, if it is one that shows it."""
    shape = shapes[name]
    if len(shape) < 2:
        return None
    if role in ("down", "hada_w1_b"):
        return shape[1]
    if role not in ("lokr_w1", "lokr_w1_b"):
        return None
    stem = name[: name.index("lokr_w1")]
    for other in ("lokr_w2", "lokr_w2_b"):
        found = shapes.get(stem + other, ())
        if len(found) == 2:
            return shape[1] * found[1]
    return None


def _numbered_guess(shapes: Shapes) -> BaseGuess | None:
    """The text width is the only input width of a numbered file that is none of the UNet's own."""
    widths = {
        shape[1]
        for name, shape in shapes.items()
        if (match := NUMBERED.match(name)) and len(shape) == 2
        and match["component"] == "unet" and match["role"] == "down"
    }  # fmt: skip
    texts = [width for width in widths if width in _WIDTHS and width not in _UNET_WIDTHS]
    return BaseGuess(describe_width(texts[0]), width=texts[0]) if len(texts) == 1 else None


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


def cross_attention_layers(unet: nn.Module) -> int:
    """How many layers of a loaded denoiser read the text."""
    return sum(isinstance(m, Attention) and m.is_cross_attention for m in unet.modules())
