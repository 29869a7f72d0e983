"""Character spans to token positions, with a small CLIP tokenizer trained here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from loraweave.backbone.text import end_of_text_position, token_positions
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


def test_too_long_text_names_the_words_that_fall_off(tokenizer):
    text = " ".join(["cat"] * 74) + " zwx dog river"
    with pytest.raises(SceneError) as error:
        token_positions(tokenizer, text, Span(0, 3))
    # 74 cats, 3 tokens of zwx, 2 words, start and end; zwx itself is cut in two.
    assert "81 tokens" in str(error.value)
    assert "77" in str(error.value)
    assert "'zwx dog river'" in str(error.value)
    with pytest.raises(SceneError, match="fall off"):
        end_of_text_position(tokenizer, text)


def test_too_long_text_is_shown_shortened(tokenizer):
    with pytest.raises(SceneError) as error:
        end_of_text_position(tokenizer, "cat " * 5000)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("marker", ["<|startoftext|>", "<|endoftext|>"])
def test_marker_of_the_tokenizer_in_the_text(tokenizer, marker):
    text = f"a {marker} cat"
    with pytest.raises(SceneError, match="own marker"):
        token_positions(tokenizer, text, find(text, "cat"))


def test_text_that_is_one_word_too_long(tokenizer):
    with pytest.raises(SceneError, match="would fall off: 'dog'"):
        end_of_text_position(tokenizer, "cat " * 75 + "dog")
