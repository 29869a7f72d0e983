"""A real Stable Diffusion pipeline of tiny size with random weights, and LoRA files for it."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from loraweave.backbone.sites import cross_attention_sites
from loraweave.lora.keys import plain_modules
from loraweave.lora.save import save_lora

# Models this small gain nothing from threads, and on a busy machine waiting threads cost seconds.
torch.set_num_threads(1)

CORPUS = [
    "a sks cat and a zwx dog in the meadow",
    "a photo of a bird, a robot and a ball on the beach at night",
    "two cats, three dogs; the red house by the river",
    "abcdefghijklmnopqrstuvwxyz 0123456789 . , ; : ! ? ' - ( ) [ ]",
]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


@lru_cache
def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a byte-pair encoding with CLIP's special tokens.

    Each word of the corpus is one token, merged from the left. (Training by `tokenizers` breaks
    ties at random, so every process would have other tokens.)
    """
    signs = sorted({sign for line in CORPUS for sign in line if sign != " "})
    tokens = ["<|startoftext|>", "<|endoftext|>", *signs, *(f"{sign}</w>" for sign in signs)]
    merges = []
    words = re.findall("[a-z]+", " ".join(CORPUS[:-1]))
    for word in sorted(words, key=len, reverse=True):  # a long one may begin as a short one
        whole, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for part in rest:
            merges.append(f"{whole} {part}")
            whole += part
            tokens.append(whole)
    known = dict.fromkeys(tokens)
    return {token: number for number, token in enumerate(known)}, list(dict.fromkeys(merges))


def tiny_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer of 77 tokens with a vocabulary trained on `CORPUS`."""
    vocabulary, merges = _vocabulary()
    with TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps(vocabulary), encoding="utf-8")
        merges_file.write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """A random StableDiffusionPipeline: 32-pixel pictures, 16x16 latents, text width 32.

    Args:
        seed: of the weights; equal seeds give equal weights.
    """
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_state(
    model: nn.Module, rank: int, generator: torch.Generator, convolutions: bool = False
) -> dict[str, Tensor]:
    """Random updates of a model's attention (and convolutions), with PEFT's names."""
    state: dict[str, Tensor] = {}
    for path, module in plain_modules(model).items():
        if isinstance(module, nn.Linear) and path.endswith(ATTENTION):
            shapes = (rank, module.in_features), (module.out_features, rank)
        elif isinstance(module, nn.Conv2d) and convolutions:
            kernel = module.kernel_size
            shapes = (rank, module.in_channels, *kernel), (module.out_channels, rank, 1, 1)
        else:
            continue
        for half, shape in zip("AB", shapes, strict=True):
            tensor = torch.randn(shape, generator=generator) * 0.1
            state[f"{path}.lora_{half}.weight"] = tensor.half().float()
    return state


def random_lora(
    pipe: StableDiffusionPipeline,
    path: str | Path,
    kind: str = "kohya",
    rank: int = 4,
    alpha: float = 2.0,
    text_encoder: bool = False,
    seed: int = 0,
    convolutions: bool = False,
) -> Path:
    """Write a LoRA with random values, large enough to change a picture visibly.

    Args:
        pipe: gives the names and shapes; it is only read.
        path: a .safetensors file for "kohya" and "diffusers", a folder for "peft".
        kind: "kohya", "diffusers" or "peft" (`base_model.model.` names, alpha in a JSON file).
        rank: of every module.
        alpha: of every module.
        text_encoder: also write updates for the text encoder.
        seed: of the values.
        convolutions: also write updates for every convolution of the denoiser.
    """
    path = Path(path)
    generator = torch.Generator().manual_seed(seed)
    unet = random_state(pipe.unet, rank, generator, convolutions)
    text = random_state(pipe.text_encoder, rank, generator) if text_encoder else {}
    if kind != "peft":
        return save_lora(path, unet, text, rank=rank, alpha=alpha, format=kind)  # type: ignore
    path.mkdir(parents=True, exist_ok=True)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in {**unet, **text}.items()}
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["to_q"]}
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def random_ed_lora(
    pipe: StableDiffusionPipeline, path: Path, tokens: Sequence[str] = ("<c1>", "<c2>"),
    seed: int = 0,
) -> Path:  # fmt: skip
    """Write an ED-LoRA with random values on both models, its vectors other ones for each layer."""
    generator = torch.Generator().manual_seed(seed)
    width = pipe.text_encoder.config.hidden_size
    layers = len(cross_attention_sites(pipe.unet))
    vectors = {token: torch.randn((layers, width), generator=generator) for token in tokens}
    parts = [random_state(m, 4, generator) for m in (pipe.unet, pipe.text_encoder)]
    return save_lora(path, *parts, rank=4, alpha=4.0, format="diffusers", layered=vectors)


def two_loras(pipe: StableDiffusionPipeline, folder: Path) -> dict[str, Path]:
    """LoRAs `a`, with a text encoder's part, and `b`, with convolutions."""
    return {
        "a": random_lora(pipe, folder / "a.safetensors", seed=1, text_encoder=True),
        "b": random_lora(pipe, folder / "b.safetensors", seed=2, convolutions=True),
    }
