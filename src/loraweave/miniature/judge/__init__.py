"""The judge: which subjects are in a picture, and which concepts they are."""

from .judge import Judge, load_judge
from .verdict import Instance, Thresholds, Verdict, decide

__all__ = ["Instance", "Judge", "Thresholds", "Verdict", "decide", "load_judge"]
