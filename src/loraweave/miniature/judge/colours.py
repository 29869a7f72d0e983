"""Which colours an instance has: a histogram that a person's eye would agree with.

People tell individuals by their colours first, and colours survive the smears of a generated
picture that make an encoder doubt. The histogram is over the colours that the concepts have, in
CIELAB, where distances are about as large as they look.
"""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy.cluster.vq import kmeans2

SOFTNESS = 5.0  # sigma in CIELAB of what counts as the same colour
LIGHTNESS = 0.7  # how much a difference in lightness counts, since styles and shade change it
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])


def cielab(rgb: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """8-bit sRGB as lightness in [0, 100] and the two opponent colours (CIE 1976, D65)."""
    value = rgb / 255
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def colours_of(image: Image.Image, mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "N 3"]:
    """The colours (CIELAB) of the places under a mask, at the mask's resolution."""
    small = image.convert("RGB").resize(mask.shape[::-1], Image.Resampling.BOX)
    return cielab(np.asarray(small, float)[mask])


def palette(colours: Float[np.ndarray, "N 3"], count: int) -> Float[np.ndarray, "K 3"]:
    """The `count` colours that stand for all of them (k-means)."""
    return kmeans2(colours, count, rng=np.random.default_rng(0), minit="++")[0]


def signature(
    colours: Float[np.ndarray, "N 3"], centres: Float[np.ndarray, "K 3"]
) -> Float[np.ndarray, " K"]:
    """Square roots of the shares of the palette's colours: the product of two is their affinity.

    A colour between two of the palette belongs to both (Bhattacharyya 1943 for the affinity).
    """
    scale = np.array([LIGHTNESS, 1, 1])
    square = (((colours[:, None] - centres[None]) * scale) ** 2).sum(2)
    weights = np.exp((square.min(1, keepdims=True) - square) / (2 * SOFTNESS**2))
    return np.sqrt((weights / weights.sum(1, keepdims=True)).mean(0))
