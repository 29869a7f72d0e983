"""Features of pictures and texts, by local folders of CLIP and DINO models.

Preparation is that of the papers' evaluation code (CustomConcept101), with Pillow's bicubic
resizing: CLIP resizes the shorter side to the model's own (224), DINO to 8/7 of it (256), both cut
the square out of the middle.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, CLIPModel, CLIPTokenizer, ViTModel

from ..detect.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, normalised
from ..errors import ModelNotFound

BATCH = 32


def squared(image: Image.Image, short: int, side: int) -> Image.Image:
    """The middle square of a picture whose shorter side was resized; `side` is at most `short`."""
    width, height = image.size
    if width <= height:
        size = short, int(short * height / width)
    else:
        size = int(short * width / height), short
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (round((edge - side) / 2) for edge in size)
    return resized.crop((left, top, left + side, top + side))


def _pixels(images: Sequence[Image.Image], short: int, side: int) -> Float[Tensor, "B 3 s s"]:
    stacked = np.stack([np.asarray(squared(image, short, side)) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


class Clip:
    """A CLIP model: pictures and texts in one space. It works in single precision.

    Args:
        folder: of a `CLIPModel` with its tokenizer, such as openai/clip-vit-base-patch32.
        device: where it works.

    Raises:
        ModelNotFound: nothing, or something else, in the folder.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        folder = Path(folder)
        self.model = _loaded(CLIPModel, folder, "clip", "CLIP model")
        self.model.to(device)
        config = self.model.config
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ModelNotFound(
                f"no tokenizer beside the CLIP model in {folder}; put its files there"
            )
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if (words := len(self.tokenizer)) != (known := config.text_config.vocab_size):
            raise ModelNotFound(
                f"the tokenizer in {folder} has {words} words and the CLIP model {known}; they are "
                "not of one model"
            )
        self.side: int = config.vision_config.image_size
        self.most: int = config.text_config.max_position_embeddings

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "N D"]:
        """Features of pictures, of unit length, on the CPU."""
        found = []
        for start in range(0, len(images), BATCH):
            pixels = _pixels(images[start : start + BATCH], self.side, self.side)
            pixels = normalised(pixels, CLIP_MEAN, CLIP_STD).to(self.model.device)
            found.append(self.model.visual_projection(self.model.vision_model(pixels)[1]))
        return _unit(found)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Features of texts, of unit length, on the CPU; of a long one its beginning is read."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.most, return_tensors="pt"
        ).to(self.model.device)
        states = self.model.text_model(tokens.input_ids, tokens.attention_mask)
        return _unit([self.model.text_projection(states[1])])

    def fits(self, text: str) -> bool:
        """Whether a text is read to its end."""
        return len(self.tokenizer(text).input_ids) <= self.most


class Dino:
    """A DINO vision transformer. It works in single precision.

    Args:
        folder: of a `ViTModel`, such as facebook/dino-vits16.
        device: where it works.

    Raises:
        ModelNotFound: nothing, or something else, in the folder.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        folder = Path(folder)
        self.model = _loaded(ViTModel, folder, "vit", "DINO model", add_pooling_layer=False)
        self.model.to(device)
        self.side: int = self.model.config.image_size

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "N D"]:
        """Features of pictures: the class token after the last norm; unit length, on the CPU."""
        found, short = [], round(self.side * 256 / 224)
        for start in range(0, len(images), BATCH):
            pixels = _pixels(images[start : start + BATCH], short, self.side)
            pixels = normalised(pixels, IMAGENET_MEAN, IMAGENET_STD).to(self.model.device)
            found.append(self.model(pixels).last_hidden_state[:, 0])
        return _unit(found)


def _unit(found: Sequence[Tensor]) -> Float[Tensor, "N D"]:
    features = torch.cat(list(found)).float().cpu()
    return features / features.norm(dim=-1, keepdim=True)


def _loaded(kind: Any, folder: Path, model_type: str, what: str, **more: Any) -> Any:
    """A model with all of its weights; transformers would make up those that are not there."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type != model_type:
            raise ValueError(f"its config is that of a {config.model_type!r} model")
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, **more,
        )  # fmt: skip
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFound(f"no {what} in {folder}: {reason}") from None
    return model.eval()
