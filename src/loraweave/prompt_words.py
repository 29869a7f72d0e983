"""What a prompt is made of, once its markup is taken apart (loraweave/markup.py)."""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ConceptWords:
    """The words of the prompt that stand for one concept, and its weights there.

    `trigger` is empty when the concept has none; `noun` never is. Both have single blanks
    between words. `weight` is the U-Net's and `text_encoder_weight` the text encoder's, None if
    it is the same; both are in [-4, 4]. `bar` says that the border was set by hand, so that an
    empty trigger is meant; `place` is the concept's `[` in the source.
    """

    name: str
    trigger: str
    noun: str
    weight: float
    text_encoder_weight: float | None = None
    bar: bool = field(default=False, compare=False)
    place: int = field(default=0, compare=False)

    @property
    def text(self) -> str:
        """Trigger and noun."""
        return f"{self.trigger} {self.noun}".strip()


@dataclass(frozen=True, slots=True)
class StyleWords:
    """A global LoRA, `<lora:name:weight>`; weights as in `ConceptWords`."""

    name: str
    weight: float
    text_encoder_weight: float | None = None


class Piece(NamedTuple):
    """Plain words or a concept, and the emphasis on them (1 is none)."""

    content: str | ConceptWords
    emphasis: float = 1.0


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt taken apart by `loraweave.markup.parse_prompt`.

    `source` is what was written and `text` the same without markup, with all triggers.
    `concepts` and `styles` are in the order of the prompt; their names are all different.
    `pieces` joined make the text: plain words and concepts, in order.
    """

    source: str
    text: str
    concepts: tuple[ConceptWords, ...]
    styles: tuple[StyleWords, ...]
    pieces: tuple[Piece, ...]
