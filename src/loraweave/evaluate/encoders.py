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
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ViTModel

from ..errors import ModelNotFound, SceneError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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


def normalised(
    pixels: Float[Tensor, "B 3 s s"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 s s"]:
    """Values in [0, 1], minus the mean of each colour and over its deviation."""
    shape = 1, 3, 1, 1
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def _pixels(images: Sequence[Image.Image], short: int, side: int) -> Float[Tensor, "B 3 s s"]:
    stacked = np.stack([np.asarray(squared(image, short, side)) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


class Clip:
    """A CLIP model: pictures and texts in one space.

    Args:
        folder: of a `CLIPModel` with its tokenizer, such as openai/clip-vit-base-patch32.
        device: where it works.

    Raises:
        ModelNotFound: nothing, or something else, in the folder.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        self.model = _loaded(CLIPModel, Path(folder), "CLIP model")
        self.model.to(device)
        self.tokenizer = _loaded(CLIPTokenizer, Path(folder), "tokenizer of CLIP")
        self.side: int = self.model.config.vision_config.image_size

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "N D"]:
        """Features of pictures, of unit length, on the CPU."""
        found = []
        for start in range(0, len(images), BATCH):
            pixels = _pixels(images[start : start + BATCH], self.side, self.side)
            pixels = normalised(pixels, CLIP_MEAN, CLIP_STD).to(self.model.device, self.model.dtype)
            found.append(self.model.visual_projection(self.model.vision_model(pixels)[1]))
        return _unit(found)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Features of texts, of unit length, on the CPU.

        Raises:
            SceneError: one is too long.
        """
        most = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        for text, mask in zip(texts, tokens.attention_mask):
            if (count := int(mask.sum())) > most:
                raise SceneError(
                    f"the text {text[:60]!r}... has {count} tokens and CLIP reads {most}; give a "
                    "shorter one"
                )
        states = self.model.text_model(
            tokens.input_ids.to(self.model.device), tokens.attention_mask.to(self.model.device)
        )
        return _unit([self.model.text_projection(states[1])])


class Dino:
    """A DINO vision transformer.

    Args:
        folder: of a `ViTModel`, such as facebook/dino-vits16.
        device: where it works.

    Raises:
        ModelNotFound: nothing, or something else, in the folder.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        self.model = _loaded(ViTModel, Path(folder), "DINO model", add_pooling_layer=False)
        self.model.to(device)
        self.side: int = self.model.config.image_size

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "N D"]:
        """Features of pictures: the class token after the last norm; unit length, on the CPU."""
        found, short = [], round(self.side * 256 / 224)
        for start in range(0, len(images), BATCH):
            pixels = _pixels(images[start : start + BATCH], short, self.side)
            pixels = normalised(pixels, IMAGENET_MEAN, IMAGENET_STD)
            pixels = pixels.to(self.model.device, self.model.dtype)
            found.append(self.model(pixels).last_hidden_state[:, 0])
        return _unit(found)


def _unit(found: Sequence[Tensor]) -> Float[Tensor, "N D"]:
    features = torch.cat(list(found)).float().cpu()
    return features / features.norm(dim=-1, keepdim=True)


def _loaded(kind: Any, folder: Path, what: str, **more: Any) -> Any:
    try:
        model = kind.from_pretrained(folder, local_files_only=True, **more)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFound(f"no {what} in {folder}: {reason}") from None
    return model.eval() if isinstance(model, torch.nn.Module) else model
