r"""The prompts of a scene: which text each pass of the denoiser gets, and where its words are.

The markup itself is in `loraweave.markup`, whose names are public here.

All positions are characters of the Python string that they refer to, spans are half open.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from loraweave.markup import (
    LITERAL_HINT,
    WEIGHT_LIMIT,
    ConceptWords,
    ParsedPrompt,
    StyleWords,
    parse_prompt,
)

__all__ = [
    "LITERAL_HINT",
    "WEIGHT_LIMIT",
    "ConceptWords",
    "Emphasis",
    "ParsedPrompt",
    "PassPrompt",
    "Span",
    "StyleWords",
    "full_prompt",
    "parse_prompt",
    "pass_prompt",
    "pass_prompts",
    "with_trigger",
    "words_alone",
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


def pass_prompts(parsed: ParsedPrompt) -> list[PassPrompt]:
    """The N + 1 texts of the passes: without any trigger, then with that of concept k alone."""
    return [pass_prompt(parsed, ())] + [pass_prompt(parsed, {c.name}) for c in parsed.concepts]


def full_prompt(parsed: ParsedPrompt) -> PassPrompt:
    """The text with all triggers, for methods that have a single conditioning."""
    return pass_prompt(parsed, {c.name for c in parsed.concepts})


def words_alone(parsed: ParsedPrompt, name: str) -> PassPrompt:
    """A concept's trigger and noun, without the rest of the prompt."""
    words = next(concept for concept in parsed.concepts if concept.name == name)
    text, triggers = words.noun, {}
    if words.trigger:
        text, triggers = f"{words.trigger} {text}", {name: Span(0, len(words.trigger))}
    weight = next(w for c, w in parsed.pieces if not isinstance(c, str) and c.name == name)
    emphasis = () if weight == 1 else ((Span(0, len(text)), weight),)
    noun = Span(len(text) - len(words.noun), len(text))
    return PassPrompt(text, {name: noun}, triggers, emphasis)


def with_trigger(parsed: ParsedPrompt, name: str, trigger: str) -> str:
    """The prompt's source with a trigger put into the span of a concept that has none."""
    at = next(concept.place for concept in parsed.concepts if concept.name == name) + 1
    # The markup's two words, in the case in which they are none; the text encoder sees no case.
    words = re.sub(r"\b(BREAK|AND)\b", lambda match: match[0].lower(), trigger)
    escaped = re.sub(r"([\[\]()<>|:\\])", r"\\\1", words)
    return f"{parsed.source[:at]}{escaped}|{parsed.source[at:]}"


def pass_prompt(parsed: ParsedPrompt, triggered: Collection[str]) -> PassPrompt:
    """The text with the triggers of some LoRAs and the plain nouns of the others."""
    text, nouns, triggers = "", {}, {}
    emphasis: list[tuple[Span, float]] = []
    for content, weight in parsed.pieces:
        start = len(text)
        if isinstance(content, str):
            text += content
        else:
            if content.trigger and content.name in triggered:
                triggers[content.name] = Span(len(text), len(text) + len(content.trigger))
                text += content.trigger + " "
            nouns[content.name] = Span(len(text), len(text) + len(content.noun))
            text += content.noun
        if weight != 1:
            emphasis.append((Span(start, len(text)), weight))
    return PassPrompt(text, nouns, triggers, tuple(emphasis))
