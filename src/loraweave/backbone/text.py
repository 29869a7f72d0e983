"""From characters of a prompt to positions of tokens.

The words of a concept are spans of characters (`loraweave.prompt`); attention maps are indexed
by tokens. The tokenizer itself says which characters each token came from, so nothing has to be
searched for: repeated words, words of several tokens, upper case and text whose lower case has
another length all come out right. (Searching for a word's token ids, as several published
implementations do, finds the first of two equal words and fails on "cats".)

Positions are absolute: the start-of-text token is 0.
"""

from transformers import PreTrainedTokenizerBase

from loraweave.errors import SceneError
from loraweave.prompt import Span

_SHOWN = 200  # characters of a too long prompt that an error message repeats


def token_positions(tokenizer: PreTrainedTokenizerBase, text: str, span: Span) -> list[int]:
    """Positions of the tokens of `text` that overlap `span`, ascending.

    Args:
        tokenizer: a fast tokenizer (one that has offsets), such as `CLIPTokenizer`.
        text: the text that is encoded, without markup.
        span: characters of `text`, not empty.

    Returns:
        At least one position, each in [1, tokenizer.model_max_length - 2] for a tokenizer that
        adds a start and an end token, as CLIP's does.

    Raises:
        SceneError: the span is not in the text or has no token; the text has more tokens than
            the model takes, or has the tokenizer's start or end marker in it.
    """
    if not 0 <= span.start < span.end <= len(text):
        raise SceneError(
            f"characters {span.start} to {span.end} are not in the text of {len(text)} characters"
        )
    offsets = _offsets(tokenizer, text)
    found = [i for i, (start, end) in enumerate(offsets) if start < span.end and end > span.start]
    if not found:
        raise SceneError(
            f"{text[span.start : span.end]!r} has no token in the model's vocabulary, so nothing "
            "can attend to it; use another word in the prompt"
        )
    return found


def end_of_text_position(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Position of the end-of-text token of `text`: the first one, before any padding.

    Raises:
        SceneError: as `token_positions`, for the text.
    """
    return len(_offsets(tokenizer, text)) - 1


def _offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Per token the (start, end) characters it came from; (0, 0) for start and end of text."""
    # Not `all_special_tokens`: SDXL's second tokenizer pads with "!", a good word in a prompt.
    for marker in (tokenizer.bos_token, tokenizer.eos_token):
        if isinstance(marker, str) and marker in text:
            raise SceneError(
                f"the prompt has the tokenizer's own marker {marker!r} in it, which would end the "
                "text there; remove it"
            )
    # verbose=False: a text that is too long is an error below, not a line in the log.
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    limit = tokenizer.model_max_length
    if len(offsets) > limit:
        start = offsets[limit - 1][0]  # the place of this token goes to the end-of-text token
        while start > 0 and not text[start - 1].isspace():
            start -= 1
        lost = text[start:]
        lost = lost if len(lost) <= _SHOWN else lost[:_SHOWN] + "..."
        raise SceneError(
            f"the prompt has {len(offsets)} tokens with its start and end, the model takes "
            f"{limit}; these words would fall off: {lost!r}. Shorten the prompt"
        )
    return offsets
