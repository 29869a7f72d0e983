"""What ED-LoRA (Mix-of-Show, Gu et al. 2023, section 3.2) trains besides a LoRA: two tokens, each
with a vector for every cross-attention layer of the denoiser.

The first token starts as noise and takes up who the subject is; the second starts as the class
word, and so do the captions that they are in: "a <blackcat1> <blackcat2> on the beach".

`X` cross-attention layers, `D` width of the text encoder.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from loraweave.backbone.sites import cross_attention_sites
from loraweave.errors import TrainingError

NOISE = 0.013
"""Standard deviation of the first token's vector before training, the paper's; words of CLIP have
about as much."""


def tokens_of(trigger: str) -> tuple[str, str]:
    """The two tokens that a trigger word stands for.

    Raises:
        TrainingError: it is not one plain word.
    """
    if not re.fullmatch(r"\w[\w-]*", trigger):
        raise TrainingError(
            f"The trigger is {trigger!r}; an ED-LoRA's is one plain word such as 'blackcat', for "
            "which it gets the tokens <blackcat1> and <blackcat2>."
        )
    word = trigger.lower()  # CLIP's tokenizer does not tell cases apart
    return f"<{word}1>", f"<{word}2>"


def with_tokens(caption: str, trigger: str, class_noun: str) -> str:
    """A caption in which the tokens stand where an ordinary LoRA's has "<trigger> <class noun>"."""
    words = rf"\b{re.escape(trigger)}\s+{re.escape(class_noun)}\b"
    return re.sub(words, " ".join(tokens_of(trigger)), caption, flags=re.IGNORECASE)


def new_vectors(pipe: Any, trigger: str, class_noun: str, seed: int) -> dict[str, nn.Parameter]:
    """Token -> (X, 1, D) to be trained, in float32; all layers start with the same.

    Args:
        pipe: the base; it is only read.
        trigger: see `tokens_of`.
        class_noun: the word that the second token starts as.
        seed: of the first token's vector, which is drawn on the CPU.

    Raises:
        TrainingError: the class noun is not one token of the base, or the base has such tokens.
    """
    first, second = tokens_of(trigger)
    known = {token.lower() for token in pipe.tokenizer.added_tokens_encoder}
    if taken := [token for token in (first, second) if token.lower() in known]:
        raise TrainingError(
            f"The pipeline has the token {taken[0]} already. Give another trigger, or take it out "
            "with pipe.unload_textual_inversion()."
        )
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    word = table[_only_id(pipe.tokenizer, class_noun)].float()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(word.shape, generator=generator) * NOISE
    layers = len(cross_attention_sites(pipe.unet))
    return {
        token: nn.Parameter(vector.to(word.device).expand(layers, 1, -1).clone())
        for token, vector in ((first, noise), (second, word))
    }


def _only_id(tokenizer: Any, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise TrainingError(
            f"The class noun {word!r} is {len(ids)} tokens of the base; the second token of an "
            "ED-LoRA starts as one. Give a common word such as 'cat' or 'toy'."
        )
    return ids[0]


def saved_form(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token -> (X, D), as files have them."""
    return {token: own[:, 0] for token, own in vectors.items()}
