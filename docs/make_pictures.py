"""Make the pictures of the documentation again (`make docs`)."""

import shutil
import tempfile
from pathlib import Path

from PIL import Image

from loraweave.miniature.demo import run_demo
from loraweave.miniature.world import FULL_WORLD, render, sample_drawing

PICTURES = Path(__file__).parent / "pictures"


def world_sample(columns: int = 8, rows: int = 4, size: int = 128) -> Image.Image:
    """Random drawings of the whole world."""
    sheet = Image.new("RGB", (columns * size, rows * size))
    for i in range(columns * rows):
        drawn = render(sample_drawing(i, FULL_WORLD), size)
        sheet.paste(drawn.image, (i % columns * size, i // columns * size))
    return sheet


def main() -> None:
    """Write docs/pictures."""
    PICTURES.mkdir(exist_ok=True)
    world_sample().save(PICTURES / "world.png", optimize=True)
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder))
        for name in ("grid.png", "maps.png", "clora.png", "merge.png"):
            shutil.copyfile(Path(folder) / name, PICTURES / name)


if __name__ == "__main__":
    main()
