"""Stage 3: the LoRAs, by the package's own trainer, from drawings in a folder.

They differ as people's files do: half of them also train the text encoder, a quarter have
kohya's names and an alpha that is not the rank, the others diffusers' names. Six concepts have an
ED-LoRA, too, for methods to be tried with both kinds: `blackcat_ed`, its tokens <blackcat1> and
<blackcat2>.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffusers import StableDiffusionPipeline
from PIL import Image

from ...lora.save import Format
from ...train import TrainSettings, train_lora
from ..concepts import KNOWN, ConceptSpec, training_drawings
from ..extras import EXTRAS, extra_examples
from ..world.captions import PLACES

PICTURES = 20
RANK, RATE = 8, 1e-3
ED_RANK = 4
ED_CONCEPTS = ("blackcat", "golddog", "lilacrabbit", "mintbird", "racecar", "tinrobot")
LONGER = {"fernflower": 2.0, "wizardhat": 2.5, "rainbowscarf": 2.5}
"""Times as many steps as the others: a second colour that comes late, and what is worn is small."""

Examples = Iterator[tuple[Image.Image, str]]


@dataclass(frozen=True)
class Plan:
    """How one LoRA is made.

    Attributes:
        trigger, noun: as `train_lora` takes them.
        draw: pictures and captions, given how many and their side in pixels.
        format: names in the file.
        alpha: of every update.
        text_encoder: whether it is trained, too.
        longer: times as many steps as the others, see `LONGER`.
        kind: "ed-lora" for one with tokens of its own.
        rank: of every update.
    """

    trigger: str
    noun: str
    draw: Callable[[int, int], Examples]
    format: Format
    alpha: float
    text_encoder: bool
    longer: float = 1.0
    kind: Literal["lora", "ed-lora"] = "lora"
    rank: int = RANK

    def settings(self, steps: int) -> TrainSettings:
        """For the trainer; the rate makes up for alpha."""
        return TrainSettings(
            kind=self.kind, rank=self.rank, alpha=self.alpha,
            learning_rate=RATE * self.rank / self.alpha, steps=round(steps * self.longer),
            batch_size=8, text_encoder=self.text_encoder, text_learning_rate=RATE / 2,
            dtype="bfloat16",
        )  # fmt: skip


def plans(rank: int = RANK) -> dict[str, Plan]:
    """A plan for every LoRA that ships, by name; `rank` is that of the ordinary ones."""
    taught: dict[str, tuple[str, str, Callable[[int, int], Examples]]] = {}
    for name, concept in KNOWN.items():
        taught[name] = concept.trigger, concept.kind, _individual(concept)
    for name, extra in EXTRAS.items():
        taught[name] = extra.trigger, extra.noun, _extra(name)
    return {**_ordinary(taught, rank), **_ed_loras()}


def _ordinary(
    taught: dict[str, tuple[str, str, Callable[[int, int], Examples]]], rank: int
) -> dict[str, Plan]:
    return {
        name: Plan(
            *words, format="kohya" if i % 4 == 1 else "diffusers",
            alpha=rank / 2 if i % 4 == 1 else rank, text_encoder=i % 4 in (1, 2), rank=rank,
            longer=LONGER.get(name, 1.0),
        )
        for i, (name, words) in enumerate(taught.items())
    }  # fmt: skip


def _ed_loras() -> dict[str, Plan]:
    return {
        f"{name}_ed": Plan(
            name, KNOWN[name].kind, _individual(KNOWN[name], name), format="diffusers",
            alpha=ED_RANK, text_encoder=True, kind="ed-lora", rank=ED_RANK,
        )
        for name in ED_CONCEPTS
    }  # fmt: skip


def _individual(concept: ConceptSpec, trigger: str | None = None) -> Callable[[int, int], Examples]:
    def draw(count: int, size: int) -> Examples:
        for drawn in training_drawings(concept.name, count, size):
            place = PLACES[drawn.drawing.background]
            yield drawn.image, f"a {trigger or concept.trigger} {concept.kind} {place}"

    return draw


def _extra(name: str) -> Callable[[int, int], Examples]:
    return lambda count, size: iter(extra_examples(name, count, size))


def write_examples(plan: Plan, folder: Path, count: int = PICTURES, size: int = 128) -> None:
    """Drawings with captions beside them, as a user would prepare a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, caption) in enumerate(plan.draw(count, size)):
        image.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(caption + "\n")


def train_loras(
    pipe: StableDiffusionPipeline, folder: Path, steps: int, names: Sequence[str] | None = None,
    side: int = 128, rank: int = RANK,
) -> dict[str, Path]:  # fmt: skip
    """Train the LoRAs that `folder/loras` does not hold yet, from drawings of `side` pixels, those
    that are no ED-LoRAs of this rank; paths by name."""
    out = folder / "loras"
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, plan in plans(rank).items():
        if names is not None and name not in names:
            continue
        files[name] = out / f"{name}.safetensors"
        if files[name].exists():
            continue
        write_examples(plan, folder / "examples" / name, size=side)
        train_lora(
            pipe, folder / "examples" / name, trigger=plan.trigger, class_noun=plan.noun,
            out=files[name], settings=plan.settings(steps), format=plan.format,
        )  # fmt: skip
    return files
