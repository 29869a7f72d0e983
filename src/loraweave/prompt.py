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
    text, nouns, triggers, emphasis = "", {}, {}, []
    own = [c for c in parsed.concepts if c.name == name]
    for words in (*own, *(c for c in parsed.concepts if c.name in worn)):
        start = len(text) + 2 * bool(text)
        text += ", " * bool(text) + f"{words.trigger} " * bool(words.trigger) + words.noun
        if words.trigger:
            triggers[words.name] = Span(start, start + len(words.trigger))
        nouns[words.name] = Span(len(text) - len(words.noun), len(text))
        weight = next(
            w for c, w in parsed.pieces if not isinstance(c, str) and c.name == words.name
        )
        if weight != 1:
            emphasis.append((Span(start, len(text)), weight))
    return PassPrompt(text, nouns, triggers, tuple(emphasis))


def words_between(parsed: ParsedPrompt, kept: Collection[str] = ()) -> PassPrompt:
    """What is left of a prompt without the concepts' words, and without what only joined them.

    `a [sks cat](cat) and a [dog](dog) in the meadow` leaves `in the meadow`.

    Args:
        parsed: the prompt.
        kept: names of LoRAs whose words stay, with their triggers.
    """
    text, nouns, triggers, emphasis = "", {}, {}, []
    gone = [not isinstance(c, str) and c.name not in kept for c, _ in parsed.pieces]
    for k, (content, weight) in enumerate(parsed.pieces):
        if gone[k]:
            continue
        part = content if isinstance(content, str) else content.noun
        if isinstance(content, str):
            if k and gone[k - 1]:
                part = _JOINT_BEFORE.sub("", part)
            if gone[k + 1 : k + 2] == [True]:
                part = _JOINT_AFTER.sub("", part)
        elif content.trigger:
            part = f"{content.trigger} {part}"
        part = part.strip()
        if not part:
            continue
        text += " " if text and part[0] not in ",.;" else ""
        start = len(text)
        text += part
        if not isinstance(content, str):
            nouns[content.name] = Span(len(text) - len(content.noun), len(text))
            if content.trigger:
                triggers[content.name] = Span(start, start + len(content.trigger))
        if weight != 1:
            emphasis.append((Span(start, len(text)), weight))
    return PassPrompt(text, nouns, triggers, tuple(emphasis))


# What joins a concept to the words before it, and to those after it.
_JOINT_AFTER = re.compile(r"((,|\band)?\s*\b(an?|the))?\s*$|(,|\band)\s*$", re.I)
_JOINT_BEFORE = re.compile(r"^(\s*(,|and\b))+", re.I)


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
