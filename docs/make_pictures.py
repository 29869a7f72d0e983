"""Make the pictures of the documentation again (`make docs`), or those that are named:

python docs/make_pictures.py world results
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from loraweave.api import compose
from loraweave.bench import read_suite, run_jobs, suite_jobs
from loraweave.bench.ablation import ablation_jobs, read_ablation
from loraweave.bench.grid import grid
from loraweave.bench.page import ablated, agreement_chart, charts, gathered
from loraweave.evaluate.figures import labelled_grid, maps_figure, with_boxes
from loraweave.loading import load
from loraweave.lora_ref import LoraRef
from loraweave.methods import METHODS
from loraweave.miniature.checks.pictures import drawn
from loraweave.miniature.demo import run_demo
from loraweave.miniature.extras import EXTRAS
from loraweave.miniature.judged import LEAST_OVERLAP, Judged, SceneDrawer
from loraweave.miniature.prompts import listed
from loraweave.miniature.recipe.loras import plans
from loraweave.miniature.scenes import scenes
from loraweave.miniature.shipped import lora_file
from loraweave.miniature.sketch import sketch_of
from loraweave.miniature.world import BACKGROUNDS, FULL_WORLD, KINDS, render, sample_drawing

PICTURES = Path(__file__).parent / "pictures"
RESULTS = Path(__file__).parents[1] / "results"
SHOWN = (
    "success", "cost", "suites", "agreement", "ablation", "failures_pairs", "failures_same_class",
)  # fmt: skip
"""The charts of docs/results.md."""


def small(image: Image.Image, path: Path) -> None:
    """Written with 256 colours, which takes a third of the bytes."""
    image.quantize(256).save(path, optimize=True)


def world_sample(columns: int = 8, rows: int = 4, size: int = 128) -> Image.Image:
    """Random drawings of the whole world."""
    sheet = Image.new("RGB", (columns * size, rows * size))
    for i in range(columns * rows):
        drawn = render(sample_drawing(i, FULL_WORLD), size)
        sheet.paste(drawn.image, (i % columns * size, i // columns * size))
    return sheet


def base_sample(pipe: StableDiffusionPipeline, path: Path) -> None:
    """What the base model draws without LoRAs."""
    prompts = [
        *(listed([kind], BACKGROUNDS[i % len(BACKGROUNDS)]) for i, kind in enumerate(KINDS[:8])),
        "a red cat in the snow", "a blue robot in a room", "a yellow bird in the forest",
        "a green car in the desert", "a purple fish at the beach", "a pink house in the meadow",
        "an orange boat at the beach", "a white bear in the night",
        *(listed(KINDS[i : i + 2], BACKGROUNDS[i // 2]) for i in range(0, 12, 2)),
        "two cats in the meadow", "a dog, a cup and a girl in a room",
    ]  # fmt: skip
    images = drawn(pipe, prompts, "base")
    rows = [("", images[i : i + 8]) for i in range(0, len(images), 8)]
    small(labelled_grid(rows, [], title="the base model of the miniature, without LoRAs"), path)


def lora_sample(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Every LoRA alone: a concept by its own prompt, a style on a cat and a house."""
    images = []  # diffusers does not know an ED-LoRA's tokens
    ordinary = {name: plan for name, plan in plans().items() if plan.kind == "lora"}
    for name, plan in ordinary.items():
        file = lora_file(name)
        words = f"a {plan.trigger} {plan.noun}" if plan.trigger else "a cat and a house"
        if name in EXTRAS and plan.trigger:
            words = f"a cat in the {plan.trigger} {plan.noun}"
            if EXTRAS[name].kind == "accessory":
                words = f"a cat with a {plan.trigger} {plan.noun}"
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
        images += drawn(pipe, [words], name)
        pipe.unload_lora_weights()
    rows = [("", images[i : i + 10]) for i in range(0, len(images), 10)]
    title = "the LoRAs of the miniature, one picture each: " + ", ".join(ordinary)
    small(labelled_grid(rows, [], title=title), path)


def placed_sample(pipe: StableDiffusionPipeline, path: Path) -> None:
    """A style LoRA by where it acts, on one pair by clora."""
    plain = "a [jzt cat](inkcat) and a [ohwx rabbit](lilacrabbit) in the meadow"
    own: dict[str, str | None] = {"inkcat": None, "lilacrabbit": None}
    styled = f"{plain} <lora:sepia:1>"
    scenes: list[tuple[str, str, dict[str, str | None]]] = [
        ("no style", plain, {}),
        ("everywhere", styled, {"sepia": None}),
        ("on the cat", styled, {"sepia": "inkcat"}),
        ("on the background", styled, {"sepia": "background"}),
    ]
    rows = []
    for seed in (1, 2):
        images = [
            _by_clora(pipe, prompt, {n: _shipped(n, on) for n, on in (own | others).items()}, seed)
            for _, prompt, others in scenes
        ]
        rows.append((f"seed {seed}", images))
    title = "a style LoRA by where it acts, clora on the miniature"
    small(labelled_grid(rows, [label for label, _, _ in scenes], title=title), path)


def accessory_sample(pipe: StableDiffusionPipeline, path: Path) -> None:
    """A scarf on neither, one and the other of two subjects, by clora."""
    girl, rabbit, scarf = "[lqx girl](rosegirl)", "[ohwx rabbit](lilacrabbit)", "[nvq scarf]"
    scenes: list[tuple[str, str, str | None]] = [
        ("no scarf", f"a {girl} and a {rabbit}", None),
        ("on the girl", f"a {girl} with a {scarf}(rainbowscarf) and a {rabbit}", "rosegirl"),
        ("on the rabbit", f"a {girl} and a {rabbit} with a {scarf}(rainbowscarf)", "lilacrabbit"),
    ]
    rows = []
    for seed, place in ((5, "in the desert"), (6, "in the meadow")):
        images = []
        for _, prompt, wearer in scenes:
            loras = {n: _shipped(n, None) for n in ("rosegirl", "lilacrabbit")}
            if wearer is not None:
                loras["rainbowscarf"] = _shipped("rainbowscarf", wearer, 1.2)
            images.append(_by_clora(pipe, f"{prompt} {place}", loras, seed))
        rows.append((f"seed {seed}", images))
    title = "an accessory's LoRA on one of two subjects, clora on the miniature"
    small(labelled_grid(rows, [label for label, _, _ in scenes], title=title), path)


def methods_sample(drawer: SceneDrawer, path: Path, steps: int = 50) -> None:
    """Every seventh scene-seed of the benchmark, by every method and two yardsticks."""
    methods = ["base", *METHODS, "true_masks"]
    rows, marks = [], []
    for suite in ("pairs", "same_class"):
        for scene in scenes(read_suite(suite), "report", 20, 2)[::7]:
            judged = [drawer.draw(scene, method, steps=steps) for method in methods]
            rows.append((", ".join(scene.names), [one.images[0] for one in judged]))
            marks.append([one.right == 1 for one in judged])
    title = "six scene-seeds of pairs and six of same_class, on the miniature; green: both right"
    labels = [name.replace("_", " ") for name in methods]
    small(labelled_grid(rows, labels, title=title, marks=marks), path)


def sketch_sample(pipe: StableDiffusionPipeline, path: Path, steps: int = 50) -> None:
    """Scenes with a sketch of where their subjects are, by clora and lora_composer."""
    rows = []
    for scene in scenes(read_suite("boxes2"), "tuning", 12)[:3]:
        sketch = sketch_of(scene.drawing().masks)
        images = [sketch.convert("RGB")]
        for method, regions in (("clora", None), ("lora_composer", scene.boxes())):
            for conditions in ([], [{"adapter": "miniature:sketch", "image": sketch}]):
                images += compose(
                    pipe, scene.prompt, loras={n: lora_file(n) for n in scene.names},
                    method=method, regions=regions, conditions=conditions, progress=False,
                    num_inference_steps=steps, generator=torch.Generator().manual_seed(scene.seed),
                ).images  # fmt: skip
        rows.append((", ".join(scene.names), images))
    labels = ["sketch", "clora", "with the sketch", "lora_composer", "with the sketch"]
    small(labelled_grid(rows, labels, title="a sketch to draw after, on the miniature"), path)


def boxes_sample(drawer: SceneDrawer, path: Path, steps: int = 50) -> None:
    """The first report scenes of two to five concepts, by methods with and without boxes."""
    methods = ["merge", "regional", "masked", "lora_composer", "weave"]
    rows, marks = [], []
    for suite in ("boxes2", "boxes3", "boxes4", "boxes5"):
        for scene in scenes(read_suite(suite), "report", 2):
            judged = [drawer.draw(scene, method, steps=steps) for method in methods]
            boxes = list(scene.boxes().values())
            rows.append((", ".join(scene.names), [
                with_boxes(image, boxes)
                for image in (scene.drawing().image, *(one.images[0] for one in judged))
            ]))  # fmt: skip
            marks.append([None, *(_in_place(one) for one in judged)])
    title = (
        "boxes of drawings and what is drawn into them, on the miniature; green: all right and "
        "in their boxes; merge gets no boxes"
    )
    labels = ["drawing", *(name.replace("_", " ") for name in methods)]
    small(labelled_grid(rows, labels, title=title, marks=marks), path)


def evidence(folder: Path) -> None:
    """Charts of the committed results."""
    found = gathered(RESULTS)
    shown = {name: png for name, (_, png) in charts(found).items()}
    scored = suite_jobs("pairs", list(found["pairs"]), "full")
    if (chart := agreement_chart(scored, RESULTS)) is not None:
        shown["agreement"] = chart[1]
    of_clora = ablation_jobs(read_ablation("clora"))
    if (chart := ablated(of_clora, RESULTS / "ablation", "clora on pairs")) is not None:
        shown["ablation"] = chart[1]
    for name in SHOWN:
        (folder / f"results_{name}.png").write_bytes(shown[name])


def findings_sample(path: Path, kept: Path) -> None:
    """The first scenes of pairs, with what the judge finds drawn in."""
    methods = ["base", "merge", "omg", "lora_composer", "clora", "weave", "true_masks"]
    jobs = suite_jobs("pairs", methods, "full", first=5)
    run_jobs(jobs, kept, keep=True)
    small(grid(jobs, kept), path)


def _in_place(judged: Judged) -> bool:
    places = judged.findings.places or {}
    return judged.right == 1 and min(places.values()) >= LEAST_OVERLAP


def boxes_maps(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Attention and masks of LoRA-Composer in a scene of three."""
    scene = scenes(read_suite("boxes3"), "report", 2)[0]
    output = compose(
        pipe, scene.prompt, loras={n: lora_file(n) for n in scene.names}, method="lora_composer",
        regions=scene.boxes(), width=scene.width, progress=False,
        generator=torch.Generator().manual_seed(scene.seed),
    )  # fmt: skip
    maps_figure(output, 0, path, title=f"lora_composer, on the miniature: {', '.join(scene.names)}")


def _by_clora(
    pipe: StableDiffusionPipeline, prompt: str, loras: dict[str, LoraRef], seed: int
) -> Image.Image:
    return compose(
        pipe, prompt, loras=loras, method="clora", progress=False,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]  # fmt: skip


def _shipped(name: str, on: str | None, weight: float = 1.0) -> LoraRef:
    return LoraRef(path=lora_file(name), on=on, weight=weight)


@cache
def _pipe() -> StableDiffusionPipeline:
    return load("miniature", device="cpu")


def _in_a_folder(make: Callable[[Path, Path], None]) -> Callable[[Path], None]:
    """With a folder beside the path, for what is drawn on the way."""

    def made(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            make(path, Path(folder))

    return made


def demo_grid(path: Path, kept: Path) -> None:
    """The picture of README's first screen."""
    run_demo(kept)
    shutil.copyfile(kept / "grid.png", path)


MAKERS: dict[str, Callable[[Path], None]] = {
    "world": lambda path: small(world_sample(), path),
    "base": lambda path: base_sample(_pipe(), path),
    "loras": lambda path: lora_sample(_pipe(), path),
    "placed": lambda path: placed_sample(_pipe(), path),
    "accessory": lambda path: accessory_sample(_pipe(), path),
    "sketch": lambda path: sketch_sample(_pipe(), path),
    "methods": lambda path: methods_sample(SceneDrawer(), path),
    "boxes": lambda path: boxes_sample(SceneDrawer(), path),
    "boxes_maps": lambda path: boxes_maps(_pipe(), path),
    "results": lambda path: evidence(path.parent),
    "findings": _in_a_folder(findings_sample),
    "grid": _in_a_folder(demo_grid),
}
"""By name what makes `<name>.png`; `results` makes all charts of the committed results."""


def main() -> None:
    """Write into docs/pictures what is named, or everything."""
    asked = sys.argv[1:] or list(MAKERS)
    if unknown := [name for name in asked if name not in MAKERS]:
        sys.exit(f"no picture {unknown[0]!r}; there are: {', '.join(MAKERS)}")
    PICTURES.mkdir(exist_ok=True)
    for name in asked:
        MAKERS[name](PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
