"""Prompts with the miniature's concepts."""

from collections.abc import Sequence

from .concepts import KNOWN
from .world.captions import PLACES

PLAIN_SUBJECT = "other"
"""What a subject without a LoRA is called."""


def marked_prompt(names: Sequence[str], background: str | None) -> str:
    """`a [sks cat](blackcat) and a [zwx dog](golddog) in the meadow`."""
    return listed(marked(names), background)


def marked(names: Sequence[str]) -> list[str]:
    """`[sks cat](blackcat)`, ..."""
    return [f"[{KNOWN[n].trigger} {KNOWN[n].kind}]({n})" for n in names]


def plain_prompt(names: Sequence[str], background: str | None) -> str:
    """The same prompt without LoRAs: the bare nouns."""
    return listed([KNOWN[n].kind for n in names], background)


def own_prompt(name: str, background: str | None) -> str:
    """One concept's prompt as other programs write it, without markup."""
    return listed([f"{KNOWN[name].trigger} {KNOWN[name].kind}"], background)


def listed(things: Sequence[str], background: str | None) -> str:
    """`a cat, a dog and a bird in the meadow`; no class of the world needs an "an"."""
    return f"{enumerated(things)} {PLACES[background]}" if background else enumerated(things)


def enumerated(things: Sequence[str]) -> str:
    """`a cat, a dog and a bird`."""
    spans = [f"a {thing}" for thing in things]
    return spans[0] if len(spans) == 1 else ", ".join(spans[:-1]) + " and " + spans[-1]
