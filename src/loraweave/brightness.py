"""Pictures with more than 8 bits, whose values Pillow's conversions would cut off, not scale."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

DEEP = ("I", "F")
"""How the modes of such pictures begin: whole numbers and floats, one channel."""


def brightness(image: Image.Image, tops: Sequence[int]) -> Float[np.ndarray, "h w"]:
    """Values of a grey picture in [0, 1].

    Args:
        image: of a mode in `DEEP`.
        tops: what white may be, rising; it is the first that no value exceeds, or the last.
    """
    values = np.asarray(image, dtype=np.float64)
    top = next((top for top in tops if values.max(initial=0) <= top), tops[-1])
    return (values / top).clip(0, 1)
