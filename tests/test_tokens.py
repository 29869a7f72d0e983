"""Tokens that a LoRA file brings: known during a run as the stock loader's, gone after it."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import loraweave
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.backbone.text import token_positions
from loraweave.backbone.tokens import joint_embeddings
from loraweave.errors import LoraError
from loraweave.lora import load_adapter
from loraweave.prompt import Span
from tiny import random_lora, tiny_pipeline

RUN = {"method": "merge", "num_inference_steps": 2, "output_type": "pt", "progress": False}


def vectors(n: int, seed: int = 0) -> Tensor:
    return torch.randn((n, 32), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pipe():
    return tiny_pipeline()


def state(pipe):
    table = pipe.text_encoder.get_input_embeddings()
    return (
        pipe.tokenizer, len(pipe.tokenizer), str(pipe.tokenizer.backend_tokenizer.normalizer),
        table, table.weight, table.weight.data_ptr(),
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.text_encoder.modules()),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 3])
def test_a_text_is_encoded_as_with_the_stock_loader(pipe, count):
    own = vectors(count)
    backbone, before = StableDiffusion1(pipe), state(pipe)
    text = "a <toy> in the meadow, a <toy>"
    plain = backbone.encode([text])
    with backbone.tokens({"<toy>": own}):
        found = backbone.encode([text])
        positions = backbone.token_positions(text, Span(2, 7))
    assert state(pipe) == before
    assert torch.equal(backbone.encode([text]), plain)
    assert positions == list(range(2, 2 + count))

    stock = tiny_pipeline()
    stock.load_textual_inversion({"<toy>": own if count > 1 else own[0]}, token="<toy>")
    converted = stock.maybe_convert_prompt(text, stock.tokenizer)
    ids = stock.tokenizer(converted, padding="max_length", return_tensors="pt").input_ids
    torch.testing.assert_close(found, stock.text_encoder(ids)[0])
    assert (found - plain).abs().max() > 0.1


def test_where_a_token_is_and_is_not(pipe):
    backbone = StableDiffusion1(pipe)
    given = {"<s1>": vectors(1), "<s1>-big": vectors(2, 1), "wolf": vectors(1, 2)}
    with backbone.tokens(given):
        tokenizer = backbone.tokenizer
        base = len(pipe.tokenizer)

        def own(text: str) -> list[int]:
            return [i - base for i in tokenizer(text).input_ids if i >= base]

        assert own("a <s1> cat") == [0]
        assert own("x<S1>dog <s1><s1>") == [0, 0, 0]
        assert own("a <s1>-big cat") == [1, 2]
        assert own("Wolf, werewolf and wolfs") == [3]
        assert own("a cat") == []
        assert token_positions(tokenizer, "a <s1>-big cat", Span(11, 14)) == [4]
    assert backbone.tokenizer is pipe.tokenizer


def test_back_after_an_error(pipe):
    backbone, before = StableDiffusion1(pipe), state(pipe)
    with pytest.raises(ValueError, match="stop"), backbone.tokens({"<toy>": vectors(1)}):
        raise ValueError("stop")
    assert state(pipe) == before
    assert backbone.tokenizer is pipe.tokenizer


def lora_with_token(pipe, path, token: str, seed: int):
    random_lora(pipe, path, seed=seed)
    save_file({**load_file(path), token: vectors(1, seed)}, path)
    return path


def test_a_lora_draws_with_its_token(pipe, tmp_path):
    path = lora_with_token(pipe, tmp_path / "a.safetensors", "<s1>", 3)
    before = state(pipe)
    prompt = r"a [\<s1\> cat](a) in the meadow"
    drawn = loraweave.compose(pipe, prompt, loras={"a": path}, **RUN).images
    assert state(pipe) == before
    again = loraweave.compose(pipe, prompt, loras={"a": path}, **RUN).images
    assert torch.equal(drawn, again)
    tensors = load_file(path)
    save_file({**tensors, "<s1>": -tensors["<s1>"]}, path)
    other = loraweave.compose(pipe, prompt, loras={"a": path}, **RUN).images
    assert not torch.allclose(drawn, other, atol=1e-4)


def test_a_textual_inversion_is_a_concept(pipe, tmp_path):
    path = tmp_path / "toy.safetensors"
    save_file({"<toy>": vectors(2)[0]}, path)
    loraweave.compose(pipe, r"a [\<toy\> cat](a)", loras={"a": path}, **RUN)
    with pytest.raises(LoraError, match=r"its token, which is not in the prompt.*\\<toy\\> noun"):
        loraweave.compose(pipe, "a [sks cat](a)", loras={"a": path}, **RUN)
    torch.save({"<toy>": vectors(1)[0]}, tmp_path / "toy.bin")
    prompt, pickled = r"a [\<toy\> cat](a)", {"a": tmp_path / "toy.bin"}
    with pytest.raises(LoraError, match="allow_pickle=True"):
        loraweave.compose(pipe, prompt, loras=pickled, **RUN)
    loraweave.compose(pipe, prompt, loras=pickled, allow_pickle=True, **RUN)


def test_a_part_of_a_file_is_used_on_request_and_recorded(pipe, tmp_path):
    path = lora_with_token(pipe, tmp_path / "a.safetensors", "optimizer.step", 3)
    with pytest.raises(LoraError, match="allow_partial=True"):
        loraweave.compose(pipe, "a [sks cat](a)", loras={"a": path}, **RUN)
    out = loraweave.compose(pipe, "a [sks cat](a)", loras={"a": path}, allow_partial=True, **RUN)
    assert out.info["loras"]["a"]["dropped"] == ["optimizer.step"]


def test_one_token_in_two_loras(pipe, tmp_path):
    adapters = {
        name: load_adapter(
            name, lora_with_token(pipe, tmp_path / f"{name}.safetensors", "<s1>", seed),
            unet=pipe.unet, text_encoder=pipe.text_encoder,
        )
        for seed, name in enumerate("ab")
    }  # fmt: skip
    with pytest.raises(LoraError, match=r"'a' and 'b' both bring the token <s1>.*convert"):
        joint_embeddings(adapters, pipe.tokenizer)
    same = {"a": adapters["a"], "copy": adapters["a"]}
    assert list(joint_embeddings(same, pipe.tokenizer)) == ["<s1>"]
    known = copy.deepcopy(pipe.tokenizer)
    known.add_tokens(["<s1>"])
    with pytest.raises(LoraError, match="has already"):
        joint_embeddings({"a": adapters["a"]}, known)
