"""Textual-inversion tokens for the duration of a run.

A LoRA may bring embeddings: a text such as `<s1>` that stands for vectors which no word has. The
tokenizer and the text encoder have to know them for the run and must not know them afterwards. A
token cannot be taken out of a tokenizer again, and a resized embedding is a new tensor; so a copy
of the tokenizer learns the tokens, and hooks on the text encoder's embedding supply their vectors.
Nothing of the pipeline is changed.

A token of n vectors becomes n token positions, all with the characters of the one word, so that its
attention maps are found as those of any word of n tokens.

A token of an ED-LoRA has other vectors for every cross-attention layer of the denoiser. The
tokenizer knows those of the first; a text is encoded once for each layer, with the others' ids in
their place.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from tokenizers import AddedToken, Regex, normalizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import LoraError
from ..lora.adapter import Adapter

_FIRST = 0xE000  # private-use characters stand for the vectors; no text has them
_LAST = 0xF8FF


def joint_embeddings(
    adapters: Mapping[str, Adapter], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """Token -> (n, D) of all adapters; (X, 1, D) for tokens that differ from layer to layer.

    Raises:
        LoraError: two of them bring one token with different vectors, or the tokenizer has it.
    """
    known = {token.lower() for token in cast(Any, tokenizer).added_tokens_encoder}
    joint: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    for name, adapter in adapters.items():
        by_layer = {token: vectors[:, None] for token, vectors in adapter.layered.items()}
        for token, vectors in {**adapter.embeddings, **by_layer}.items():
            key = token.lower()  # CLIP's tokenizer does not tell cases apart
            if key in owners and not torch.equal(joint[key], vectors):
                raise LoraError(
                    f"the LoRAs {owners[key]!r} and {name!r} both bring the token {token}; give it "
                    f"another name in one of them: loraweave convert FILE --token "
                    f"'{token}=<{name}1>' --to kohya -o NEW.safetensors"
                )
            if key in known:
                raise LoraError(
                    f"the LoRA {name!r} brings the token {token}, which the pipeline has already; "
                    "unload it there (pipe.unload_textual_inversion()) or rename it"
                )
            joint[key], owners[key] = vectors, name
    return joint


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer with the tokens of a run.

    Attributes:
        tokenizer: gives ids, those of the first layer for tokens that differ from layer to layer.
        first: the first id that the text encoder's own table does not have.
        layered: (N,), which of the N ids from there on differ from layer to layer.
        layers: X, for how many layers there are vectors; 1 if no token differs.
    """

    tokenizer: PreTrainedTokenizerBase
    first: int = 0
    layered: tuple[bool, ...] = ()
    layers: int = 1

    def by_layer(self, ids: Tensor) -> list[Tensor]:
        """The ids as each layer has them; once if they are the same for all."""
        own = [self.first + n for n, differs in enumerate(self.layered) if differs]
        if not torch.isin(ids, torch.tensor(own, dtype=ids.dtype, device=ids.device)).any():
            return [ids]
        step = len(self.layered)
        return [torch.where(ids < self.first, ids, ids + n * step) for n in range(self.layers)]


@contextmanager
def extra_tokens(
    tokenizer: PreTrainedTokenizerBase, text_encoder: nn.Module, embeddings: Mapping[str, Tensor]
) -> Iterator[Vocabulary]:
    """A tokenizer that knows more tokens, and a text encoder that reads them, in this context.

    Args:
        tokenizer: a fast tokenizer; only read.
        text_encoder: gets hooks inside this context and none after it.
        embeddings: token -> (n, D), or (X, n, D) if the X layers differ, with one X for all.
            They are read at every call, so that they can be trained. With none, the tokenizer
            itself is given.

    Raises:
        LoraError: more vectors than can be told apart (6400).
    """
    if not embeddings:
        yield Vocabulary(tokenizer)
        return
    layered = [own.ndim == 3 for own in embeddings.values() for _ in range(own.shape[-2])]
    layers = max(len(own) if own.ndim == 3 else 1 for own in embeddings.values())
    if len(layered) > _LAST - _FIRST + 1:
        raise LoraError(f"{len(layered)} embedding vectors in one scene are too many.")
    larger: Any = copy.deepcopy(tokenizer)  # the libraries type little of what is used here
    signs = [chr(_FIRST + n) for n in range(len(layered))]
    rules, used = [], 0
    # The longest first: a token may be the beginning of another.
    places = {}
    for token, own in embeddings.items():
        places[token] = "".join(signs[used : used + own.shape[-2]])
        used += own.shape[-2]
    for token in sorted(places, key=len, reverse=True):
        rules.append(normalizers.Replace(Regex(_pattern(token)), places[token]))
    backend = larger.backend_tokenizer
    former = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([*former, *rules])
    larger.add_tokens([AddedToken(sign) for sign in signs])
    first = larger.convert_tokens_to_ids(signs[0])

    table = text_encoder.get_input_embeddings()  # type: ignore[operator]
    ids: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids.append(args[0])
        return (args[0].masked_fill(args[0] >= first, 0), *args[1:])

    def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        own = ids.pop() - first
        found = own >= 0
        if not found.any():
            return out
        rows = [v.expand(layers, *v.shape[-2:]) for v in embeddings.values()]
        vectors = torch.cat(rows, 1).flatten(0, 1)  # (X * N, D)
        return torch.where(found[..., None], vectors.to(out)[own.clamp_min(0)], out)

    handles = [table.register_forward_pre_hook(before), table.register_forward_hook(after)]
    try:
        yield Vocabulary(larger, first, tuple(layered), layers)
    finally:
        for handle in handles:
            handle.remove()


def _pattern(token: str) -> str:
    """The token in lower-case text, not as a part of a longer word."""
    start = r"(?<!\w)" if re.match(r"\w", token) else ""
    end = r"(?!\w)" if re.search(r"\w$", token) else ""
    return f"{start}{re.escape(token)}{end}"
