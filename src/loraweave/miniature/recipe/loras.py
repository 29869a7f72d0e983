"""Stage 3: a LoRA for each concept, by the package's own trainer, from drawings in a folder."""

from pathlib import Path

from diffusers import StableDiffusionPipeline

from ...train import TrainSettings, train_lora
from ..concepts import CONCEPTS, training_drawings
from ..world.captions import PLACES

PICTURES = 20


def lora_settings(steps: int) -> TrainSettings:
    """How the miniature's LoRAs are trained."""
    return TrainSettings(
        rank=8, alpha=8.0, learning_rate=1e-3, steps=steps, batch_size=8,
        dtype="bfloat16",
    )  # fmt: skip


def write_examples(name: str, folder: Path, count: int = PICTURES, size: int = 128) -> None:
    """Drawings of a concept with captions beside them, as a user would prepare a folder."""
    concept = CONCEPTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for i, drawn in enumerate(training_drawings(name, count, size)):
        place = PLACES[drawn.drawing.background]
        drawn.image.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"a {concept.trigger} {concept.kind} {place}\n")


def train_concepts(
    pipe: StableDiffusionPipeline, folder: Path, steps: int, names: list[str] | None = None
) -> dict[str, Path]:
    """Train the LoRAs that `folder/loras` does not hold yet; paths by name."""
    out = folder / "loras"
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in names or list(CONCEPTS):
        files[name] = out / f"{name}.safetensors"
        if files[name].exists():
            continue
        concept = CONCEPTS[name]
        write_examples(name, folder / "examples" / name)
        train_lora(
            pipe, folder / "examples" / name, trigger=concept.trigger, class_noun=concept.kind,
            out=files[name], settings=lora_settings(steps),
        )  # fmt: skip
    return files
