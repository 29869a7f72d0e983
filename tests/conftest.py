"""What several test files share: one tiny base model on disk, and LoRAs for it."""

from pathlib import Path

import pytest
import torch

from tiny import random_lora, tiny_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """`tiny_pipeline()` as a diffusers folder; it is only read."""
    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora_files(tmp_path_factory) -> dict[str, Path]:
    """LoRAs `cat` and `dog` for the tiny base; they are only read."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("loras")
    return {
        name: random_lora(pipe, folder / f"{name}.safetensors", seed=seed)
        for seed, name in enumerate(("cat", "dog"))
    }
