"""What several test files share: one tiny base model on disk, and LoRAs for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from filelock import FileLock
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    ViTConfig,
    ViTModel,
)
from typer.testing import CliRunner

from loraweave.cli import app
from tiny import random_lora, tiny_pipeline, tiny_tokenizer, two_loras

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    """The tiny base, as it was after the test before."""
    return tiny_pipeline()


@pytest.fixture(scope="module")
def double() -> StableDiffusionPipeline:
    """The same in float64."""
    return tiny_pipeline().to(torch.float64)


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> dict[str, Path]:
    """LoRAs `a` and `b` for it."""
    return two_loras(tiny_pipeline(), tmp_path_factory.mktemp("loras"))


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


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A random CLIP of tiny size; it is only read."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("clip"), tiny_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "projection_dim": 16}  # fmt: skip
    text = CLIPTextConfig(vocab_size=len(tokenizer), **small, **ends)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **small)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory) -> Path:
    """A random vision transformer of tiny size; it is only read."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("dino")
    ViTModel(ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=28, patch_size=7,
    )).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def quick_check(tmp_path_factory, testrun_uid) -> dict[str, Any]:
    """What `loraweave miniature check --quick --json` prints; it takes minutes, so it runs once.

    Once for all processes of a run, too: the first one writes it down, and others wait.
    """
    kept = tmp_path_factory.getbasetemp().parent / f"quick-check-{testrun_uid}.json"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            result = CliRunner().invoke(app, ["miniature", "check", "--quick", "--json"])
            assert result.exit_code == 0, (result.output, result.stderr)
            kept.write_text(result.stdout)
    return json.loads(kept.read_text())
