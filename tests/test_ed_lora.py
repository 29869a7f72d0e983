"""ED-LoRA: a token has a vector for each cross-attention layer, and each layer reads its own."""

import json

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import loraweave
from formats import deltas, values, write
from loraweave.backbone.by_layer import text_by_layer
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.backbone.text import emphasised
from loraweave.backbone.tokens import joint_embeddings
from loraweave.cli import app
from loraweave.denoise.confined import Confined
from loraweave.detect import SEGMENTERS
from loraweave.detect.registry import Entry
from loraweave.errors import BaseModelMismatch, LoraError, UnsupportedLoraFormat
from loraweave.lora import inspect_lora, load_adapter, plain_modules
from loraweave.lora.convert import convert_lora
from loraweave.lora.skeleton import Skeleton, sd1_skeleton
from loraweave.prompt import PassPrompt, Span
from prepared import engine
from test_methods import QUICK
from tiny import random_ed_lora, random_lora, tiny_pipeline

LAYERS = 4  # of the tiny base: down, middle, up, up
PROMPT = r"a [\<c1\> \<c2\>](a) and a [zwx dog](b) in the meadow"
T = torch.tensor(601)


def load(pipe, source, **options):
    return load_adapter("x", source, unet=pipe.unet, text_encoder=pipe.text_encoder, **options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An ED-LoRA `a` and an ordinary LoRA `b`."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("ed")
    return {
        "a": random_ed_lora(pipe, folder / "a.safetensors"),
        "b": random_lora(pipe, folder / "b.safetensors", seed=2, text_encoder=True),
    }


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["ED-LoRA main", "ED-LoRA research"])
@pytest.mark.parametrize("part", ["new_concept_embedding", "new_concept_token"])
def test_both_dialects_as_pickle_and_flat(pipe, tmp_path, kind, part):
    made = values(pipe)
    path = write(kind, made, pipe, tmp_path)
    state = torch.load(path, weights_only=True)
    params = state.get("params", state)
    own = {"<c1>": randn(LAYERS, 32), "<c2>": randn(LAYERS, 32, seed=1)}
    params[part] = own
    torch.save(state, path)
    with pytest.raises(UnsupportedLoraFormat, match=r"--allow-pickle"):
        load(pipe, path)
    flat = {f"{p}.{key}": t for p, named in params.items() for key, t in named.items()}
    save_file(flat, tmp_path / "flat.safetensors")
    for source in (path, tmp_path / "flat.safetensors"):
        adapter = load(pipe, source, allow_pickle=True)
        assert list(adapter.layered) == list(adapter.tokens) == ["<c1>", "<c2>"]
        assert not adapter.embeddings
        assert not adapter.dropped
        for token, vectors in own.items():
            assert torch.equal(adapter.layered[token], vectors)
        for (component, place), delta in deltas(made).items():
            update = getattr(adapter, component)[place]
            torch.testing.assert_close(update.scale * update.weight(), delta)
        report = inspect_lora(source, True, Skeleton(pipe.unet, pipe.text_encoder))
        assert (report.format, report.supported, report.refused) == ("ED-LoRA", True, None)
        assert report.triggers[:2] == ["<c1>", "<c2>"]
        assert report.tensors_landed == report.tensors_total


def test_one_row_is_an_ordinary_embedding(pipe, tmp_path):
    path = random_ed_lora(pipe, tmp_path / "a.safetensors")
    tensors = {k: t[:1] if "concept" in k else t for k, t in load_file(path).items()}
    adapter = load(pipe, tensors)
    assert not adapter.layered
    assert {t: tuple(v.shape) for t, v in adapter.embeddings.items()} == {
        "<c1>": (1, 32), "<c2>": (1, 32),
    }  # fmt: skip


def test_of_stable_diffusion(tmp_path):
    """Sixteen layers of width 768; a file for the miniature's seven has no place there."""
    unet, text_encoder = sd1_skeleton()
    made = {f"new_concept_embedding.<c{n}>": randn(16, 768) for n in (1, 2)}
    adapter = load_adapter("x", made, unet=unet, text_encoder=text_encoder)
    assert adapter.layered["<c2>"].shape == (16, 768)
    seven = {"new_concept_embedding.<c1>": randn(7, 768)}
    with pytest.raises(BaseModelMismatch, match=r"7 embeddings .* <c1>.* has 16 such layers.* Use"):
        load_adapter("x", seven, unet=unet, text_encoder=text_encoder, allow_partial=True)


def test_what_does_not_fit_is_refused(pipe):
    with pytest.raises(BaseModelMismatch, match=r"16 embeddings for the token <c1>.* has 4"):
        load(pipe, {"new_concept_embedding.<c1>": randn(16, 32)})
    with pytest.raises(BaseModelMismatch, match="was made for"):
        load(pipe, {"new_concept_embedding.<c1>": randn(LAYERS, 64)})
    with pytest.raises(UnsupportedLoraFormat, match="two embeddings for the token <c1>"):
        load(pipe, {"new_concept_embedding.<c1>": randn(LAYERS, 32), "<c1>": randn(1, 32)})
    with pytest.raises(UnsupportedLoraFormat, match="not finite"):
        load(pipe, {"new_concept_embedding.<c1>": torch.full((LAYERS, 32), torch.inf)})


@pytest.mark.parametrize("target", ["kohya", "diffusers", "peft"])
def test_converted_files_keep_their_tokens(pipe, files, tmp_path, target):
    adapter = load(pipe, files["a"])
    out = tmp_path / ("new" if target == "peft" else "new.safetensors")
    report = convert_lora(adapter, out, target, tokens={"<c1>": "<c2>", "<c2>": "<c1>"})
    assert report.tokens == ["<c2>", "<c1>"]
    again = load(pipe, out)
    assert torch.equal(again.layered["<c2>"], adapter.layered["<c1>"])
    assert torch.equal(again.layered["<c1>"], adapter.layered["<c2>"])
    assert again.unet.keys() == adapter.unet.keys()
    with pytest.raises(LoraError, match=r"no token '<c3>'; it has: <c1>, <c2>"):
        convert_lora(adapter, tmp_path / "x.safetensors", "kohya", tokens={"<c3>": "<c4>"})


def test_a_trigger_in_the_metadata_is_renamed_too(pipe, files, tmp_path):
    adapter = load(pipe, files["a"])
    adapter.metadata["loraweave.trigger"] = "<c1> <c2>"
    out = tmp_path / "new.safetensors"
    convert_lora(adapter, out, "kohya", tokens={"<c1>": "<c2>", "<c2>": "<d>"})
    assert load(pipe, out).metadata["loraweave.trigger"] == "<c2> <d>"


def test_tokens_cannot_be_merged_into_one_file(tmp_path, base_folder, files):
    out = tmp_path / "both.safetensors"
    given = [str(files["a"]), str(files["b"]), "--base", str(base_folder), "-o", str(out)]
    result = CliRunner().invoke(app, ["merge", *given])
    assert result.exit_code == 2
    assert "brings tokens of its own (<c1>, <c2>)" in " ".join(result.stderr.split())
    assert not out.exists()


def test_one_token_of_two_kinds(pipe, files):
    one, other = load(pipe, files["a"]), load(pipe, {"<c1>": randn(1, 32)})
    with pytest.raises(LoraError, match=r"'a' and 'b' both bring the token <c1>"):
        joint_embeddings({"a": one, "b": other}, pipe.tokenizer)


# ---------------------------------------------------------------- texts


def with_a_mean(pipe):
    """States of random weights have a mean of zero, which emphasis could not restore."""
    with torch.no_grad():
        pipe.text_encoder.get_submodule("final_layer_norm").bias += 0.5
    return pipe


def stock_states(text: str, vectors: dict[str, Tensor]) -> Tensor:
    """A text as diffusers encodes it with ordinary embeddings."""
    pipe = with_a_mean(tiny_pipeline())
    for token, vector in vectors.items():
        pipe.load_textual_inversion(vector, token=token)
    ids = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0]


@torch.no_grad()
def test_a_text_is_encoded_for_each_layer():
    backbone, plain = StableDiffusion1(with_a_mean(tiny_pipeline())), randn(2, 32, seed=7)
    own = {"<c1>": randn(LAYERS, 1, 32), "<c2>": randn(LAYERS, 1, 32, seed=1), "<toy>": plain}
    text = "a <C1> <c2> in the meadow, a <toy>"
    with backbone.tokens(own):
        found = backbone.encode([text, "a cat"])
        spans = {word: Span(at := text.index(word), at + len(word)) for word in ("<C1>", "<toy>")}
        positions = {word: backbone.token_positions(text, span) for word, span in spans.items()}
        twice = backbone.encode([text, text], chunks=2)
        weighted = backbone.encode([PassPrompt(text, {}, {}, ((Span(2, 6), 1.4),))])
    assert found.shape == (2, 77, LAYERS * 32)
    assert positions["<C1>"] == [2]
    assert len(positions["<toy>"]) == 2
    weights = torch.ones(1, 77)
    weights[0, 2] = 1.4
    for n, states in enumerate(found.chunk(LAYERS, -1)):
        vectors = {token: v[n, 0] if v.ndim == 3 else v for token, v in own.items()}
        stock = text.replace("<toy>", "<toy> <toy>_1")  # as diffusers writes several vectors
        expected = stock_states(stock, vectors)
        torch.testing.assert_close(states[:1], expected)
        torch.testing.assert_close(states[1:], stock_states("a cat", {}))
        torch.testing.assert_close(weighted.chunk(LAYERS, -1)[n], emphasised(expected, weights))
    assert torch.equal(twice[:1, :77], found[:1])
    assert torch.equal(backbone.encode(["a cat"]), stock_states("a cat", {}))


@torch.no_grad()
def test_texts_without_the_tokens_are_encoded_once(pipe):
    backbone, calls = StableDiffusion1(pipe), []
    handle = pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    long = "a <c1> in the meadow" + ", two cats and three dogs by the river" * 12
    try:
        with backbone.tokens({"<c1>": randn(LAYERS, 1, 32), "<toy>": randn(1, 32)}):
            found = backbone.encode(["a <toy> cat", ""])
            assert len(calls) == 1
            assert torch.equal(found, found[..., :32].repeat(1, 1, LAYERS))
            calls.clear()
            chunks = backbone.chunks(long)
            assert chunks > 1
            assert backbone.encode([long]).shape == (1, 77 * chunks, LAYERS * 32)
            assert len(calls) == LAYERS + chunks - 1  # the token is in the first chunk
    finally:
        handle.remove()


def test_layers_count_as_the_forward_pass_meets_them(pipe):
    seen = []
    with text_by_layer(pipe.unet) as by_layer:
        for attn in by_layer.sites:
            attn.to_k.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        text = randn(1, 77, LAYERS * 32)
        with torch.no_grad():
            pipe.unet(randn(1, 4, 16, 16), T, text)
    try:
        assert len(seen) == LAYERS
        assert all(torch.equal(s, own) for s, own in zip(seen, text.chunk(LAYERS, -1)))
    finally:
        for attn in by_layer.sites:
            attn.to_k._forward_pre_hooks.clear()
    assert not any(m._forward_pre_hooks for m in pipe.unet.modules())


# ---------------------------------------------------------------- pictures


class Halves:
    """A segmenter that finds dogs in the right half and everything else in the left one."""

    def find(self, image, noun):
        mask = np.zeros((8, 8), dtype=bool)
        mask[:, slice(4, 8) if noun == "dog" else slice(0, 4)] = True
        return [mask]


def draw(pipe, files, method="merge", prompt=PROMPT, **changes):
    given = {"num_inference_steps": 2, "output_type": "latent", "settings": QUICK.get(method)}
    given |= {"generator": torch.Generator().manual_seed(4), "progress": False}
    return loraweave.compose(pipe, prompt, loras=files, method=method, **given | changes).images


@pytest.mark.parametrize("method", loraweave.METHODS)
def test_every_method_draws_with_it(files, tmp_path, monkeypatch, method):
    monkeypatch.setitem(SEGMENTERS, "halves", Entry(Halves))
    pipe = tiny_pipeline()
    drawn = draw(pipe, files, method)
    assert torch.isfinite(drawn).all()
    for model in (pipe.unet, pipe.text_encoder):
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    # Only the last layer's vector is another one, and the picture is.
    tensors = load_file(files["a"])
    tensors["new_concept_embedding.<c2>"][-1] *= -2
    save_file(tensors, tmp_path / "a.safetensors")
    other = draw(pipe, files | {"a": tmp_path / "a.safetensors"}, method)
    assert not torch.allclose(drawn, other, atol=1e-5)


class OwnText(AttnProcessor):
    """A layer that reads one of several texts, whatever it is given."""

    def __init__(self, text: Tensor):
        super().__init__()
        self.text = text

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        return super().__call__(attn, hidden_states, self.text, *args, **kwargs)


@torch.no_grad()
def reference(path, prompt: str, weight: float, steps: int, noise: Tensor) -> Tensor:
    """Denoising with one ED-LoRA, by hand: weights added, a text and a processor for each layer."""
    pipe = tiny_pipeline().to(torch.float64)
    tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
    for component in ("unet", "text_encoder"):
        for place, module in plain_modules(getattr(pipe, component)).items():
            down = tensors.get(f"{component}.{place}.lora_A.weight")
            if down is not None:
                up = tensors[f"{component}.{place}.lora_B.weight"]
                module.weight += weight * up @ down
    first = len(pipe.tokenizer)
    pipe.tokenizer.add_tokens(["<c1>", "<c2>"])
    pipe.text_encoder.resize_token_embeddings(first + 2)
    ids = pipe.tokenizer(["", prompt], padding="max_length", return_tensors="pt").input_ids
    blocks = [*pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks]
    layers = [m for block in blocks for m in block.modules()
              if isinstance(m, Attention) and m.is_cross_attention]  # fmt: skip
    for n, layer in enumerate(layers):
        for k in (1, 2):
            vector = tensors[f"new_concept_embedding.<c{k}>"][n]
            pipe.text_encoder.get_input_embeddings().weight[first + k - 1] = vector
        layer.processor = OwnText(pipe.text_encoder(ids)[0])
    pipe.scheduler.set_timesteps(steps)
    z = noise
    for t in pipe.scheduler.timesteps:
        none, text = pipe.unet(torch.cat([z, z]), t, randn(2, 77, 32).double()).sample.chunk(2)
        z = pipe.scheduler.step(none + 7.5 * (text - none), t, z).prev_sample
    return z


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_merge_draws_what_is_computed_by_hand(files, weight):
    pipe, noise = tiny_pipeline().to(torch.float64), randn(1, 4, 16, 16, seed=9).double()
    prompt = rf"a [\<c1\> \<c2\>](a:{weight}) in the meadow"
    found = draw(pipe, {"a": files["a"]}, prompt=prompt, latents=noise, guidance_scale=7.5,
                 num_inference_steps=4, generator=None)  # fmt: skip
    expected = reference(files["a"], "a <c1> <c2> in the meadow", weight, 4, noise)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_an_owner_of_the_whole_picture_works_as_its_own_pass(files, halves):
    double, z = tiny_pipeline().to(torch.float64), randn(2, 4, 16, 16, seed=3).double()
    with engine(double, files, PROMPT) as (executor, passes):
        confined = Confined(executor, passes)
        for k, one in enumerate(passes):
            masks = torch.zeros(1, len(passes), 16, 16, dtype=torch.float64)
            masks[:, k] = 1
            expected = executor.evaluate([one], z, T, halves=halves)
            found = confined.evaluate(masks, z, T, halves=halves, record=True)
            torch.testing.assert_close(found.noise, expected.noise, atol=1e-9, rtol=0)
            torch.testing.assert_close(found.maps[:, k], expected.maps[:, 0], atol=1e-9, rtol=0)


def test_a_text_encoder_of_another_lora_and_long_weighted_prompts(files):
    """What a prompt may have besides: emphasis, several chunks, the other LoRA's text encoder."""
    pipe = with_a_mean(tiny_pipeline())
    long = PROMPT.replace("meadow", "meadow" + ", (two birds:1.3) by the river" * 20)
    one = draw(pipe, files, prompt=long)
    assert torch.isfinite(one).all()
    less = draw(pipe, files, prompt=long.replace("(b)", "(b:1:0)"))
    assert not torch.allclose(one, less, atol=1e-5)
    plain = draw(pipe, files, prompt=long.replace("(two birds:1.3)", "two birds"))
    assert not torch.allclose(one, plain, atol=1e-5)


def test_a_noun_alone_gets_the_tokens_from_the_file(pipe, files, tmp_path):
    tensors = load_file(files["a"])
    save_file(tensors, tmp_path / "a.safetensors", {"loraweave.trigger": "<c1> <c2>"})
    given = {"a": tmp_path / "a.safetensors"}
    short = draw(pipe, given, prompt="a [cat](a) in the meadow")
    whole = draw(pipe, given, prompt=r"a [\<c1\> \<c2\> cat](a) in the meadow")
    assert torch.equal(short, whole)


def test_inspect_says_what_to_write(files, base_folder):
    result = CliRunner().invoke(
        app, ["inspect", str(files["a"]), "--base", str(base_folder), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["format"], report["supported"]) == ("ED-LoRA", True)
    assert report["triggers"] == ["<c1>", "<c2>"]
