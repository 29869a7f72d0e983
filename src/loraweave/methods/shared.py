"""What several methods need: passes of single LoRAs, and records of their attention."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoise.composition import Composition, Pass
from ..denoise.executor import Evaluation
from ..layout.masks import strengths
from ..prompt import full_prompt

TextBy = Literal["own", "first", "sum"]
"""Whose text encoder reads a pass's prompt: its LoRA's, the first LoRA's, or that of all."""


def passes_of_each(
    composition: Composition, text: TextBy, prompts: Literal["shared", "own"]
) -> list[Pass]:
    """One pass for each LoRA alone, with all triggers in its text or with its own only."""
    own = composition.concepts
    readers = {"own": None, "first": own[:1], "sum": own}[text]
    shared = full_prompt(composition.scene.parsed) if prompts == "shared" else None
    return [
        composition.make_pass([one], background=True, prompt=shared, readers=readers)
        for one in own
    ]  # fmt: skip


def own_strengths(
    out: Evaluation, passes: Sequence[Pass], names: Sequence[str], size: tuple[int, int]
) -> Float[Tensor, "B N h w"]:
    """Each concept's attention in its own pass, for the trace."""
    assert out.maps is not None
    found = [
        strengths(out.maps[:, k, -1], [one.words.of(name)], size)
        for k, (one, name) in enumerate(zip(passes, names))
    ]
    return torch.cat(found, 1).float()
