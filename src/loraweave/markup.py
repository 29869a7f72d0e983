r"""What may be written in a prompt, and the parser that takes it apart.

    a [sks cat](blackcat) and a [zwx dog](golddog:0.8) in a (foggy:1.3) meadow <lora:ink:0.5:0.2>
       --- ---  --------                          ---       -----------           --- --- ---
       |   |    |                                 |         emphasis              |   |   |
       |   |    concept                           weight                      style   |   |
       |   class noun: the last word              (1 if left out)       U-Net's weight    |
       trigger: the words before it                                 text encoder's weight

Concepts. A bar sets the border of trigger and noun by hand: `[hatsune miku|girl](miku)`,
`[|golden retriever](rex)`. A span of one word is a noun whose trigger is left open: `[cat](x)`;
`[|cat](x)` says that there is none.

Weights. `name:0.8` holds for the U-Net and the text encoder, `name:0.8:0.5` for the U-Net and the
text encoder in this order, `name:te=0.5:unet=0.8` by name. (A1111 has the text encoder first when
two plain numbers are given; the names mean the same here and there.)

Emphasis is A1111's: `(words)` is 1.1, `[words]` is 1 / 1.1, `(words:1.3)` is 1.3, and nested ones
multiply. Concepts and styles may stand inside. `](` makes a concept and wins over `[words]`, so
`[red](blue)` is one; with a blank before the round bracket it could be meant either way and is an
error. A bracket that is never closed is an error too, where A1111 closes it at the end.

A1111's `[from:to:0.5]`, `[a|b]`, `BREAK` and `AND` would change the picture there, so they are
errors here rather than words that are passed on, and so is every `<..>` but `<lora:..>`.
A backslash takes its meaning from a character: `\[ \] \( \) \< \> \| \: \\`.

All positions are characters of the Python string that they refer to.
"""

import re
from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple, NoReturn

from loraweave.errors import PromptSyntaxError
from loraweave.prompt_words import ConceptWords, ParsedPrompt, Piece, StyleWords

WEIGHT_LIMIT = 4.0
"""Weights are in [-WEIGHT_LIMIT, WEIGHT_LIMIT]; useful ones are mostly in [0, 1.5]."""

EMPHASIS = 1.1
"""What one pair of round brackets multiplies by, and a pair of square ones divides by."""

LITERAL_HINT = r"to write the character itself, put a backslash before it: \[ \] \( \) \< \>"

_SPECIAL = re.compile(r"\\.?|[\[\]()<>|:]|\b(?:BREAK|AND)\b", re.DOTALL)
_NOT_IN_NAME = re.compile(r"[\[\]()<>|\\]")
_BRACKETS = frozenset("[]()<>")
_ESCAPABLE = frozenset("[]()<>|:\\")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# A colon that is meant as a weight: nothing or something like a number, straight to the bracket.
_EMPHASIS_WEIGHT = re.compile(r":\s*((?:[+-]?[.\d][^\s\[\]()<>|\\]*)?)\s*\)", re.ASCII)
_SCHEDULE = re.compile(r":\s*[+-]?[.\d]+\s*\]", re.ASCII)
_PUNCTUATION = ",.;:!?"
_COMPONENTS = {"unet": 0, "te": 1}


def parse_prompt(source: str) -> ParsedPrompt:
    """Take a prompt with markup apart.

    Blanks at both ends of the text go, and so do those after a `<lora:..>` that has a blank
    before it; all else outside the concepts stays as written.

    Raises:
        PromptSyntaxError: the markup is wrong or not ours; `position` is the place in `source`.
    """
    return _Parser(source).parse()


class _Group(NamedTuple):
    """An open bracket of emphasis: which one, its place, and its first piece."""

    bracket: str
    place: int
    first: int


class _Parser:
    """One left-to-right reading of `source`."""

    def __init__(self, source: str):
        self.source = source
        self.kinds: dict[str, str] = {}  # name -> "concept" or "style"
        self.pieces: list[tuple[Piece, int]] = []  # with their place in the source
        self.styles: list[StyleWords] = []
        self.groups: list[_Group] = []
        self.closings = _closings(source)

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
            words, end = self.literal(position, self.stops())
            self.add_words(words, position)
            position = end if end == len(self.source) else self.markup(end)
        if self.groups:
            self.fail(f"this bracket is never closed; {LITERAL_HINT}", self.groups[-1].place)
        self.strip_end()
        if not self.pieces:
            self.fail("the prompt is empty; describe the picture", 0)
        self.check_borders()
        pieces = tuple(piece for piece, _ in self.pieces)
        text = "".join(c if isinstance(c, str) else c.text for c, _ in pieces)
        concepts = tuple(c for c, _ in pieces if isinstance(c, ConceptWords))
        return ParsedPrompt(self.source, text, concepts, tuple(self.styles), pieces)

    def strip_end(self) -> None:
        while self.pieces and isinstance(words := self.pieces[-1][0].content, str):
            (_, emphasis), place = self.pieces.pop()
            if words.strip():
                self.pieces.append((Piece(words.rstrip(), emphasis), place))
                break

    def check_borders(self) -> None:
        for ((left, _), _), ((right, _), place) in pairwise(self.pieces):
            last = left[-1] if isinstance(left, str) else left.noun[-1]
            firsts = right[0] if isinstance(right, str) else right.trigger[:1] + right.noun[0]
            if _is_word(last) and any(_is_word(first) for first in firsts):
                self.fail(
                    "two words run together here; put a blank between them, or take the whole "
                    "word into the brackets",
                    place,
                )

    def stops(self) -> Collection[str]:
        """Where plain words end: in `(..)` at a colon too, in `[..]` at a colon or bar."""
        if not self.groups:
            return _BRACKETS
        return _BRACKETS | ({":"} if self.groups[-1].bracket == "(" else {":", "|"})

    def add_words(self, words: str, position: int) -> None:
        last = self.pieces[-1][0].content if self.pieces else " "
        # Words follow words where a `<lora:..>` was removed, or a bracket of emphasis is.
        removed = self.source[position - 1 : position] == ">"
        if isinstance(last, str) and last[-1].isspace() and (removed or not self.pieces):
            words = words.lstrip()
        if words:
            self.pieces.append((Piece(words), position))

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
        """Read the markup at `start`; where it ends."""
        match self.source[start]:
            case "[":
                return self.square(start)
            case "<":
                return self.style(start)
            case "(":
                self.groups.append(_Group("(", start, len(self.pieces)))
                return start + 1
            case ":":
                return self.colon(start)
            case "|":
                self.fail(
                    f"A1111's [a|b] is not supported; {LITERAL_HINT} \\|", self.groups[-1].place
                )
            case bracket:
                return self.close(start, bracket)

    # -- emphasis -----------------------------------------------------------------------------

    def square(self, start: int) -> int:
        """A concept, or the start of `[words]`: what follows the closing bracket decides."""
        if (end := self.closings.get(start)) is None:
            self.fail(f"this bracket is never closed; {LITERAL_HINT}", start)
        if self.source[end + 1 : end + 2] == "(":
            return self.concept(start)
        if self.source[end + 1 :].lstrip().startswith("("):
            self.fail(
                "a concept is [trigger noun](name) without a blank before its name; for less and "
                "then more emphasis, put a comma between the brackets",
                start,
            )
        self.groups.append(_Group("[", start, len(self.pieces)))
        return start + 1

    def colon(self, start: int) -> int:
        """A weight that ends `(words:1.2)`, or a colon among the words."""
        group = self.groups[-1]
        if group.bracket == "(" and (match := _EMPHASIS_WEIGHT.match(self.source, start)):
            number = match[1]
            if not _in_range(number):
                self.fail(
                    f"the weight of these words is {number!r}, not one number in "
                    rf"{_RANGE}; for the colon itself write \:",
                    start + 1,
                )
            self.emphasise(float(number), start)
            return match.end()
        if group.bracket == "[" and _SCHEDULE.match(self.source, start):
            self.fail(
                "A1111's [from:to:0.5] is not supported; a weight needs round brackets, "
                r"(words:0.8); for the colon itself write \:",
                group.place,
            )
        self.pieces.append((Piece(":"), start))
        return start + 1

    def close(self, start: int, bracket: str) -> int:
        if not self.groups or bracket == ">":
            self.fail(f"{bracket!r} closes nothing; {LITERAL_HINT}", start)
        opened = self.groups[-1].bracket
        if opened + bracket not in ("()", "[]"):
            self.fail(f"{bracket!r} where {opened!r} is still open; {LITERAL_HINT}", start)
        self.emphasise(EMPHASIS if bracket == ")" else 1 / EMPHASIS, start)
        return start + 1

    def emphasise(self, factor: float, end: int) -> None:
        """Close the last group: multiply the emphasis of its pieces."""
        group = self.groups.pop()
        inside = self.pieces[group.first :]
        if not any(not isinstance(piece.content, str) or piece.content.strip()
                   for piece, _ in inside):  # fmt: skip
            self.fail("no words between these brackets; leave them out", group.place)
        self.pieces[group.first :] = [
            (Piece(piece.content, piece.emphasis * factor), place) for piece, place in inside
        ]

    # -- LoRAs --------------------------------------------------------------------------------

    def concept(self, start: int) -> int:
        parts, end = [], start
        while not parts or self.source[end : end + 1] == "|":
            if len(parts) == 2:
                self.fail("a second bar; write [trigger|noun](concept)", end)
            part, end = self.literal(end + 1, _BRACKETS | {"|"})
            parts.append(" ".join(part.split()))
        if self.source[end] != "]":
            self.fail(
                "a bracket within [..](concept); for emphasis put the round brackets around the "
                f"whole, ([..](concept):1.2); {LITERAL_HINT}",
                end,
            )
        if not any(parts):
            self.fail("no words between the brackets; write [trigger noun](concept)", start)
        trigger, noun = parts if len(parts) == 2 else parts[0].rpartition(" ")[::2]
        if not noun:
            self.fail("no class noun after the bar; write [trigger|noun](concept)", start)
        if noun[0] in _PUNCTUATION or noun[-1] in _PUNCTUATION:
            self.fail(f"put the punctuation of {noun!r} outside the brackets", start)
        name, weights, end = self.name_and_weights(end + 2, ")", "concept")
        bar = len(parts) == 2
        words = ConceptWords(name, trigger, noun, *weights, bar=bar, place=start)
        self.pieces.append((Piece(words), start))
        return end

    def style(self, start: int) -> int:
        if not self.source.startswith("<lora:", start):
            self.fail(f"only <lora:name:weight> is known; {LITERAL_HINT}", start)
        name, weights, end = self.name_and_weights(start + len("<lora:"), ">", "style")
        self.styles.append(StyleWords(name, *weights))
        return end

    def name_and_weights(
        self, start: int, close: str, kind: str
    ) -> tuple[str, tuple[float, float | None], int]:
        """Read `name:weight:weight` up to `close`: name, weights, the place after `close`."""
        match = _NOT_IN_NAME.search(self.source, start)
        if match is None:
            self.fail(f"the {kind} has no {close!r} after its name", start - 1)
        if match[0] != close:
            self.fail(f"the {kind}'s name cannot have {match[0]!r} in it", match.start())
        written, *numbers = self.source[start : match.start()].split(":")
        if not (name := written.strip()):
            self.fail(f"the {kind} has no name", start)
        weights = self.weights(name, numbers, start + len(written) + 1)
        if (before := self.kinds.get(name)) == kind:
            self.fail(f"two places for one {kind}, {name!r}; keep one of them", start)
        if before:
            self.fail(f"{name!r} is a {before} already and cannot be a {kind} too", start)
        self.kinds[name] = kind
        return name, weights, match.end()

    def weights(self, name: str, texts: list[str], place: int) -> tuple[float, float | None]:
        """The weights of the U-Net and the text encoder; None where the second is not given."""
        if len(texts) > 2:
            self.fail(
                f"{name!r} has {len(texts)} weights; write name:weight or name:unet:te, the "
                "U-Net's and the text encoder's", place,
            )  # fmt: skip
        found: list[float | None] = [None, None]
        named = [("=" in text) for text in texts]
        for slot, text in enumerate(texts):
            key, equals, number = text.rpartition("=")
            if equals and (slot := _COMPONENTS.get(key.strip(), -1)) < 0:
                self.fail(f"{name!r} has no part {key.strip()!r}; it has unet= and te=", place)
            if not _in_range(number):
                self.fail(
                    f"the weight of {name!r} is {number.strip()!r}, not one number in {_RANGE}",
                    place,
                )
            if found[slot] is not None or len(set(named)) > 1:
                self.fail(
                    f"the weights of {name!r} are ambiguous; write name:unet=0.8:te=0.5", place
                )
            found[slot] = float(number)
            place += len(text) + 1
        unet, text_encoder = found
        return (1.0 if unet is None else unet), text_encoder


def _closings(source: str) -> dict[int, int]:
    """The place of each `[` that is closed, and of the `]` that does it."""
    found, opened = {}, []
    for match in _SPECIAL.finditer(source):
        if match[0] == "[":
            opened.append(match.start())
        elif match[0] == "]" and opened:
            found[opened.pop()] = match.start()
    return found


_RANGE = f"-{WEIGHT_LIMIT:g} to {WEIGHT_LIMIT:g}"


def _in_range(number: str) -> bool:
    number = number.strip()
    return bool(_NUMBER.fullmatch(number)) and abs(float(number)) <= WEIGHT_LIMIT


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
