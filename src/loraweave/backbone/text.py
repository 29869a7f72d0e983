"""From characters of a prompt to positions of tokens.

The words of a concept are spans of characters (`loraweave.prompt`); attention maps are indexed
by tokens. The tokenizer itself says which characters each token came from, so nothing has to be
searched for: repeated words, words of several tokens, upper case and text whose lower case has
another length all come out right. (Searching for a word's token ids, as several published
implementations do, finds the first of two equal words and fails on "cats".)

A prompt that is longer than the text encoder goes through it in chunks, as in A1111, and their
states are put one after the other:

    position   0      1 .. 75   76    | 77     78 .. 152  153   | ...
    token      start  words     end   | start  words      end   | ...

A border that would cut a phrase is moved back behind the last comma if that is at most 20 tokens
away (A1111's default, "comma padding backtrack"). Within a chunk the end token comes right after
the last word and padding after it, as without chunks.

Positions are absolute in the joined sequence: the first start-of-text token is 0.

`K` chunks, `T` = 77 positions of one chunk.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraweave.errors import SceneError
from loraweave.prompt import Emphasis, Span

MAX_CHUNKS = 16
"""About 1200 tokens, more than any prompt for a picture; each costs a pass of the text encoder and
`T` more positions in every cross-attention layer."""

COMMA_BACKTRACK = 20

MOST_RESCALING = 10.0
"""Restoring the mean changes the states by a few percent for weights in use, never by this."""


@dataclass(frozen=True)
class TokenizedText:
    """A text as the text encoder gets it.

    Attributes:
        chunks: per chunk the ids of its words, without start and end.
        positions: of every word token in the joined sequence, ascending.
        offsets: per word token the (start, end) characters that it came from.
        start, end, pad: ids of the special tokens.
        length: T, positions of a chunk.
    """

    chunks: list[list[int]]
    positions: list[int]
    offsets: list[tuple[int, int]]
    start: int
    end: int
    pad: int
    length: int

    def ids(self, count: int) -> Int[Tensor, "K T"]:
        """The ids of `count` chunks; those that the text does not fill are empty ones."""
        rows = []
        for words in self.chunks + [[]] * (count - len(self.chunks)):
            row = [self.start, *words, self.end]
            rows.append(row + [self.pad] * (self.length - len(row)))
        return torch.tensor(rows)

    def weights(self, emphasis: Emphasis, count: int) -> Float[Tensor, "K T"]:
        """The emphasis on every position; 1 on start, end and padding."""
        weights = torch.ones(count * self.length)
        for span, weight in emphasis:
            for position, (start, end) in zip(self.positions, self.offsets):
                if start < span.end and end > span.start:
                    weights[position] = weight
        return weights.unflatten(0, (count, self.length))


def tokenized(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenizedText:
    """Tokens of a text, in chunks.

    Args:
        tokenizer: a fast tokenizer (one that has offsets) that adds a start and an end token,
            such as `CLIPTokenizer`.
        text: what is encoded, without markup.

    Raises:
        SceneError: the text needs more than 16 chunks, or has the tokenizer's start or end
            marker in it.
    """
    # Not `all_special_tokens`: SDXL's second tokenizer pads with "!", a good word in a prompt.
    for marker in (tokenizer.bos_token, tokenizer.eos_token):
        if isinstance(marker, str) and marker in text:
            raise SceneError(
                f"the prompt has the tokenizer's own marker {marker!r} in it, which would end the "
                "text there; remove it"
            )
    # verbose=False: a text of several chunks is nothing that the log has to mention.
    found = tokenizer(text, return_offsets_mapping=True, verbose=False)
    start, *ids, end = found["input_ids"]
    offsets = [tuple(pair) for pair in found["offset_mapping"][1:-1]]
    length = tokenizer.model_max_length
    sizes = _chunk_sizes([text[a:b] == "," for a, b in offsets], length - 2)
    if len(sizes) > MAX_CHUNKS:
        raise SceneError(
            f"the prompt has {len(ids)} tokens, {len(sizes)} chunks of {length - 2}; at most "
            f"{MAX_CHUNKS} chunks work. Shorten the prompt"
        )
    chunks, positions, begin = [], [], 0
    for k, size in enumerate(sizes):
        chunks.append(ids[begin : begin + size])
        positions += range(k * length + 1, k * length + 1 + size)
        begin += size
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else end
    return TokenizedText(chunks, positions, offsets, start, end, pad, length)


def token_positions(tokenizer: PreTrainedTokenizerBase, text: str, span: Span) -> list[int]:
    """Positions of the tokens of `text` that overlap `span`, ascending.

    Args:
        tokenizer: as for `tokenized`.
        text: the text that is encoded, without markup.
        span: characters of `text`, not empty.

    Returns:
        At least one position, none of them that of a start or end token.

    Raises:
        SceneError: the span is not in the text or has no token, or as `tokenized`.
    """
    if not 0 <= span.start < span.end <= len(text):
        raise SceneError(
            f"characters {span.start} to {span.end} are not in the text of {len(text)} characters"
        )
    tokens = tokenized(tokenizer, text)
    found = [
        position
        for position, (start, end) in zip(tokens.positions, tokens.offsets)
        if start < span.end and end > span.start
    ]
    if not found:
        raise SceneError(
            f"{text[span.start : span.end]!r} has no token in the model's vocabulary, so nothing "
            "can attend to it; use another word in the prompt"
        )
    return found


def end_of_text_position(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Position of the last chunk's end-of-text token, right after the last word.

    Raises:
        SceneError: as `tokenized`.
    """
    tokens = tokenized(tokenizer, text)
    return (len(tokens.chunks) - 1) * tokens.length + 1 + len(tokens.chunks[-1])


def emphasised(
    states: Float[Tensor, "B T D"], weights: Float[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """Text states of one chunk, each position multiplied by its weight, then the mean restored.

    This is A1111's default ("Original" emphasis in its `modules/sd_emphasis.py`): after
    multiplying, each row is rescaled so that its mean over all positions and features is what it
    was. We follow it because prompts with weights are written for it; without the rescaling a few
    strong words also make the whole conditioning larger. Rows without emphasis come back bit for
    bit.

    Raises:
        SceneError: the weighted mean is near zero or of the other sign, so that restoring it would
            blow up the whole conditioning.
    """
    strong = (weights != 1).any(1)
    if not strong.any():
        return states
    dtype = torch.promote_types(states.dtype, torch.float32)
    chosen = states[strong].to(dtype)  # (B', T, D)
    scaled = chosen * weights[strong].to(chosen)[..., None]
    ratio = chosen.mean((1, 2), keepdim=True) / scaled.mean((1, 2), keepdim=True)
    for factor in ratio.flatten().tolist():
        if not 1 / MOST_RESCALING <= factor <= MOST_RESCALING:
            raise SceneError(
                "the weights of the words cancel each other out: restoring the mean of the text "
                f"states would multiply all of them by {factor:.3g}; use weights nearer to 1"
            )
    out = states.clone()
    out[strong] = (scaled * ratio).to(states.dtype)
    return out


def _chunk_sizes(commas: list[bool], capacity: int) -> list[int]:
    """How many tokens each chunk takes; one chunk of size 0 for an empty text."""
    sizes, begin = [], 0
    while len(commas) - begin > capacity:
        size = capacity
        recent = range(max(0, capacity - COMMA_BACKTRACK), capacity)
        # A comma that would open the next chunk is left to do so, as in A1111.
        if not commas[begin + capacity]:
            size = max((i + 1 for i in recent if commas[begin + i]), default=capacity)
        sizes.append(size)
        begin += size
    return [*sizes, len(commas) - begin]
