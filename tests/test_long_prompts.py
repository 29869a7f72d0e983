"""Weighted and long prompts, negative prompts of concepts, weights by part: on the tiny model."""

from contextlib import contextmanager

import pytest
import torch

from loraweave import compose
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.backbone.text import tokenized
from loraweave.denoise.composition import composition
from loraweave.lora.adapter import load_adapter
from loraweave.prompt import PassPrompt, Span
from loraweave.scene import Scene
from tiny import tiny_pipeline, two_loras

TWO = "a [sks cat](a) and a [zwx dog](b)"
LONG = " ".join(["red"] * 70)  # with TWO behind it more than 75 tokens


@pytest.fixture(scope="module")
def pipe():
    """As in a trained text encoder, the states have a mean; a fresh one's layer norm has none."""
    pipe = tiny_pipeline()
    norms = [m for n, m in pipe.text_encoder.named_modules() if n.endswith("final_layer_norm")]
    with torch.no_grad():
        norms[0].bias += 0.2
    return pipe


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    return two_loras(pipe, tmp_path_factory.mktemp("loras"))


@contextmanager
def composed(pipe, files, prompt, **fields):
    adapters = {
        name: load_adapter(name, path, unet=pipe.unet, text_encoder=pipe.text_encoder)
        for name, path in files.items()
    }
    with composition(Scene(prompt=prompt, **fields), StableDiffusion1(pipe), adapters) as made:
        yield made


def library_states(pipe, *texts):
    """What diffusers encodes: the reference for plain prompts."""
    ids = pipe.tokenizer(
        list(texts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0]


def test_a_plain_prompt_is_encoded_as_by_diffusers(pipe):
    texts = ["", "a sks cat, and a dog", " ".join(["cat"] * 75)]
    backbone = StableDiffusion1(pipe)
    with torch.no_grad():
        assert torch.equal(backbone.encode(texts), library_states(pipe, *texts))
        own = pipe.encode_prompt(texts[1], "cpu", 1, False)[0]
        assert torch.equal(backbone.encode([texts[1]]), own)


@torch.no_grad()
def test_chunks_are_encoded_one_by_one(pipe):
    words = ["cat"] * 75 + ["dog", "river"]
    found = StableDiffusion1(pipe).encode([" ".join(words), "a robot"])
    first = library_states(pipe, " ".join(words[:75]), "a robot")
    second = library_states(pipe, "dog river", "")
    assert torch.equal(found, torch.cat([first, second], 1))


@torch.no_grad()
def test_emphasis_of_one_word(pipe):
    backbone = StableDiffusion1(pipe)
    plain = backbone.encode(["a cat naps", "a dog"])
    prompt = PassPrompt("a cat naps", {}, {}, ((Span(2, 5), 1.5),))
    found = backbone.encode([prompt, "a dog"])
    (cat,) = backbone.token_positions("a cat naps", Span(2, 5))
    expected = plain[0].clone()
    expected[cat] *= 1.5
    expected *= plain[0].mean() / expected.mean()
    torch.testing.assert_close(found[0], expected)
    assert found[0].mean().item() == pytest.approx(plain[0].mean().item(), rel=1e-4)
    assert torch.equal(found[1], plain[1])


def test_all_passes_are_as_long_as_the_longest(pipe, files):
    with composed(pipe, files, f"{LONG} {TWO}", negative_prompt="(blurry:1.2)") as made:
        passes = [*made.passes(), made.merged_pass()]
        assert {p.states.shape for p in passes} == {(2, 154, 32)}
        for one in passes:
            joined = tokenized(pipe.tokenizer, one.text).ids(2).flatten().tolist()
            for name, noun in (("a", "cat"), ("b", "dog")):
                spoken = pipe.tokenizer.decode([joined[i] for i in one.words.nouns[name]])
                assert spoken.strip() == noun
        assert made.backbone.chunks(passes[0].text) == 1
        assert min(passes[3].words.of("b")) > 77


def test_a_long_negative_prompt_lengthens_all_passes(pipe, files):
    with composed(pipe, files, TWO, negative_prompts={"b": LONG + " and " + LONG}) as made:
        assert {p.states.shape for p in made.passes()} == {(2, 154, 32)}


def test_negative_prompt_of_a_concept_is_in_its_pass_alone(pipe, files):
    given = {"negative_prompt": "snow", "negative_prompts": {"b": "white fur"}}
    with composed(pipe, files, TWO, **given) as made:
        base, first, second = made.passes()
        merged = made.merged_pass()
    with composed(pipe, files, TWO, negative_prompt="snow") as made:
        plain = [*made.passes(), made.merged_pass()]
    with composed(pipe, files, TWO, negative_prompt="snow, white fur") as made:
        both = [*made.passes(), made.merged_pass()]
    for found, expected in zip((base, first, second, merged), (*plain[:2], both[2], both[3])):
        assert torch.equal(found.states, expected.states)
    assert not torch.equal(second.states[0], plain[2].states[0])


def test_weights_by_part_reach_their_part(pipe, files):
    prompt = "a [sks cat](a:{}) and a dog"
    with composed(pipe, {"a": files["a"]}, prompt.format("0.8:0.3")) as made:
        found = made.passes()[1]
    with composed(pipe, {"a": files["a"]}, prompt.format("0.3")) as made:
        text = made.passes()[1]
    with composed(pipe, {"a": files["a"]}, prompt.format("0.8")) as made:
        unet = made.passes()[1]
    assert torch.equal(found.states, text.states)
    assert not torch.equal(found.states, unet.states)
    assert [(a.name, w) for a, w in found.adapters] == [("a", 0.8)]
    assert [(a.name, w) for a, w in unet.adapters] == [("a", 0.8)]


def test_style_weights_by_part(pipe, files):
    with composed(pipe, {"a": files["a"]}, "a cat <lora:a:0.8:0>") as made:
        (only,) = made.passes()
    assert torch.equal(only.states, library_states(pipe, "", "a cat"))
    assert [w for _, w in only.adapters] == [0.8]


@pytest.mark.parametrize("method", ["clora", "merge"])
def test_a_long_weighted_prompt_is_drawn(pipe, files, method):
    given = {"loras": files, "method": method, "num_inference_steps": 1, "output_type": "np"}
    if method == "clora":
        given["settings"] = {"refinements": 1}
    out = compose(pipe, f"({LONG}:1.2) {TWO}", **given, progress=False)
    assert out.maps[0].shape == (1, 2, 16, 16)
    other = compose(pipe, f"{LONG} {TWO}", **given, progress=False)
    assert (out.images != other.images).any()
