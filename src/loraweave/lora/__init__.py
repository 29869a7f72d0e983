"""Reading LoRA files, saying what they are and fitting them to a model; writing them."""

from loraweave.lora.adapter import Adapter, adapter_from_peft, load_adapter
from loraweave.lora.file import LoraFile, read_lora
from loraweave.lora.inspect import LoraReport, inspect_lora
from loraweave.lora.keys import ModuleIndex, plain_modules
from loraweave.lora.save import lora_metadata, save_lora
from loraweave.lora.updates import Dora, Hadamard, Kronecker, LowRank, Update

__all__ = [
    "Adapter",
    "Dora",
    "Hadamard",
    "Kronecker",
    "LoraFile",
    "LoraReport",
    "LowRank",
    "ModuleIndex",
    "Update",
    "adapter_from_peft",
    "inspect_lora",
    "load_adapter",
    "lora_metadata",
    "plain_modules",
    "read_lora",
    "save_lora",
]
