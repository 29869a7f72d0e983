"""Where the time of a picture goes, for the tables of performance.md (torch.profiler, one thread).

A base with random weights and its LoRAs are made once; then any version of the package can draw
with them, since only the public call is used:

    python docs/profile_parts.py FOLDER --make
    python docs/profile_parts.py FOLDER masked
    git worktree add ../before 645e436
    PYTHONPATH=../before/src python docs/profile_parts.py FOLDER masked
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch.profiler import ProfilerActivity, profile

COUNT = 8
SETTINGS = {
    "masked": {"layout": "strips"},
    "clora": {"max_update_step": 1, "refinements": 0, "variant": "faithful"},
}
STEPS = {"clora": 2}
SHOWN = 8


def make(folder: Path) -> None:
    """Stable Diffusion 1.5's architecture with random weights, and eight LoRAs of rank 8."""
    from loraweave.bench.bases import speed_base, speed_loras, speed_prompt

    pipe = speed_base("sd15-random", "cpu", torch.float32)
    pipe.save_pretrained(folder / "base")
    loras = speed_loras(pipe, folder, COUNT, 8)
    scene = {"prompt": speed_prompt(COUNT), "loras": {n: str(path) for n, path in loras.items()}}
    (folder / "scene.json").write_text(json.dumps(scene))


def parts(folder: Path, method: str) -> None:
    """Print the operations of one picture that take most of the time, without those they call."""
    import loraweave

    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(folder / "base", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    scene = json.loads((folder / "scene.json").read_text())
    with profile(activities=[ProfilerActivity.CPU]) as found:
        loraweave.compose(
            pipe, scene["prompt"], loras=scene["loras"], method=method,
            settings=SETTINGS.get(method, {}), width=256, height=256,
            num_inference_steps=STEPS.get(method, 4), progress=False, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    events = sorted(found.key_averages(), key=lambda e: e.self_cpu_time_total, reverse=True)
    seconds = sum(event.self_cpu_time_total for event in events) / 1e6
    print(f"| the picture | {seconds:.1f} | {sum(event.count for event in events):,} |")
    for event in events[:SHOWN]:
        print(f"| `{event.key}` | {event.self_cpu_time_total / 1e6:.1f} | {event.count:,} |")


if __name__ == "__main__":
    if sys.argv[2] == "--make":
        make(Path(sys.argv[1]))
    else:
        parts(Path(sys.argv[1]), sys.argv[2])
