"""Pictures as the encoders of CLIP and of ImageNet's models want them."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(
    pixels: Float[Tensor, "B 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 h w"]:
    """Values in [0, 1], minus the mean of each colour and over its deviation."""
    shape = 1, 3, 1, 1
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)
