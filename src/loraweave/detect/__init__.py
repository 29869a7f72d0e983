"""Finding the instances of a noun in a picture, for methods that look at what they draw."""

from .registry import SEGMENTERS, Segmenter, get_segmenter

__all__ = ["SEGMENTERS", "Segmenter", "get_segmenter"]
