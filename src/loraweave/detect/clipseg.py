"""CLIPSeg (Lueddecke and Ecker, CVPR 2022) through transformers: any noun, no boxes.

It knows classes, not instances: connected parts of the class count as such.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from ..errors import ModelNotFound
from .components import components

THRESHOLD = 0.4
LEAST = 0.005  # share of the picture that an instance covers at least


class ClipSeg:
    """Finds the instances of a noun.

    Args:
        folder: of a CLIPSeg model in the format of transformers.
        device: where it runs.

    Raises:
        ModelNotFound: no such model in the folder.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        try:
            self.processor = CLIPSegProcessor.from_pretrained(folder, local_files_only=True)
            self.model = CLIPSegForImageSegmentation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            ).to(device)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise ModelNotFound(f"no CLIPSeg model in {folder}: {error}") from None
        self.model.eval()

    @torch.no_grad()
    def find(self, image: Image.Image, noun: str) -> list[Bool[np.ndarray, "h w"]]:
        """Masks of the instances of a noun at the model's resolution, from left to right."""
        inputs = self.processor(text=[noun], images=[image.convert("RGB")], return_tensors="pt")
        there = {name: value.to(self.model.device) for name, value in inputs.items()}
        scores = self.model(**there).logits.sigmoid()
        where = scores.reshape(scores.shape[-2:]).cpu().numpy() > THRESHOLD
        return components(where, LEAST * where.size)
