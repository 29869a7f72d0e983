"""The markup of the prompt: what it means, what is refused and where."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loraweave.errors import PromptSyntaxError
from loraweave.prompt import (
    ConceptWords,
    PassPrompt,
    Span,
    StyleWords,
    full_prompt,
    parse_prompt,
    pass_prompts,
    with_trigger,
    words_alone,
)

MEADOW = "a [sks cat](blackcat) and a [zwx dog](golddog:0.8) in the meadow"


def words_at(prompt: PassPrompt, spans: dict[str, Span]) -> dict[str, str]:
    return {name: prompt.text[span.start : span.end] for name, span in spans.items()}


def test_meadow():
    parsed = parse_prompt(MEADOW)
    assert parsed.source == MEADOW
    assert parsed.text == "a sks cat and a zwx dog in the meadow"
    assert parsed.concepts == (
        ConceptWords("blackcat", "sks", "cat", 1.0),
        ConceptWords("golddog", "zwx", "dog", 0.8),
    )
    assert parsed.styles == ()


def test_pass_prompts_of_meadow():
    prompts = pass_prompts(parse_prompt(MEADOW))
    assert prompts == [
        PassPrompt(
            "a cat and a dog in the meadow",
            {"blackcat": Span(2, 5), "golddog": Span(12, 15)},
            {},
        ),
        PassPrompt(
            "a sks cat and a dog in the meadow",
            {"blackcat": Span(6, 9), "golddog": Span(16, 19)},
            {"blackcat": Span(2, 5)},
        ),
        PassPrompt(
            "a cat and a zwx dog in the meadow",
            {"blackcat": Span(2, 5), "golddog": Span(16, 19)},
            {"golddog": Span(12, 15)},
        ),
    ]


def test_a_concepts_words_alone():
    parsed = parse_prompt("a [sks cat](a) and a [|golden retriever](b) in the snow")
    cat, dog = words_alone(parsed, "a"), words_alone(parsed, "b")
    assert cat == PassPrompt("sks cat", {"a": Span(4, 7)}, {"a": Span(0, 3)})
    assert dog == PassPrompt("golden retriever", {"b": Span(0, 16)}, {})


def test_full_prompt_has_all_triggers():
    parsed = parse_prompt(MEADOW)
    full = full_prompt(parsed)
    assert full.text == parsed.text
    assert words_at(full, full.triggers) == {"blackcat": "sks", "golddog": "zwx"}
    assert words_at(full, full.nouns) == {"blackcat": "cat", "golddog": "dog"}


@pytest.mark.parametrize(
    ("span", "trigger", "noun"),
    [
        ("[sks cat]", "sks", "cat"),
        ("[cat]", "", "cat"),
        ("[two word dog]", "two word", "dog"),
        ("[hatsune miku|girl]", "hatsune miku", "girl"),
        ("[|golden retriever]", "", "golden retriever"),
        ("[ sks  |  golden   retriever ]", "sks", "golden retriever"),
        (r"[sks \[cat\]]", "sks", "[cat]"),
        (r"[a\|b cat]", "a|b", "cat"),
        ("[re:zero cat:dog:0.5]", "re:zero", "cat:dog:0.5"),
        ("[çok güzel KEDİ]", "çok güzel", "KEDİ"),
    ],
)
def test_trigger_and_noun(span, trigger, noun):
    parsed = parse_prompt(f"one {span}(x), outside")
    assert parsed.concepts == (ConceptWords("x", trigger, noun, 1.0),)
    base, own = pass_prompts(parsed)
    assert base.text == f"one {noun}, outside"
    assert own.text == (f"one {trigger} {noun}, outside" if trigger else base.text)
    assert words_at(own, own.triggers) == ({"x": trigger} if trigger else {})
    assert words_at(own, own.nouns) == {"x": noun}


def test_equal_nouns_have_their_own_places():
    parsed = parse_prompt("a [sks cat](a) and a [zwx cat](b), one more cat")
    for prompt in [*pass_prompts(parsed), full_prompt(parsed)]:
        assert words_at(prompt, prompt.nouns) == {"a": "cat", "b": "cat"}
        assert prompt.nouns["a"].end < prompt.nouns["b"].start
        assert prompt.nouns["b"].end < prompt.text.rindex("cat")


@pytest.mark.parametrize(
    ("weight", "value"),
    [("", 1.0), (":0.8", 0.8), (":-4", -4.0), (": +.5 ", 0.5), (":1e-1", 0.1), (":0", 0.0)],
)
def test_weights(weight, value):
    parsed = parse_prompt(f"[cat](x{weight}) <lora:ink{weight}>")
    assert parsed.concepts[0].weight == value
    assert parsed.styles == (StyleWords("ink", value),)


@pytest.mark.parametrize(
    ("weights", "unet", "text_encoder"),
    [
        ("0.8", 0.8, None),
        ("0.8:0.5", 0.8, 0.5),
        (" 0.8 : -1 ", 0.8, -1.0),
        ("te=0.5:unet=0.8", 0.8, 0.5),
        ("unet=0.8:te=0.5", 0.8, 0.5),
        ("te=0", 1.0, 0.0),
        ("unet = 0.8", 0.8, None),
    ],
)
def test_weights_by_component(weights, unet, text_encoder):
    parsed = parse_prompt(f"[cat](x:{weights}) <lora:ink:{weights}>")
    assert parsed.concepts == (ConceptWords("x", "", "cat", unet, text_encoder),)
    assert parsed.styles == (StyleWords("ink", unet, text_encoder),)


def emphasis(prompt: PassPrompt) -> list[tuple[str, float]]:
    return [(prompt.text[s.start : s.end], round(w, 9)) for s, w in prompt.emphasis]


@pytest.mark.parametrize(
    ("source", "text", "weights"),
    [
        ("a (red) cat", "a red cat", [("red", 1.1)]),
        ("a ((red)) cat", "a red cat", [("red", 1.21)]),
        ("a (very (red:1.5)) cat", "a very red cat", [("very ", 1.1), ("red", 1.65)]),
        ("a [red] cat", "a red cat", [("red", 1 / 1.1)]),
        ("a ([red]:2) [(cat)]", "a red cat", [("red", 2 / 1.1)]),
        ("(red : 0.5 ) (cat:1)", "red  cat", [("red ", 0.5)]),
        ("(a:-1) (b:+.5) (c:1e-1)", "a b c", [("a", -1), ("b", 0.5), ("c", 0.1)]),
        ("a (red, blue:1.3), cat", "a red, blue, cat", [("red, blue", 1.3)]),
        (r"(a \(b\):1.2) \(c:1.3\)", "a (b) (c:1.3)", [("a (b)", 1.2)]),
        (r"(at 12\:30)", "at 12:30", [("at 12:30", 1.1)]),
        ("(a: b) (a 3:4 ratio)", "a: b a 3:4 ratio",
         [("a", 1.1), (":", 1.1), (" b", 1.1), ("a 3", 1.1), (":", 1.1), ("4 ratio", 1.1)]),
        ("(a|b)", "a|b", [("a|b", 1.1)]),
        ("a (red <lora:x:2>:1.2)", "a red", [("red", 1.2)]),
        ("( a cat ) ", "a cat", [("a cat", 1.1)]),
    ],
)  # fmt: skip
def test_emphasis(source, text, weights):
    prompt = full_prompt(parse_prompt(source))
    assert prompt.text == text
    assert emphasis(prompt) == [(words, round(weight, 9)) for words, weight in weights]


def test_emphasis_around_a_concept_is_on_its_trigger_where_that_is():
    base, own = pass_prompts(parse_prompt("one ([sks cat](x:0.5) naps:1.2) here"))
    assert emphasis(base) == [("cat", 1.2), (" naps", 1.2)]
    assert emphasis(own) == [("sks cat", 1.2), (" naps", 1.2)]
    assert words_at(own, own.triggers) == {"x": "sks"}


def test_our_markup_wins_over_emphasis():
    parsed = parse_prompt("a [red](blue), [red], (blue)")
    assert [c.name for c in parsed.concepts] == ["blue"]
    assert emphasis(full_prompt(parsed)) == [("red", round(1 / 1.1, 9)), ("blue", 1.1)]


@st.composite
def weighted_words(draw, depth=3):
    """Markup and what it means: a list of (words, weight)."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from("w([:" if depth else "w"))
        if kind == "w":
            said = draw(words)
            parts.append((said, [(said, 1.0)]))
            continue
        source, meaning = draw(weighted_words(depth=depth - 1))
        factor = {"(": 1.1, "[": 1 / 1.1}.get(kind) or round(draw(st.floats(-4, 4)), 2)
        shown = {"(": f"({source})", "[": f"[{source}]", ":": f"({source}:{factor})"}[kind]
        parts.append((shown, [(said, weight * factor) for said, weight in meaning]))
    # A comma keeps `[..]` and `(..)` apart.
    return ", ".join(shown for shown, _ in parts), [pair for _, own in parts for pair in own]


@given(weighted_words())
def test_nested_emphasis_multiplies(built):
    source, meaning = built
    prompt = full_prompt(parse_prompt(source))
    assert prompt.text == ", ".join(said for said, _ in meaning)
    place = 0
    for said, weight in meaning:
        found = [w for s, w in prompt.emphasis if s.start <= place and place + len(said) <= s.end]
        assert found == ([] if weight == 1 else [pytest.approx(weight)])
        place += len(said) + 2


def test_trigger_put_into_a_prompt():
    parsed = parse_prompt("<lora:a:1> an [ old cat](x:0.5) and [dog](y)")
    assert with_trigger(parsed, "y", "re:zero [1], AND") == (
        r"<lora:a:1> an [ old cat](x:0.5) and [re\:zero \[1\], and|dog](y)"
    )
    filled = parse_prompt(with_trigger(parsed, "y", "re:zero [1], AND"))
    assert filled.concepts[1] == ConceptWords("y", "re:zero [1], and", "dog", 1.0)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a cat <lora:ink> in the rain", "a cat in the rain"),
        ("<lora:ink> a cat", "a cat"),
        ("a cat<lora:ink>", "a cat"),
        ("a cat <lora:ink> <lora:oil:0.5>", "a cat"),
        ("a cat<lora:ink> <lora:oil:0.5> runs", "a cat runs"),
        ("a  cat<lora:ink>,  wet", "a  cat,  wet"),
        (" a cat\nruns ", "a cat\nruns"),
        ("[cat](x) <lora:ink>", "cat"),
        (r"\(a:1.2\) \[b\] \<c\> \| \\ | d: e", "(a:1.2) [b] <c> | \\ | d: e"),
        ("and break, BREAKFAST, BRAND, ANDROID", "and break, BREAKFAST, BRAND, ANDROID"),
        ("[AND1 cat](AND)'s hat", "AND1 cat's hat"),
    ],
)
def test_text_without_markup(source, text):
    assert parse_prompt(source).text == text


@pytest.mark.parametrize(
    ("prompt", "position", "message"),
    [
        ("", 0, "empty"),
        (" \n ", 0, "empty"),
        ("<lora:ink:1>", 0, "empty"),
        ("a [red:blue:0.5] cat", 2, "A1111"),
        ("a [red:0.5] cat", 2, "round brackets, (words:0.8)"),
        ("a [red::0.5] cat", 2, "A1111"),
        ("a (red cat", 2, "never closed"),
        ("a ((red) cat", 2, "never closed"),
        ("a [(red] cat)", 7, "where '(' is still open"),
        ("a ([red) cat]", 7, "where '[' is still open"),
        ("a () cat", 2, "no words"),
        ("a ( <lora:x> ) cat", 2, "no words"),
        ("a (:1.2) cat", 2, "no words"),
        ("a (red:) cat", 7, "''"),
        ("a (red:1,2) cat", 7, "'1,2', not one number"),
        ("a (red:1.2x) cat", 7, "'1.2x', not one number"),
        ("a (red:1.2:1.3) cat", 7, "not one number"),
        ("a (red:9) cat", 7, "-4 to 4"),
        ("a (in 16:9) cat", 9, r"write \:"[:-1]),
        ("a (red)s cat", 7, "run together"),
        ("(black)[sks cat](x)", 7, "run together"),
        ("a [red|blue] cat", 2, "A1111"),
        ("a [sks cat] (x)", 2, "without a blank"),
        ("a cat BREAK a dog", 6, "BREAK"),
        ("a cat AND a dog", 6, "AND"),
        ("a [AND cat](x)", 3, "AND"),
        ("a cat] b", 5, "closes nothing"),
        ("a cat) b", 5, "closes nothing"),
        ("a cat> b", 5, "closes nothing"),
        ("a [sks cat", 2, "never closed"),
        ("a [sks|cat", 2, "never closed"),
        ("a [sks [cat]](x)", 7, "a bracket within"),
        ("a [sks (cat)](x)", 7, "a bracket within"),
        ("a [sks <lora:y>](x)", 7, "a bracket within"),
        ("a [](x)", 2, "no words"),
        ("a [ | ](x)", 2, "no words"),
        ("a [sks|](x)", 2, "no class noun"),
        ("a [a|b|c](x)", 6, "second bar"),
        ("a [a||c](x)", 5, "second bar"),
        ("a [sks cat,](x)", 2, "punctuation"),
        ("a [cat]()", 8, "no name"),
        ("a [cat]( :1)", 8, "no name"),
        ("a [cat](x", 7, "after its name"),
        ("a [cat](x[y)", 9, "cannot have"),
        ("a [cat](x|y)", 9, "cannot have"),
        ("a [cat](x:)", 10, "weight"),
        ("a [cat](x:big)", 10, "weight"),
        ("a [cat](x:nan)", 10, "weight"),
        ("a [cat](x:inf)", 10, "weight"),
        ("a [cat](x:1e999)", 10, "weight"),
        ("a [cat](x:4.01)", 10, "-4 to 4"),
        ("a [cat](x:-5)", 10, "-4 to 4"),
        ("a [cat](x:0.5:0.6:0.7)", 10, "3 weights"),
        ("a [cat](x:0.5:big)", 14, "'big', not one number"),
        ("a [cat](x:te=0.5:0.6)", 10, "ambiguous"),
        ("a [cat](x:0.5:unet=0.6)", 10, "ambiguous"),
        ("a [cat](x:te=0.5:te=0.6)", 17, "ambiguous"),
        ("a cat <lora:x:clip=0.5>", 14, "no part 'clip'"),
        ("a cat <lora:x:te=>", 14, "not one number"),
        ("a [cat](x:1_0)", 10, "weight"),
        ("a cat <lora:>", 12, "no name"),
        ("a cat <lora:x:y>", 14, "weight"),
        ("a cat <lora:x", 11, "after its name"),
        ("a cat <lyco:x:1>", 6, "only <lora:name:weight>"),
        ("a cat <3", 6, "only <lora:name:weight>"),
        ("a [sks cat](x) and a [zwx dog](x)", 31, "two places for one concept"),
        ("a [cat](x) and a [cat](x)", 23, "two places for one concept"),
        ("a cat <lora:x> <lora:x:0.5>", 21, "two places for one style"),
        ("a [cat](x) <lora:x>", 17, "is a concept already"),
        ("a <lora:x> [cat](x)", 17, "is a style already"),
        (r"a \cat", 2, "backslash"),
        ("a cat\\", 5, "backslash"),
        ("a [cat\\", 2, "never closed"),
        ("a [cat\\z](x)", 6, "backslash"),
        ("a [sks cat](x)s", 14, "run together"),
        ("black[sks cat](x)", 5, "run together"),
        ("black[!sks cat](x)", 5, "run together"),
        ("a [cat](x)[dog](y)", 10, "run together"),
        ("a cat<lora:x>and", 13, "run together"),
        ("a \ud800 cat", 2, "surrogate"),
    ],
)
def test_refused(prompt, position, message):
    with pytest.raises(PromptSyntaxError, match=re.escape(message)) as error:
        parse_prompt(prompt)
    assert error.value.position == position
    assert f"(character {position})" in str(error.value)


@pytest.mark.parametrize("prompt", ["a (red cat", "a [red cat", "a cat)", "a <3", "a [b [c]](d)"])
def test_refusal_says_how_to_write_the_character(prompt):
    with pytest.raises(
        PromptSyntaxError, match=r"backslash before it: \\\[ \\\] \\\( \\\)"
    ) as error:
        parse_prompt(prompt)
    repaired = re.sub(r"([\[\]()<>])", r"\\\1", prompt)
    assert parse_prompt(repaired).text == prompt
    assert error.value.prompt == prompt


def test_caret_stands_below_the_place_in_a_prompt_of_two_lines():
    with pytest.raises(PromptSyntaxError) as error:
        parse_prompt("a cat,\na (red dog")
    drawn, caret = str(error.value).splitlines()[-2:]
    assert drawn[caret.index("^")] == "("


word = st.text("abcxyzäİ日é", min_size=1, max_size=5)
words = st.lists(word, min_size=1, max_size=3).map(" ".join)
number = st.floats(-4, 4).map(lambda value: round(value, 3))


@st.composite
def marked_prompts(draw):
    """A prompt with 0 to 5 concepts, its parts: (words | (trigger, noun, name, weight))."""
    names = draw(st.lists(words, max_size=5, unique=True))
    parts, written = [], []
    for name in names:
        parts.append(draw(words))
        written.append(parts[-1])
        trigger, noun, weight = draw(words | st.just("")), draw(words), draw(number | st.none())
        parts.append((trigger, noun, name, 1.0 if weight is None else weight))
        bar = "|" if " " in noun or not trigger or draw(st.booleans()) else " "
        close = f"({name})" if weight is None else f"({name}:{weight!r})"
        written.append(f"[{trigger}{bar}{noun}]{close}")
        if draw(st.booleans()):
            written.append(f"<lora:style {len(parts)}!:0.5>")
    parts.append(draw(words))
    written.append(parts[-1])
    return " ".join(written), parts


def spoken(parts, triggered):
    out = []
    for part in parts:
        if isinstance(part, tuple):
            trigger, noun, name, _ = part
            out.append(f"{trigger} {noun}" if trigger and name in triggered else noun)
        else:
            out.append(part)
    return " ".join(out)


@given(marked_prompts())
def test_prompts_built_from_parts_come_apart_again(built):
    source, parts = built
    parsed = parse_prompt(source)
    concepts = [part for part in parts if isinstance(part, tuple)]
    names = [name for _, _, name, _ in concepts]
    assert [(c.trigger, c.noun, c.name, c.weight) for c in parsed.concepts] == concepts
    assert len(parsed.styles) == source.count("<lora:")

    prompts = pass_prompts(parsed)
    assert len(prompts) == len(concepts) + 1
    shown = [(prompt, {name} & set(names)) for prompt, name in zip(prompts, ["", *names])]
    for prompt, triggered in [*shown, (full_prompt(parsed), set(names))]:
        assert prompt.text == spoken(parts, triggered)
        assert words_at(prompt, prompt.nouns) == {name: noun for _, noun, name, _ in concepts}
        assert words_at(prompt, prompt.triggers) == {
            name: trigger for trigger, _, name, _ in concepts if trigger and name in triggered
        }
        places = sorted(
            (s.start, s.end) for d in (prompt.nouns, prompt.triggers) for s in d.values()
        )
        assert all(left[1] < right[0] for left, right in pairwise(places))
    assert full_prompt(parsed).text == parsed.text


snippets = st.sampled_from(
    ["[", "]", "(", ")", "<", ">", "](", "|", "\\", ":", " ", "cat", "x", "0.5", "<lora:", "AND"]
)


def refusal(source: str) -> PromptSyntaxError | None:
    try:
        parse_prompt(source)
    except PromptSyntaxError as error:
        return error
    return None


@given(st.lists(snippets | st.text(max_size=3), max_size=15).map("".join))
@example("[cat](x) [cat](x)")
def test_garbage_is_parsed_or_refused_with_a_place(source):
    error = refusal(source)
    if error is not None:
        assert error.position is not None
        assert 0 <= error.position <= len(source)
        return
    parsed = parse_prompt(source)
    assert parsed.text.strip() == parsed.text != ""
    for prompt in pass_prompts(parsed):
        assert words_at(prompt, prompt.nouns) == {c.name: c.noun for c in parsed.concepts}


@given(st.text(min_size=1).filter(lambda text: text.strip() and not re.search("BREAK|AND", text)))
def test_any_text_can_be_written_with_backslashes(text):
    parsed = parse_prompt(re.sub(r"([\[\]()<>|\\])", r"\\\1", text))
    assert parsed.text == text.strip()
    assert parsed.concepts == parsed.styles == ()
