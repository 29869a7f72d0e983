r"""The prompts of a scene: which text each pass of the denoiser gets, and where its words are.

The markup itself is in `loraweave.markup`, what it is made of in `loraweave.prompt_words`; their
names are public here.

All positions are characters of the Python string that they refer to, spans are half open.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from loraweave.markup import LITERAL_HINT, WEIGHT_LIMIT, parse_prompt
from loraweave.prompt_words import ConceptWords, ParsedPrompt, StyleWords

__all__ = [
    "LITERAL_HINT",
    "WEIGHT_LIMIT",
    "ConceptWords",
    "Emphasis",
    "ParsedPrompt",
    "PassPrompt",
    "Span",
    "StyleWords",
    "escaped",
    "full_prompt",
    "parse_prompt",
    "pass_prompt",
    "pass_prompts",
    "with_trigger",
    "words_alone",
    "words_between",
]


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `text[start:end]` of a text."""

    start: int
    end: int


Emphasis = tuple[tuple[Span, float], ...]
"""Characters of a text whose weight is not 1, in order and apart, with that weight."""


@dataclass(frozen=True, slots=True)
class PassPrompt:
    """The text of one pass, with the places of its words by concept name.

    `nouns` has every concept of the prompt, in order; `triggers` those whose trigger is in
    this text. `text[span.start:span.end]` is the noun or trigger.
    """

    text: str
    nouns: dict[str, Span]
    triggers: dict[str, Span]
    emphasis: Emphasis = ()


class _Writing:
    """A pass's text while it is put together."""

    def __init__(self):
        self.text = ""
        self.nouns: dict[str, Span] = {}
        self.triggers: dict[str, Span] = {}
        self.emphasis: list[tuple[Span, float]] = []

    def add(self, content: str | ConceptWords, weight: float, trigger: str = "") -> None:
        """Text, or a LoRA's noun after the trigger, with the emphasis of both."""
        start = len(self.text)
        if isinstance(content, str):
            self.text += content
        else:
            if trigger:
                self.triggers[content.name] = Span(start, start + len(trigger))
                self.text += f"{trigger} "
            self.nouns[content.name] = Span(len(self.text), len(self.text) + len(content.noun))
            self.text += content.noun
        if weight != 1:
            self.emphasis.append((Span(start, len(self.text)), weight))

    def done(self) -> PassPrompt:
        return PassPrompt(self.text, self.nouns, self.triggers, tuple(self.emphasis))


def pass_prompts(parsed: ParsedPrompt) -> list[PassPrompt]:
    """The N + 1 texts of the passes: without any trigger, then with that of concept k alone."""
    return [pass_prompt(parsed, ())] + [pass_prompt(parsed, {c.name}) for c in parsed.concepts]


def full_prompt(parsed: ParsedPrompt) -> PassPrompt:
    """The text with all triggers, for methods that have a single conditioning."""
    return pass_prompt(parsed, {c.name for c in parsed.concepts})


def words_alone(parsed: ParsedPrompt, name: str, worn: Collection[str] = ()) -> PassPrompt:
    """A concept's trigger and noun, and those of LoRAs that are on it, without the rest.

    Args:
        parsed: the prompt.
        name: of the concept.
        worn: names of the LoRAs on it; those with words in the prompt follow after commas.
    """
    written = _Writing()
    weights = {c.name: weight for c, weight in parsed.pieces if not isinstance(c, str)}
    own = [c for c in parsed.concepts if c.name == name]
    for words in (*own, *(c for c in parsed.concepts if c.name in worn)):
        if written.text:
            written.add(", ", 1)
        written.add(words, weights[words.name], words.trigger)
    return written.done()


def words_between(parsed: ParsedPrompt, kept: Collection[str] = ()) -> PassPrompt:
    """What is left of a prompt without the concepts' words, and without what only joined them.

    `a [sks cat](cat) and a [dog](dog) in the meadow` leaves `in the meadow`.

    Args:
        parsed: the prompt.
        kept: names of LoRAs whose words stay, with their triggers.
    """
    written = _Writing()
    gone = [not isinstance(c, str) and c.name not in kept for c, _ in parsed.pieces]
    for k, (content, weight) in enumerate(parsed.pieces):
        if gone[k]:
            continue
        if not isinstance(content, str):
            written.add(" " if written.text else "", 1)
            written.add(content, weight, content.trigger)
            continue
        if k and gone[k - 1]:
            content = _JOINT_BEFORE.sub("", content)
        if gone[k + 1 : k + 2] == [True]:
            content = _JOINT_AFTER.sub("", content)
        if content := content.strip():
            written.add(" " if written.text and content[0] not in ",.;" else "", 1)
            written.add(content, weight)
    return written.done()


# What joins a concept to the words before it, and to those after it.
_JOINT_AFTER = re.compile(r"((,|\band)?\s*\b(an?|the))?\s*$|(,|\band)\s*$", re.I)
_JOINT_BEFORE = re.compile(r"^(\s*(,|and\b))+", re.I)


def with_trigger(parsed: ParsedPrompt, name: str, trigger: str) -> str:
    """The prompt's source with a trigger put into the span of a concept that has none."""
    at = next(concept.place for concept in parsed.concepts if concept.name == name) + 1
    return f"{parsed.source[:at]}{escaped(trigger)}|{parsed.source[at:]}"


def escaped(text: str) -> str:
    """A text so that the markup takes it literally."""
    # The markup's two words, in the case in which they are none; the text encoder sees no case.
    words = re.sub(r"\b(BREAK|AND)\b", lambda match: match[0].lower(), text)
    return re.sub(r"([\[\]()<>|:\\])", r"\\\1", words)


def pass_prompt(parsed: ParsedPrompt, triggered: Collection[str]) -> PassPrompt:
    """The text with the triggers of some LoRAs and the plain nouns of the others."""
    written = _Writing()
    for content, weight in parsed.pieces:
        if isinstance(content, str) or content.name not in triggered:
            written.add(content, weight)
        else:
            written.add(content, weight, content.trigger)
    return written.done()
