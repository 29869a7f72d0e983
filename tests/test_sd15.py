"""Stable Diffusion 1.5 at its real size and shape, with random weights.

It shows that nothing depends on the small models of the other tests: names of modules, widths,
the level that is read, half-precision files, memory. About 3 GB of disk and 6 GB of memory.
"""

import resource
import shutil
import time
from pathlib import Path

import pytest
import torch

import loraweave
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.backbone.sites import cross_attention_sites
from loraweave.bench.bases import speed_base
from loraweave.memory.measured import peak_memory
from tiny import random_lora


def save_random_sd15(folder: Path) -> None:
    """The public configuration of Stable Diffusion 1.5 as a diffusers folder, in bfloat16."""
    speed_base("sd15-random", "cpu", torch.bfloat16).save_pretrained(folder)


@pytest.mark.slow
def test_clora_on_stable_diffusion_15(tmp_path, capsys):
    folder = tmp_path / "sd15"
    save_random_sd15(folder)
    pipe = loraweave.load(folder, device="cpu")
    shutil.rmtree(folder)  # 2 GB that pytest would keep
    assert sum(p.numel() for p in pipe.unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in pipe.text_encoder.parameters()) == 123_060_480

    backbone = StableDiffusion1(pipe)
    names = {id(site.module): site.name for site in cross_attention_sites(pipe.unet)}
    read = [names[id(module)].rsplit(".transformer_blocks", 1)[0] for module in backbone.sites]
    assert len(names) == 16
    assert backbone.factor == 4
    assert read == [f"down_blocks.2.attentions.{n}" for n in range(2)] + [
        f"up_blocks.1.attentions.{n}" for n in range(3)
    ]
    assert backbone.published_scale
    assert backbone.size(None, None) == (512, 512)

    loras = {
        name: random_lora(
            pipe, tmp_path / f"{name}.safetensors", rank=8, alpha=8, seed=n, text_encoder=True
        )
        for n, name in enumerate("ab")
    }
    started = time.monotonic()
    out = loraweave.compose(
        pipe, "a [sks cat](a) and a [zwx dog](b) in the meadow", loras=loras, method="clora",
        settings={"max_update_step": 1, "refinements": 0}, num_inference_steps=2, height=256,
        width=256, progress=False,
    )  # fmt: skip
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        print(f"\nSD 1.5, 2 steps and an update at 256x256: {seconds:.0f} s, {peak:.1f} GB at most")

    assert out.images[0].size == (256, 256)
    assert out.masks[0].shape == (2, 2, 8, 8)
    assert out.maps[0].isfinite().all()
    losses = [loss for _, loss in out.info["losses"][0]]
    assert len(losses) == 1
    assert all(0 < loss < 5 for loss in losses)
    assert out.info["rows"] == 3 + 2 * 6
    assert not any(m._forward_hooks for m in pipe.unet.modules())
    assert out.save(tmp_path / "picture.png").is_file()


@pytest.mark.slow
def test_memory_of_lora_composer_at_1024_by_768(tmp_path, capsys):
    """Three concepts, an update and a step in bfloat16: far below the 60 GB that the authors need.

    The growth of the process counts everything: weights, LoRAs, activations, decoding.
    """
    folder = tmp_path / "sd15"
    save_random_sd15(folder)
    with peak_memory() as everything:
        pipe = loraweave.load(folder, device="cpu", dtype=torch.bfloat16)
        loras = {
            name: random_lora(
                pipe, tmp_path / f"{name}.safetensors", rank=8, alpha=8, seed=n, text_encoder=True
            )
            for n, name in enumerate("abc")
        }
        models = (pipe.unet, pipe.text_encoder, pipe.vae)
        weights = sum(p.numel() * p.element_size() for m in models for p in m.parameters())
        shutil.rmtree(folder)
        parts = {}
        for name, own in {
            "a step without an update": {"max_updates": 0},
            "a step with an update": {"max_updates": 1},
        }.items():
            started = time.monotonic()
            with peak_memory() as memory:
                out = loraweave.compose(
                    pipe, "a [sks cat](a), a [zwx dog](b) and a [qvk bird](c) in the meadow",
                    loras=loras, method="lora_composer", settings=own, num_inference_steps=1,
                    regions=[(0, 96, 320, 768), (352, 96, 672, 768), (704, 96, 1024, 768)],
                    width=1024, height=768, output_type="latent", progress=False,
                )  # fmt: skip
            parts[name] = (memory.mib, time.monotonic() - started)
            assert out.images.isfinite().all()
            assert len(out.info["losses"][0]) == own["max_updates"]
        with peak_memory() as decoding, torch.no_grad():
            pipe.vae.decode(out.images.to(torch.bfloat16))
    assert everything.mib is not None, "this system does not tell a process's memory"
    with capsys.disabled():
        print(f"\nSD 1.5 in bfloat16, 1024x768, 3 concepts: {everything.mib / 1024:.1f} GiB")
        print(f"  weights {weights / 2**30:.1f} GiB; decoding {(decoding.mib or 0) / 1024:.1f} GiB")
        for name, (mib, seconds) in parts.items():
            print(f"  {name} {(mib or 0) / 1024:.1f} GiB, {seconds:.0f} s")
    assert everything.mib < 12 * 1024
