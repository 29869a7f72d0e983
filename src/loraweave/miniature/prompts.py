"""Prompts and scenes with the miniature's concepts, for demos, checks and benchmarks."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .concepts import CONCEPTS
from .world.captions import PLACES

BACKGROUNDS = ("meadow", "beach", "snow", "desert")


@dataclass(frozen=True)
class PairScene:
    """Two concepts in one place, and the seed of the noise."""

    names: tuple[str, str]
    background: str
    seed: int

    @property
    def prompt(self) -> str:
        """The prompt with its markup."""
        return marked_prompt(self.names, self.background)


def marked_prompt(names: Sequence[str], background: str | None) -> str:
    """`a [sks cat](blackcat) and a [zwx dog](golddog) in the meadow`."""
    spans = [f"a [{CONCEPTS[n].trigger} {CONCEPTS[n].kind}]({n})" for n in names]
    text = spans[0] if len(spans) == 1 else ", ".join(spans[:-1]) + " and " + spans[-1]
    return f"{text} {PLACES[background]}" if background else text


def plain_prompt(names: Sequence[str], background: str | None) -> str:
    """The same prompt without LoRAs: the bare nouns."""
    spans = [f"a {CONCEPTS[n].kind}" for n in names]
    text = spans[0] if len(spans) == 1 else ", ".join(spans[:-1]) + " and " + spans[-1]
    return f"{text} {PLACES[background]}" if background else text


def concept_prompt(names: Sequence[str], seed: int) -> str:
    """A marked prompt in a place chosen by `seed`."""
    return marked_prompt(names, BACKGROUNDS[seed % len(BACKGROUNDS)])


def pair_scenes(count: int, seed: int) -> list[PairScene]:
    """Random pairs of concepts of different classes, places and seeds."""
    rng = random.Random(f"pairs {seed}")
    pairs = [
        pair for pair in itertools.permutations(CONCEPTS, 2)
        if CONCEPTS[pair[0]].kind != CONCEPTS[pair[1]].kind
    ]  # fmt: skip
    return [
        PairScene(rng.choice(pairs), rng.choice(BACKGROUNDS), rng.randrange(2**31))
        for _ in range(count)
    ]
