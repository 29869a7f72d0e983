"""Making LoRAs from a folder of pictures."""

from loraweave.train.lora import TrainReport, train_lora
from loraweave.train.settings import TrainSettings

__all__ = ["TrainReport", "TrainSettings", "train_lora"]
