r"""The markup of the prompt: which words belong to which LoRA.

    a [sks cat](blackcat) and a [zwx dog](golddog:0.8) in the meadow <lora:ink:0.5>
       --- ---  --------                          ---                     --- ---
       |   |    |                                 weight (1 if left out)  |   weight
       |   |    concept                                                   style: a global LoRA
       |   class noun: the last word
       trigger: the words before it

A bar sets the border of trigger and noun by hand: `[hatsune miku|girl](miku)`,
`[|golden retriever](rex)`. A span of one word is a noun without trigger: `[cat](x)`.
`](` makes a concept and wins over A1111's `[..]` and `(a:1.2)`; those and `BREAK` and `AND`
would change the picture in A1111, so they are errors here rather than words that are passed on.
A backslash takes its meaning from a bracket, bar or backslash: `\[ \] \( \) \< \> \| \\`.

All positions are characters of the Python string that they refer to, spans are half open.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from loraweave.errors import PromptSyntaxError

WEIGHT_LIMIT = 4.0
"""Weights are in [-WEIGHT_LIMIT, WEIGHT_LIMIT]; useful ones are mostly in [0, 1.5]."""

LITERAL_HINT = r"to write the character itself, put a backslash before it: \[ \] \( \) \< \>"

_SPECIAL = re.compile(r"\\.?|[\[\]()<>|]|\b(?:BREAK|AND)\b", re.DOTALL)
_NOT_IN_NAME = re.compile(r"[\[\]()<>|\\]")
_BRACKETS = frozenset("[]()<>")
_ESCAPABLE = frozenset("[]()<>|\\")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PUNCTUATION = ",.;:!?"


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `text[start:end]` of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ConceptWords:
    """The words of the prompt that stand for one concept, and its weight there.

    `trigger` is empty when the concept has none; `noun` never is. Both have single blanks
    between words. `weight` is in [-4, 4].
    """

    name: str
    trigger: str
    noun: str
    weight: float


@dataclass(frozen=True, slots=True)
class StyleWords:
    """A global LoRA, `<lora:name:weight>`; `weight` is in [-4, 4]."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt taken apart by `parse_prompt`.

    `source` is what was written and `text` the same without markup, with all triggers.
    `concepts` and `styles` are in the order of the prompt; their names are all different.
    `pieces` joined make the text: plain words and concepts, in order.
    """

    source: str
    text: str
    concepts: tuple[ConceptWords, ...]
    styles: tuple[StyleWords, ...]
    pieces: tuple[str | ConceptWords, ...]


@dataclass(frozen=True, slots=True)
class PassPrompt:
    """The text of one pass, with the places of its words by concept name.

    `nouns` has every concept of the prompt, in order; `triggers` those whose trigger is in
    this text. `text[span.start:span.end]` is the noun or trigger.
    """

    text: str
    nouns: dict[str, Span]
    triggers: dict[str, Span]


def parse_prompt(source: str) -> ParsedPrompt:
    """Take a prompt with markup apart.

    Blanks at both ends of the text go, and so do those after a `<lora:..>` that has a blank
    before it; all else outside the concepts stays as written.

    Raises:
        PromptSyntaxError: the markup is wrong or not ours; `position` is the place in `source`.
    """
    return _Parser(source).parse()


def pass_prompts(parsed: ParsedPrompt) -> list[PassPrompt]:
    """The N + 1 texts of the passes: without any trigger, then with that of concept k alone."""
    return [_render(parsed, ())] + [_render(parsed, {c.name}) for c in parsed.concepts]


def full_prompt(parsed: ParsedPrompt) -> PassPrompt:
    """The text with all triggers, for methods that have a single conditioning."""
    return _render(parsed, {c.name for c in parsed.concepts})


def _render(parsed: ParsedPrompt, triggered: Collection[str]) -> PassPrompt:
    text, nouns, triggers = "", {}, {}
    for piece in parsed.pieces:
        if isinstance(piece, str):
            text += piece
            continue
        if piece.trigger and piece.name in triggered:
            triggers[piece.name] = Span(len(text), len(text) + len(piece.trigger))
            text += piece.trigger + " "
        nouns[piece.name] = Span(len(text), len(text) + len(piece.noun))
        text += piece.noun
    return PassPrompt(text, nouns, triggers)


class _Parser:
    """One left-to-right reading of `source`."""

    def __init__(self, source: str):
        self.source = source
        self.kinds: dict[str, str] = {}  # name -> "concept" or "style"
        self.pieces: list[tuple[str | ConceptWords, int]] = []  # with their place in the source
        self.styles: list[StyleWords] = []

    def fail(self, message: str, position: int) -> NoReturn:
        # The error draws the prompt with a caret below it: a line break would part the two,
        # and half a surrogate pair could not be printed.
        drawn = re.sub(r"\s", " ", self.source).encode("utf-8", "replace").decode()
        raise PromptSyntaxError(f"{message} (character {position})", drawn, position)

    def parse(self) -> ParsedPrompt:
        try:
            self.source.encode("utf-8")
        except UnicodeEncodeError as error:
            self.fail("half a surrogate pair is not text; remove it", error.start)
        position = 0
        while position < len(self.source):
            words, end = self.literal(position, _BRACKETS)
            self.add_words(words, position)
            position = end if end == len(self.source) else self.markup(end)
        if self.pieces and isinstance(words := self.pieces[-1][0], str):
            self.pieces[-1:] = [(words.rstrip(), self.pieces[-1][1])] if words.strip() else []
        if not self.pieces:
            self.fail("the prompt is empty; describe the picture", 0)
        for (left, _), (right, place) in pairwise(self.pieces):
            last = left[-1] if isinstance(left, str) else left.noun[-1]
            firsts = right[0] if isinstance(right, str) else right.trigger[:1] + right.noun[0]
            if _is_word(last) and any(_is_word(first) for first in firsts):
                self.fail(
                    "two words run together here; put a blank between them, or take the whole "
                    "word into the brackets",
                    place,
                )
        pieces = tuple(piece for piece, _ in self.pieces)
        text = "".join(p if isinstance(p, str) else f"{p.trigger} {p.noun}".strip() for p in pieces)
        concepts = tuple(p for p in pieces if isinstance(p, ConceptWords))
        return ParsedPrompt(self.source, text, concepts, tuple(self.styles), pieces)

    def add_words(self, words: str, position: int) -> None:
        last = self.pieces[-1][0] if self.pieces else " "
        # Words follow words only where a `<lora:..>` was removed between them.
        if isinstance(last, str) and last[-1].isspace():
            words = words.lstrip()
        if words:
            self.pieces.append((words, position))

    def literal(self, start: int, stops: Collection[str]) -> tuple[str, int]:
        """Read words up to one of `stops` or the end: the words without escapes, and where."""
        words, position = "", start
        while match := _SPECIAL.search(self.source, position):
            token, place = match[0], match.start()
            words += self.source[position:place]
            if token in stops:
                return words, place
            if token in ("BREAK", "AND"):
                self.fail(
                    f"{token} is A1111's markup and not supported; as a word, write it in lower "
                    "case (the text encoder does not tell the cases apart)",
                    place,
                )
            if token[0] == "\\":
                if token[1:] not in _ESCAPABLE:
                    self.fail(r"nothing to escape after this backslash; for itself write \\", place)
                token = token[1:]
            words, position = words + token, match.end()
        return words + self.source[position:], len(self.source)

    def markup(self, start: int) -> int:
        """Read the markup whose bracket is at `start`; where it ends."""
        if self.source[start] == "[":
            return self.concept(start)
        if self.source[start] == "<":
            return self.style(start)
        if self.source[start] == "(":
            self.fail(f"A1111's (..) and (..:1.2) are not supported; {LITERAL_HINT}", start)
        self.fail(f"{self.source[start]!r} closes nothing; {LITERAL_HINT}", start)

    def concept(self, start: int) -> int:
        parts, end = [], start
        while not parts or self.source[end : end + 1] == "|":
            if len(parts) == 2:
                self.fail("a second bar; write [trigger|noun](concept)", end)
            part, end = self.literal(end + 1, _BRACKETS | {"|"})
            parts.append(" ".join(part.split()))
        if end == len(self.source):
            self.fail(f"this bracket is never closed; {LITERAL_HINT}", start)
        if self.source[end] != "]":
            self.fail(f"a bracket within [..](concept); {LITERAL_HINT}", end)
        if self.source[end + 1 : end + 2] != "(":
            self.fail(
                "A1111's [..] and [a:b:0.5] are not supported; a concept is [trigger noun](name), "
                f"without a blank before its name; {LITERAL_HINT}",
                start,
            )
        if not any(parts):
            self.fail("no words between the brackets; write [trigger noun](concept)", start)
        trigger, noun = parts if len(parts) == 2 else parts[0].rpartition(" ")[::2]
        if not noun:
            self.fail("no class noun after the bar; write [trigger|noun](concept)", start)
        if noun[0] in _PUNCTUATION or noun[-1] in _PUNCTUATION:
            self.fail(f"put the punctuation of {noun!r} outside the brackets", start)
        name, weight, end = self.name_and_weight(end + 2, ")", "concept")
        self.pieces.append((ConceptWords(name, trigger, noun, weight), start))
        return end

    def style(self, start: int) -> int:
        if not self.source.startswith("<lora:", start):
            self.fail(f"only <lora:name:weight> is known; {LITERAL_HINT}", start)
        name, weight, end = self.name_and_weight(start + len("<lora:"), ">", "style")
        self.styles.append(StyleWords(name, weight))
        return end

    def name_and_weight(self, start: int, close: str, kind: str) -> tuple[str, float, int]:
        """Read `name:weight` up to `close`: name, weight, the place after `close`."""
        match = _NOT_IN_NAME.search(self.source, start)
        if match is None:
            self.fail(f"the {kind} has no {close!r} after its name", start - 1)
        if match[0] != close:
            self.fail(f"the {kind}'s name cannot have {match[0]!r} in it", match.start())
        name, colon, number = self.source[start : match.start()].partition(":")
        name, number = name.strip(), number.strip()
        if not name:
            self.fail(f"the {kind} has no name", start)
        if colon and not (_NUMBER.fullmatch(number) and abs(float(number)) <= WEIGHT_LIMIT):
            limits = f"-{WEIGHT_LIMIT:g} to {WEIGHT_LIMIT:g}"
            place = self.source.index(":", start) + 1
            self.fail(f"the weight of {name!r} is {number!r}, not one number in {limits}", place)
        if (before := self.kinds.get(name)) == kind:
            self.fail(f"two places for one {kind}, {name!r}; keep one of them", start)
        if before:
            self.fail(f"{name!r} is a {before} already and cannot be a {kind} too", start)
        self.kinds[name] = kind
        return name, float(number) if colon else 1.0, match.end()


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
