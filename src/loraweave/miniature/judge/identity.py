"""Who an instance is: a small vision transformer over its crop.

Crops show the instance alone on grey, squared and scaled to one size, so that place, size and
background cannot matter; mirroring is taught (see recipe/encoder.py).
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

CROP = 48  # pixels a side
MARGIN = 0.06  # of the crop's side, left free around the instance
GREY = 128


class IdentityEncoder(nn.Module):
    """Unit vectors from crops (B, 3, CROP, CROP) in [-1, 1].

    Args:
        width: of the transformer.
        layers: of the transformer.
        outputs: length of the vectors.
    """

    def __init__(self, width: int = 128, layers: int = 4, outputs: int = 64):
        super().__init__()
        self.vit = ViTModel(
            ViTConfig(
                image_size=CROP, patch_size=6, hidden_size=width, num_hidden_layers=layers,
                num_attention_heads=4, intermediate_size=2 * width,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, crops: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B E"]:
        """Directions on the unit sphere; near for one individual, far for others."""
        states = self.vit(crops).last_hidden_state
        pooled = torch.cat([states[:, 0], states[:, 1:].mean(1)], 1)
        return F.normalize(self.head(pooled), dim=1)


def crop_of(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The instance under a mask, alone on grey, squared and scaled to CROP pixels a side.

    Args:
        image: RGB.
        mask: (h, w) booleans, at least one set; scaled to the picture if it is smaller.

    Raises:
        ValueError: an empty mask.
    """
    where = Image.fromarray(mask.astype(np.uint8) * 255)
    if where.size != image.size:
        where = where.resize(image.size, Image.Resampling.BILINEAR)
    box = where.point([0] * 128 + [255] * 128).getbbox()
    if box is None:
        raise ValueError("an empty mask has no instance to crop")
    alone = Image.new("RGB", image.size, (GREY,) * 3)
    alone.paste(image.convert("RGB"), mask=where)
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0) * (1 + 2 * MARGIN)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    corners = (round(x - side / 2), round(y - side / 2), round(x + side / 2), round(y + side / 2))
    square = Image.new("RGB", (corners[2] - corners[0], corners[3] - corners[1]), (GREY,) * 3)
    square.paste(alone, (-corners[0], -corners[1]))
    return square.resize((CROP, CROP), Image.Resampling.BOX if side > CROP else
                         Image.Resampling.BICUBIC)  # fmt: skip
