"""The demo: a particular cat and a particular flower in one picture, by three methods.

Run as `python -m loraweave.miniature.demo FOLDER`; writes the three pictures, a grid over three
pairs and two seeds, the figure of attention maps and masks, and report.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..api import compose
from ..evaluate.figures import labelled_grid, maps_figure
from ..loading import load
from ..output import ComposeOutput
from ..progress import silence_libraries
from .judge import Verdict, load_judge
from .prompts import marked_prompt
from .shipped import lora_file

PAIRS = (("inkcat", "duskflower"), ("tigercat", "dotcup"), ("coralfish", "lilacrabbit"))
BACKGROUNDS = ("meadow", "night", "beach")
SEEDS = (1, 2)
METHODS = ("merge", "clora", "weave")


def run_demo(folder: Path) -> dict[str, Any]:
    """Draw everything into `folder`; returns what report.json holds."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pipe, judge = load("miniature"), load_judge()
    images: dict[tuple, tuple[Image.Image, Verdict]] = {}
    records = []
    for pair, background in zip(PAIRS, BACKGROUNDS):
        prompt = marked_prompt(pair, background)
        print(f"\n{prompt}")
        for seed in SEEDS:
            for method in METHODS:
                output = compose(
                    pipe, prompt, loras={n: lora_file(n) for n in pair}, method=method,
                    generator=torch.Generator().manual_seed(seed),
                )  # fmt: skip
                verdict = judge.examine(output.images[0], pair)
                images[pair, seed, method] = output.images[0], verdict
                seconds = round(output.info["seconds"], 2)
                print(f"  {method:6} seed {seed} {seconds:5.1f} s  {verdict.sentence()}")
                records.append({
                    "prompt": prompt, "method": method, "seed": seed, "seconds": seconds,
                    "calls": output.info["calls"], "rows": output.info["rows"],
                    "found": verdict.as_dict(),
                })  # fmt: skip
                if pair == PAIRS[0] and seed == SEEDS[0]:
                    _write_first(output, method, folder)
    _write_grid(images, folder / "grid.png")
    report = {
        "base": "the miniature", "seconds": round(time.monotonic() - started, 1),
        "images": records,
        "concepts_right": {
            method: f"{sum(v.right for (*_, m), (_, v) in images.items() if m == method)} of "
            f"{2 * len(PAIRS) * len(SEEDS)}"
            for method in METHODS
        },
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nconcepts right, on the miniature: {report['concepts_right']}")
    print(f"written to {folder}/ in {report['seconds']:.0f} s: weave.png, clora.png, merge.png, "
          "grid.png, maps.png, report.json")  # fmt: skip
    return report


def _write_first(output: ComposeOutput, method: str, folder: Path) -> None:
    output.save(folder / f"{method}.png")
    if method == "clora":
        maps_figure(output, 0, folder / "maps.png", title="clora on the miniature: "
                    "attention and mask of each concept over the steps")  # fmt: skip


def _write_grid(images: dict, path: Path) -> None:
    rows, marks = [], []
    for method in METHODS:
        chosen = [images[pair, seed, method] for pair in PAIRS for seed in SEEDS]
        rows.append((method, [image for image, _ in chosen]))
        marks.append([verdict.success for _, verdict in chosen])
    columns = [f"{' + '.join(pair)}, seed {seed}" for pair in PAIRS for seed in SEEDS]
    labelled_grid(rows, columns, path, title="two LoRAs in one picture, on the miniature; "
                  "framed green where the judge finds both concepts", marks=marks)  # fmt: skip


def main() -> None:
    """Entry point of `make demo`."""
    parser = argparse.ArgumentParser(description="Two LoRAs in one picture, on the miniature.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    silence_libraries()
    run_demo(parser.parse_args().folder)


if __name__ == "__main__":
    sys.exit(main())
