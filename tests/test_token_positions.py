"""Character spans to token positions, with a small CLIP tokenizer trained here."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from loraweave.backbone.text import (
    emphasised,
    end_of_text_position,
    token_positions,
    tokenized,
)
from loraweave.errors import SceneError
from loraweave.prompt import Span, full_prompt, parse_prompt, pass_prompts

SENTENCES = [
    "a black cat and a dog in the meadow",
    "the golden retriever sleeps near a river",
    "a cat and another cat under the old bridge",
] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    rules = CLIPTokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(SENTENCES, trainer)
    # As in OpenAI's vocabulary every byte can also end a word, so no text is unknown.
    vocab = dict.fromkeys(sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__))
    vocab |= dict.fromkeys(f"{letter}</w>" for letter in sorted(letters))
    vocab |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    merges = trained.model.save(str(folder))[1]
    with open(merges, encoding="utf-8") as file:  # noqa: PTH123
        pairs = [tuple(line.split()) for line in file if not line.startswith("#version")]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(vocab)},
        merges=pairs,
        model_max_length=77,
    )


def find(text: str, words: str, nth: int = 0) -> Span:
    start = -1
    for _ in range(nth + 1):
        start = text.index(words, start + 1)
    return Span(start, start + len(words))


def tokens(tokenizer, text: str, span: Span) -> list[str]:
    ids = tokenizer(text).input_ids
    return tokenizer.convert_ids_to_tokens([ids[i] for i in token_positions(tokenizer, text, span)])


def test_positions_are_absolute(tokenizer):
    text = "a black cat and a dog"
    assert token_positions(tokenizer, text, find(text, "a")) == [1]
    assert token_positions(tokenizer, text, find(text, "cat")) == [3]
    assert token_positions(tokenizer, text, find(text, "black cat")) == [2, 3]
    assert token_positions(tokenizer, text, find(text, "dog")) == [6]
    assert end_of_text_position(tokenizer, text) == 7
    assert tokenizer(text).input_ids[7] == tokenizer.eos_token_id


def test_padding_does_not_move_the_end_of_text(tokenizer):
    ids = tokenizer("a cat", padding="max_length").input_ids
    assert len(ids) == 77
    assert ids.index(tokenizer.eos_token_id) == end_of_text_position(tokenizer, "a cat") == 3


def test_word_of_several_tokens(tokenizer):
    text = "a zwx cat"
    assert tokens(tokenizer, text, find(text, "zwx")) == ["z", "w", "x</w>"]
    assert token_positions(tokenizer, text, find(text, "cat")) == [5]


def test_repeated_words_are_told_apart(tokenizer):
    text = "a cat and another cat"
    assert token_positions(tokenizer, text, find(text, "cat", 0)) == [2]
    assert token_positions(tokenizer, text, find(text, "cat", 1)) == [5]


def test_equal_nouns_of_two_concepts(tokenizer):
    parsed = parse_prompt("a [black cat](one) and a [golden cat](two)")
    for prompt in [*pass_prompts(parsed), full_prompt(parsed)]:
        one, two = (token_positions(tokenizer, prompt.text, s) for s in prompt.nouns.values())
        assert one < two
        for name, noun in prompt.nouns.items():
            assert tokens(tokenizer, prompt.text, noun) == ["cat</w>"], name


@pytest.mark.parametrize("text", ["a cat, a dog", "(cat)dog", "a  cat\n\n dog", "'cat' \"dog\"!"])
def test_punctuation_and_blanks_are_not_part_of_the_word(tokenizer, text):
    assert tokens(tokenizer, text, find(text, "cat")) == ["cat</w>"]
    assert tokens(tokenizer, text, find(text, "dog")) == ["dog</w>"]


@pytest.mark.parametrize(
    "before", ["A BLACK", "İİİ İstanbul", "ẞtraße", "日本の", "🐱🐱", "e\u0301te\u0301", "ﬁ Å Å"]
)
def test_text_whose_normal_form_has_another_length(tokenizer, before):
    text = f"{before} Cat and DOG"
    assert tokens(tokenizer, text, find(text, "Cat")) == ["cat</w>"]
    assert tokens(tokenizer, text, find(text, "DOG")) == ["dog</w>"]
    found = token_positions(tokenizer, text, Span(0, len(before)))
    assert found == list(range(1, token_positions(tokenizer, text, find(text, "Cat"))[0]))


@given(st.lists(st.text(min_size=1, max_size=6).filter(str.isalnum), min_size=1, max_size=5))
def test_spans_of_all_words_share_out_all_tokens(tokenizer, words):
    text = " ".join(words)
    found, start = [], 0
    for word in words:
        found += token_positions(tokenizer, text, Span(start, start + len(word)))
        start += len(word) + 1
    assert found == list(range(1, end_of_text_position(tokenizer, text)))


def test_span_without_token(tokenizer):
    with pytest.raises(SceneError, match="no token"):
        token_positions(tokenizer, "a   cat", Span(2, 3))


@pytest.mark.parametrize("span", [Span(0, 0), Span(2, 1), Span(-1, 1), Span(3, 6)])
def test_span_outside_the_text(tokenizer, span):
    with pytest.raises(SceneError, match="not in the text of 5 characters"):
        token_positions(tokenizer, "a cat", span)


def test_longest_text_that_fits(tokenizer):
    text = " ".join(["cat"] * 75)
    assert end_of_text_position(tokenizer, text) == 76
    assert token_positions(tokenizer, text, Span(len(text) - 3, len(text))) == [75]


def test_positions_in_the_second_chunk(tokenizer):
    text = " ".join(["cat"] * 74) + " zwx dog river"
    # 74 cats and 3 tokens of zwx: it is cut in two, as A1111 does without a comma near.
    assert token_positions(tokenizer, text, find(text, "zwx")) == [75, 78, 79]
    assert token_positions(tokenizer, text, find(text, "dog")) == [80]
    assert token_positions(tokenizer, text, find(text, "river")) == [81]
    assert end_of_text_position(tokenizer, text) == 82


def test_ids_of_two_chunks(tokenizer):
    text = " ".join(["cat"] * 76)
    start, *cats, end = tokenizer(text, verbose=False).input_ids
    cat, pad = cats[0], tokenizer.pad_token_id
    assert tokenized(tokenizer, text).ids(3).tolist() == [
        [start, *[cat] * 75, end],
        [start, cat, end] + [pad] * 74,
        [start, end] + [pad] * 75,
    ]


def test_one_chunk_has_the_ids_of_the_tokenizer(tokenizer):
    for text in ("", "a black cat", " ".join(["cat"] * 75)):
        own = tokenizer(text, padding="max_length", max_length=77, truncation=True)
        assert tokenized(tokenizer, text).ids(1).tolist() == [own.input_ids]


@pytest.mark.parametrize(
    ("commas", "sizes"),
    [
        ((), [75, 5]),
        ((60,), [61, 19]),
        ((60, 70), [71, 9]),
        ((55,), [56, 24]),
        ((54,), [75, 5]),  # 21 tokens back is too far
        ((60, 75), [75, 5]),  # a comma that is the first too many opens the next chunk
        ((74,), [75, 5]),
    ],
)
def test_a_chunk_ends_after_a_comma_that_is_near(tokenizer, commas, sizes):
    words = [", " if i in commas else "cat " for i in range(80)]
    tokens = tokenized(tokenizer, "".join(words))
    assert [len(chunk) for chunk in tokens.chunks] == sizes
    assert tokens.positions[sizes[0]] == 77 + 1


@given(st.lists(st.sampled_from(["cat", "zwx", ",", "river"]), min_size=1, max_size=200))
def test_positions_lead_to_the_tokens_that_the_tokenizer_made(tokenizer, words):
    text = " ".join(words)
    tokens = tokenized(tokenizer, text)
    ids = tokens.ids(len(tokens.chunks))
    assert ids.shape == (len(tokens.chunks), 77)
    alone = tokenizer(text, verbose=False).input_ids[1:-1]
    assert ids.flatten()[tokens.positions].tolist() == alone
    rest = ids.flatten().tolist()
    for position in reversed(tokens.positions):
        del rest[position]
    assert set(rest) <= {tokens.start, tokens.end, tokens.pad}
    assert rest.count(tokens.start) == len(tokens.chunks)
    assert max(len(chunk) for chunk in tokens.chunks) <= 75


def test_weights_of_tokens(tokenizer):
    text = " ".join(["cat"] * 74) + " zwx dog"
    span, dog = find(text, "zwx"), find(text, "dog")
    weights = tokenized(tokenizer, text).weights(((span, 1.5), (dog, 0.5)), 3)
    expected = torch.ones(3, 77)
    expected[0, 75] = expected[1, 1] = expected[1, 2] = 1.5
    expected[1, 3] = 0.5
    assert torch.equal(weights, expected)


def test_emphasis_restores_the_mean():
    states = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 6.0], [7.0, 8.0]]])
    out = emphasised(states, torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
    # Row 0: mean 2, weighted (1, 3, 6, 6) with mean 4, so everything is halved.
    assert torch.equal(out[0], torch.tensor([[0.5, 1.5], [3.0, 3.0]]))
    assert torch.equal(out[1], states[1])


def test_emphasis_in_half_precision_is_computed_in_float32():
    states = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)) + 1
    weights = torch.ones(1, 77)
    weights[0, 3:9] = 1.3
    half = emphasised(states.half(), weights)
    assert half.dtype == torch.float16
    assert torch.equal(half, emphasised(states.half().float(), weights).half())


def test_weights_that_cancel_out():
    states = torch.tensor([[[1.0], [1.0]]])
    with pytest.raises(SceneError, match="cancel each other out"):
        emphasised(states, torch.tensor([[1.0, -1.0]]))


def test_a_text_of_too_many_chunks(tokenizer):
    assert len(tokenized(tokenizer, "cat " * 75 * 16).chunks) == 16
    with pytest.raises(SceneError, match=r"1201 tokens, 17 chunks of 75; at most 16"):
        tokenized(tokenizer, "cat " * (75 * 16 + 1))


@pytest.mark.parametrize("marker", ["<|startoftext|>", "<|endoftext|>"])
def test_marker_of_the_tokenizer_in_the_text(tokenizer, marker):
    text = f"a {marker} cat"
    with pytest.raises(SceneError, match="own marker"):
        token_positions(tokenizer, text, find(text, "cat"))
