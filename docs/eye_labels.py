"""The pictures by which the judge is compared with viewers' eyes, and what the viewers said.

    python docs/eye_labels.py draw FOLDER
    python docs/eye_labels.py count FOLDER first.json second.json third.json

`draw` makes 60 pictures on the miniature: report pairs by merge, by clora and by the base without
LoRAs, and one concept of each alone. Each viewer gets the pages, in another order and beside a
drawing and pictures of the LoRAs alone, but neither the methods nor other viewers' words, and
writes a list of lists: by number of the picture, by concept, 1 for right and 0 for not. `count`
brings them together in FOLDER/labels.json; it and FOLDER/pictures.png are what the package has in
`miniature/eye`. That has to be done before the judge is asked.
"""

import json
import random
from pathlib import Path

import typer
from PIL import Image

from loraweave.evaluate.figures import labelled_grid
from loraweave.miniature.checks.loras import drawn_alone
from loraweave.miniature.concepts import draw_concepts
from loraweave.miniature.judged import SceneDrawer
from loraweave.miniature.scenes import PAIRS, ConceptScene, scenes
from loraweave.miniature.shipped import lora_file, native_side
from loraweave.progress import silence_libraries

METHODS, COUNT, STEPS = ("merge", "clora", "base"), 15, 50
ACROSS, ON_PAGE, ALONE = 10, 6, 2
ABOUT = (
    "15 report pairs by merge, by clora, by the base model without LoRAs, and one concept of each "
    "alone; 50 steps; each concept labelled right or not by three viewers independently, who saw "
    "drawings and pictures of the LoRA alone beside it but neither the method nor each other's "
    "labels, before the judge was asked; the majority counts"
)
app = typer.Typer(add_completion=False)


def shown() -> list[tuple[str, ConceptScene]]:
    """Method and scene of each picture, in the order of the sheet."""
    pairs = scenes(PAIRS, "report", COUNT)
    alone = [pair.alone(pair.names[i % 2]) for i, pair in enumerate(pairs)]
    return [(m, pair) for m in METHODS for pair in pairs] + [("alone", one) for one in alone]


def viewing_order() -> list[int]:
    """For each number on the pages the number on the sheet."""
    order = list(range(len(shown())))
    random.Random("viewers").shuffle(order)
    return order


@app.command()
def draw(folder: Path, count: int | None = None, steps: int = STEPS) -> None:
    """Draw the sheet, or its first pictures, and the pages for viewers."""
    silence_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    drawer, side, chosen = SceneDrawer(), native_side(), shown()[:count]
    images = []
    for method, scene in chosen:
        (output,) = drawer.outputs(scene, method, None, steps)  # not judged: viewers come first
        images += output.images
    sheet = Image.new("RGB", (ACROSS * side, -(-len(images) // ACROSS) * side))
    for number, image in enumerate(images):
        sheet.paste(image, (number % ACROSS * side, number // ACROSS * side))
    sheet.save(folder / "pictures.png", optimize=True)
    beside = {}
    for name in sorted({name for _, scene in chosen for name in scene.names}):
        drawing = draw_concepts([name], "snow", 1, side).image
        beside[name] = [drawing, *drawn_alone(drawer.pipe, name, lora_file(name), ALONE)]
    rows = []
    for number, place in enumerate(n for n in viewing_order() if n < len(images)):
        names = chosen[place][1].names
        others = [image for name in names for image in beside[name]]
        rows.append((f"{number}: {', '.join(names)}", [images[place], *others]))
    for start in range(0, len(rows), ON_PAGE):
        path = folder / f"page{start // ON_PAGE}.png"
        labelled_grid(
            rows[start : start + ON_PAGE], [], path,
            title="number: concepts; picture; then of each a drawing and its LoRA alone",
        )  # fmt: skip
    typer.echo(f"{len(images)} pictures in {folder}")


@app.command()
def count(folder: Path, viewers: list[Path]) -> None:
    """Bring together what the viewers said of the pictures of a folder."""
    said = [json.loads(path.read_text()) for path in viewers]
    chosen, votes, order = shown(), {}, viewing_order()
    if any(len(viewer) != len(order) for viewer in said):
        raise typer.BadParameter(f"each viewer labels {len(order)} pictures")
    for number, place in enumerate(order):
        own = [viewer[number] for viewer in said]
        names = chosen[place][1].names
        if any(len(one) != len(names) or not set(one) <= {0, 1} for one in own):
            raise typer.BadParameter(f"picture {number} needs {len(names)} labels, 0 or 1: {own}")
        votes[place] = [sum(one) for one in zip(*own)]
    labels = {
        "side": native_side(), "viewers": len(viewers), "about": ABOUT,
        "scenes": [scene.names for _, scene in chosen],
        "votes": [own for _, own in sorted(votes.items())],
    }  # fmt: skip
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")


if __name__ == "__main__":
    app()
