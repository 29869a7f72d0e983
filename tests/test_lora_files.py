"""LoRA files: read, mapped onto a model, refused with a reason, written, inspected."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraweave import compose
from loraweave.errors import BaseModelMismatch, LoraError, UnsupportedLoraFormat
from loraweave.lora import (
    Adapter,
    LowRank,
    adapter_from_peft,
    inspect_lora,
    load_adapter,
    lora_metadata,
    plain_modules,
    read_lora,
    save_lora,
)
from tiny import random_lora, random_state, tiny_pipeline

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
TEXT_LAYER = "encoder.layers.0.self_attn"


@contextmanager
def applied(adapter: Adapter, pipe) -> Iterator[None]:
    """Add an adapter's residuals with forward hooks, as the engine does."""
    handles = []
    for model, updates in ((pipe.unet, adapter.unet), (pipe.text_encoder, adapter.text_encoder)):
        modules = plain_modules(model)
        for path, update in updates.items():

            def hook(module, args, output, update=update):
                return output + update.delta(args[0], module)

            handles.append(modules[path].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs(pipe) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn((2, 4, 16, 16), generator=generator)
    text = torch.randn((2, 77, 32), generator=generator)
    ids = pipe.tokenizer(["a sks cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.unet(noise, 500, text).sample, pipe.text_encoder(ids)[0]


def load(pipe, source, **options) -> Adapter:
    return load_adapter("x", source, unet=pipe.unet, text_encoder=pipe.text_encoder, **options)


def pair(width: int = 32, rank: int = 2) -> tuple[Tensor, Tensor]:
    return torch.full((rank, 32), 0.5), torch.full((width, rank), 0.25)


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
@pytest.mark.parametrize("text_encoder", [False, True])
@pytest.mark.parametrize("convolutions", [False, True])
def test_residuals_equal_the_stock_loader(tmp_path, kind, text_encoder, convolutions):
    pipe = tiny_pipeline()
    path = random_lora(
        pipe, tmp_path / "a.safetensors", kind, 4, 2.0, text_encoder, convolutions=convolutions
    )
    base = outputs(pipe)
    adapter = load(pipe, path)
    with applied(adapter, pipe):
        ours = outputs(pipe)
    assert all(torch.equal(a, b) for a, b in zip(outputs(pipe), base, strict=True))
    pipe.load_lora_weights(path, adapter_name="stock")
    stock = outputs(pipe)
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)
    assert (ours[0] - base[0]).abs().max() > 1e-2
    assert bool((ours[1] - base[1]).abs().max() > 1e-2) == text_encoder
    assert {update.scale for update in adapter.unet.values()} == {0.5}


def test_a_wrapped_model_is_read_under_its_plain_names(tmp_path):
    pipe = tiny_pipeline()
    first = random_lora(pipe, tmp_path / "a.safetensors", "kohya", text_encoder=True, seed=1)
    second = random_lora(pipe, tmp_path / "b.safetensors", "diffusers", text_encoder=True, seed=2)
    before, modules = load(pipe, second), plain_modules(pipe.unet)
    pipe.load_lora_weights(first, adapter_name="first")
    after = load(pipe, second)
    assert plain_modules(pipe.unet) == modules  # the very same objects
    assert after.unet.keys() == before.unet.keys()
    assert after.text_encoder.keys() == before.text_encoder.keys()

    file, wrapped = load(pipe, first), adapter_from_peft("first", pipe.unet, pipe.text_encoder)
    for ours, theirs in ((file.unet, wrapped.unet), (file.text_encoder, wrapped.text_encoder)):
        assert ours.keys() == theirs.keys()
        for path, update in ours.items():
            torch.testing.assert_close(update.weight(), theirs[path].weight())
            assert not theirs[path].down.requires_grad
    pipe.set_adapters(["first"], [0.5])
    assert adapter_from_peft("first", pipe.unet, pipe.text_encoder).unet[
        f"{BLOCK}.attn1.to_q"
    ].scale == pytest.approx(0.25)
    with pytest.raises(LoraError, match="no adapter 'third'; loaded are: first"):
        adapter_from_peft("third", pipe.unet, pipe.text_encoder)


@pytest.mark.parametrize(
    ("down", "up", "component", "path"),
    [
        (
            f"lora_unet_{BLOCK}.attn1.to_k".replace(".", "_") + ".lora_down.weight",
            f"lora_unet_{BLOCK}.attn1.to_k".replace(".", "_") + ".lora_up.weight",
            "unet",
            f"{BLOCK}.attn1.to_k",
        ),
        (
            f"lora_unet_unet_{BLOCK}.attn1.to_out".replace(".", "_") + "_lora_down.weight",
            f"lora_unet_unet_{BLOCK}.attn1.to_out".replace(".", "_") + "_lora_up.weight",
            "unet",
            f"{BLOCK}.attn1.to_out.0",
        ),
        *(
            (f"{prefix}{old}.{down}", f"{prefix}{old}.{up}", "unet", f"{BLOCK}.attn1.{new}")
            for prefix, old, new, down, up in [
                ("unet.", f"{BLOCK}.attn1.to_k", "to_k", "lora.down.weight", "lora.up.weight"),
                ("unet.", f"{BLOCK}.attn1.to_k", "to_k", "lora_A.weight", "lora_B.weight"),
                ("", f"{BLOCK}.attn1.to_out.0", "to_out.0", "lora_A.weight", "lora_B.weight"),
                (
                    "base_model.model.",
                    f"{BLOCK}.attn1.to_v",
                    "to_v",
                    "lora_A.default.weight",
                    "lora_B.default.weight",
                ),
            ]
        ),
        *(
            (
                f"{prefix}{BLOCK}.attn1.processor.to_{name}_lora.down.weight",
                f"{prefix}{BLOCK}.attn1.processor.to_{name}_lora.up.weight",
                "unet",
                f"{BLOCK}.attn1.to_{new}",
            )
            for prefix in ("", "unet.")
            for name, new in (("q", "q"), ("out", "out.0"))
        ),
        *(
            (f"{old}.{down}", f"{old}.{up}", "text_encoder", f"{TEXT_LAYER}.q_proj")
            for old, down, up in [
                (f"text_encoder.{TEXT_LAYER}.q_proj", "lora.down.weight", "lora.up.weight"),
                (f"text_encoder.text_model.{TEXT_LAYER}.q_proj", "lora_A.weight", "lora_B.weight"),
                (
                    f"text_encoder.text_model.{TEXT_LAYER}.q_proj",
                    "lora_linear_layer.down.weight",
                    "lora_linear_layer.up.weight",
                ),
                (
                    f"text_encoder.text_model.{TEXT_LAYER}",
                    "to_q_lora.down.weight",
                    "to_q_lora.up.weight",
                ),
                (f"base_model.model.text_model.{TEXT_LAYER}.q_proj",
                 "lora_A.weight", "lora_B.weight"),
                (f"{TEXT_LAYER}.q_proj", "lora_A.weight", "lora_B.weight"),
                (
                    f"lora_te_text_model_{TEXT_LAYER}.q_proj".replace(".", "_"),
                    "lora_down.weight",
                    "lora_up.weight",
                ),
            ]
        ),
    ],
)  # fmt: skip
def test_every_spelling_finds_its_module(pipe, down, up, component, path):
    tensors = dict(zip((down, up), pair(), strict=True))
    adapter = load(pipe, tensors)
    assert list(getattr(adapter, component)) == [path]
    assert len(adapter.unet) + len(adapter.text_encoder) == 1
    assert getattr(adapter, component)[path].scale == 1.0  # no alpha means alpha = rank


def bare(**more: Tensor) -> dict[str, Tensor]:
    down, up = pair()
    name = f"{BLOCK}.attn1.to_q"
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, **more}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 16}, 8.0),
        ({"lora_alpha": 16, "alpha_pattern": {"attn1.to_q": 4}}, 2.0),
        ({"lora_alpha": 16, "alpha_pattern": {"^attn1.to_q": 4, "to_k": 1}}, 8.0),
        ({"lora_alpha": 16, "use_rslora": True}, 16 / 2**0.5),
        ({"unet.lora_alpha": 6, "text_encoder.lora_alpha": 2}, 3.0),
        ({"r": 2}, 1.0),
    ],
)
def test_alpha_outside_the_tensors(pipe, tmp_path, config, scale):
    header = tmp_path / "header.safetensors"
    save_file(bare(), header, {"lora_adapter_metadata": json.dumps(config)})
    assert load(pipe, header).unet[f"{BLOCK}.attn1.to_q"].scale == pytest.approx(scale)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(bare(), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for source in (folder, folder / "adapter_model.safetensors"):
        assert load(pipe, source).unet[f"{BLOCK}.attn1.to_q"].scale == pytest.approx(scale)


def test_alpha_in_the_tensors_wins(pipe, tmp_path):
    path = tmp_path / "a.safetensors"
    alpha = {f"{BLOCK}.attn1.to_q.alpha": torch.tensor(1.0)}
    save_file(bare(**alpha), path, {"lora_adapter_metadata": '{"lora_alpha": 16}'})
    assert load(pipe, path).unet[f"{BLOCK}.attn1.to_q"].scale == 0.5


def test_peft_folder_lands_whole(pipe, tmp_path):
    folder = random_lora(pipe, tmp_path / "peft", "peft", text_encoder=True, convolutions=True)
    file = random_lora(pipe, tmp_path / "a.safetensors", text_encoder=True, convolutions=True)
    ours, theirs = load(pipe, folder), load(pipe, file)
    assert ours.unet.keys() == theirs.unet.keys()
    assert ours.text_encoder.keys() == theirs.text_encoder.keys()
    for path, update in ours.unet.items():
        torch.testing.assert_close(update.weight(), theirs.unet[path].weight())


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 5),
        nn.Conv2d(6, 5, 1),
        nn.Conv2d(6, 5, 3, padding=1),
        nn.Conv2d(6, 5, 3, stride=2, padding=1, dilation=2),
    ],
)
def test_delta_is_what_the_changed_weight_adds(module):
    generator = torch.Generator().manual_seed(0)
    kernel = module.weight.shape[2:]
    update = LowRank(
        torch.randn((2, 6, *kernel), generator=generator),
        torch.randn((5, 2, *(1 for _ in kernel)), generator=generator),
        0.7,
    )
    x = torch.randn((3, 6, 9, 9) if kernel else (3, 7, 6), generator=generator)
    with torch.no_grad():
        plain = module(x)
        assert update.weight().shape == module.weight.shape
        module.weight += update.weight()
        torch.testing.assert_close(plain + update.delta(x, module), module(x))


def test_flat_1x1_convolutions_and_square_linears_are_accepted(pipe):
    name = "down_blocks.0.attentions.0.proj_in"
    down, up = torch.ones(2, 32), torch.ones(32, 2)
    flat = load(pipe, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    assert flat.unet[name].down.shape == (2, 32, 1, 1)
    name = f"{BLOCK}.attn1.to_q"
    square = {f"{name}.lora_A.weight": down[..., None, None],
              f"{name}.lora_B.weight": up[..., None, None]}  # fmt: skip
    assert load(pipe, square).unet[name].up.shape == (32, 2)


def test_to_copies_in_another_type(pipe, tmp_path):
    adapter = load(pipe, random_lora(pipe, tmp_path / "a.safetensors", text_encoder=True))
    assert next(iter(adapter.unet.values())).down.dtype == torch.float32  # the model's, not fp16
    half = adapter.to(dtype=torch.float16)
    assert {u.up.dtype for u in [*half.unet.values(), *half.text_encoder.values()]} == {
        torch.float16
    }
    assert (half.name, half.sha256) == (adapter.name, adapter.sha256)


# ---------------------------------------------------------------- files that are refused


def test_missing_things(tmp_path, pipe):
    with pytest.raises(LoraError, match="No LoRA file"):
        read_lora(tmp_path / "none.safetensors")
    with pytest.raises(LoraError, match="holds no adapter"):
        read_lora(tmp_path)
    with pytest.raises(UnsupportedLoraFormat, match="empty"):
        load(pipe, {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a safetensors"),
        (b"hello, this is a text file", "not a safetensors"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(40), "pickle or zip"),
        ((16).to_bytes(8, "little") + b"{not json at all", "not a safetensors"),
        ((4).to_bytes(8, "little") + b"[[]]", "not a safetensors"),
        ((900).to_bytes(8, "little") + b'{"a": 1', "truncated upload"),
        ((2).to_bytes(8, "little") + b"{}", "no tensors"),
    ],
)
def test_not_safetensors(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UnsupportedLoraFormat, match=reason):
        read_lora(path)


def test_wrong_length(tmp_path, pipe):
    whole = random_lora(pipe, tmp_path / "a.safetensors").read_bytes()
    path = tmp_path / "b.safetensors"
    path.write_bytes(whole[:-1000])
    with pytest.raises(UnsupportedLoraFormat, match=f"truncated upload.*{len(whole)}"):
        read_lora(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(UnsupportedLoraFormat, match="accounts for"):
        read_lora(path)


def test_lying_header(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UnsupportedLoraFormat, match="damaged"):
        read_lora(path)


def test_pickle_only_on_request_and_weights_only(tmp_path, pipe):
    path = tmp_path / "a.bin"
    torch.save({"state_dict": bare()}, path)
    with pytest.raises(UnsupportedLoraFormat, match="allow_pickle=True"):
        load(pipe, path)
    assert len(load(pipe, path, allow_pickle=True).unet) == 1
    torch.save({"model": nn.Linear(2, 2)}, path)
    with pytest.raises(UnsupportedLoraFormat, match="plain weights"):
        load(pipe, path, allow_pickle=True)
    torch.save({"state_dict": {"step": 3, "model": bare()}}, path)
    with pytest.raises(UnsupportedLoraFormat, match="something else than named tensors"):
        load(pipe, path, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lora_unet_x_to_k.on_input", "IA3"),
        ("lora_unet_x_to_k.diff", "full weight"),
        ("lora_unet_x_to_k.oft_blocks", "OFT"),
    ],
)
def test_other_kinds_are_named(pipe, tmp_path, name, kind):
    with pytest.raises(UnsupportedLoraFormat, match=f"not supported: 1 of its 3.*{kind}"):
        load(pipe, bare(**{name: torch.ones(2, 2)}))
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(2, 2)}, path)
    report = inspect_lora(path)
    assert kind in report.kind
    assert not report.supported


def test_every_tensor_is_accounted_for(pipe):
    with pytest.raises(UnsupportedLoraFormat, match="not a LoRA: none of its 2 tensors"):
        load(pipe, {"conv1.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)})
    with pytest.raises(UnsupportedLoraFormat, match=r"1 tensors besides.*optimizer\.step"):
        load(pipe, bare(**{"optimizer.step": torch.ones(1)}))
    extra = {"down_blocks.7.attn1.to_q.lora_A.weight": torch.ones(2, 32)}
    with pytest.raises(UnsupportedLoraFormat, match=r"1 of 3 tensors name modules.*down_blocks\.7"):
        load(pipe, bare(**extra))
    name = f"{BLOCK}.attn1.to_q"
    with pytest.raises(UnsupportedLoraFormat, match="two tensors for the down part"):
        load(pipe, bare(**{f"unet.{name}.lora.down.weight": torch.ones(2, 32)}))
    with pytest.raises(UnsupportedLoraFormat, match="has down without up"):
        load(pipe, {f"{name}.lora_A.weight": torch.ones(2, 32)})
    with pytest.raises(UnsupportedLoraFormat, match="not a single number"):
        load(pipe, bare(**{f"{name}.alpha": torch.ones(3)}))
    with pytest.raises(UnsupportedLoraFormat, match="not finite"):
        load(pipe, bare(**{f"{name}.lora_A.weight": torch.full((2, 32), float("nan"))}))


@pytest.mark.parametrize(
    ("width", "base"),
    [
        (768, "Stable Diffusion 1.x"),
        (1024, "Stable Diffusion 2.x"),
        (2048, "Stable Diffusion XL"),
        (128, "miniature"),
    ],
)
def test_another_base_is_named(pipe, width, base):
    name = f"{BLOCK}.attn2.to_k"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(2, width),
        f"{name}.lora_B.weight": torch.ones(32, 2),
    }
    with pytest.raises(BaseModelMismatch, match=rf"made for .*{base}.*loaded base is .*32"):
        load(pipe, tensors)
    kohya = {f"lora_unet_input_blocks_4_1_transformer_blocks_9_attn2_to_k.{half}": tensor
             for half, tensor in zip(("lora_down.weight", "lora_up.weight"), tensors.values(),
                                     strict=True)}  # fmt: skip
    with pytest.raises(BaseModelMismatch, match=base):
        load(pipe, kohya)


def test_other_mismatches(pipe):
    text = f"text_encoder.{TEXT_LAYER}.q_proj"
    with pytest.raises(BaseModelMismatch, match="text encoder width 768"):
        load(pipe, {f"{text}.lora_A.weight": torch.ones(2, 768),
                    f"{text}.lora_B.weight": torch.ones(768, 2)})  # fmt: skip
    with pytest.raises(BaseModelMismatch, match="several text encoders"):
        load(pipe, {"lora_te2_text_model_x.lora_down.weight": torch.ones(2, 32)})
    with pytest.raises(BaseModelMismatch, match="diffusion transformer"):
        load(pipe, {"transformer.blocks.0.to_q.lora_A.weight": torch.ones(2, 32)})
    with pytest.raises(BaseModelMismatch, match="No module fits"):
        load(pipe, {"model.layers.0.mlp.lora_A.weight": torch.ones(2, 32)})
    name = f"{BLOCK}.attn1.to_q"
    with pytest.raises(BaseModelMismatch, match=r"\(2, 640\).*needs \(rank, 32\)"):
        load(pipe, {f"{name}.lora_A.weight": torch.ones(2, 640),
                    f"{name}.lora_B.weight": torch.ones(32, 2)})  # fmt: skip


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{broken", "not valid JSON"),
        ("[]", "not a PEFT configuration"),
        ('{"peft_type": "LOHA"}', "LOHA adapter"),
        ('{"use_dora": true}', "DORA adapter"),
        ('{"lora_alpha": "many"}', "not a number"),
        ('{"lora_alpha": 1, "alpha_pattern": {"(a+)+": 1}}', "not a module name"),
    ],
)
def test_bad_configurations(pipe, tmp_path, config, reason):
    save_file(bare(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(UnsupportedLoraFormat, match=reason):
        load(pipe, tmp_path)


# ---------------------------------------------------------------- writing and inspecting


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_save_and_load(pipe, tmp_path, format):
    generator = torch.Generator().manual_seed(3)
    unet = random_state(pipe.unet, 4, generator, convolutions=True)
    text = random_state(pipe.text_encoder, 4, generator)
    metadata = lora_metadata(
        title="cat", trigger_phrase="sks cat", resolution=(32, 32), learning_rate=1e-4, images=3,
        steps=10, tag_frequency={"3_sks cat": {"a sks cat": 2, "night": 1}}, date="2026-01-02",
    )  # fmt: skip
    paths = [tmp_path / "new" / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        save_lora(path, unet, text, rank=4, alpha=8, metadata=metadata, format=format)
    assert sorted(paths[0].parent.iterdir()) == paths  # no temporary file stays
    assert paths[0].read_bytes() == paths[1].read_bytes()
    adapter = load(pipe, paths[0])
    assert len(adapter.unet) * 2 == len(unet)
    assert len(adapter.text_encoder) * 2 == len(text)
    for path, update in {**adapter.unet, **adapter.text_encoder}.items():
        state = unet if path in adapter.unet else text
        assert update.scale == 2.0
        assert torch.equal(update.down, state[f"{path}.lora_A.weight"])
        assert torch.equal(update.up, state[f"{path}.lora_B.weight"])
    assert adapter.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert {t.dtype for t in load_file(paths[0]).values()} == {torch.float16}

    report = inspect_lora(paths[0])
    assert report.kind == format
    assert report.supported
    assert (report.ranks, report.alphas, report.dtypes) == ([4], [8.0], ["float16"])
    assert report.components == {"text_encoder": 8, "unet": len(unet) // 2}
    assert report.trigger_words == ["sks cat", "a sks cat", "night"]
    assert (report.title, report.sha256) == ("cat", adapter.sha256)
    assert "text width 32" in report.base


def test_save_refuses(pipe, tmp_path):
    state = random_state(pipe.unet, 2, torch.Generator())
    with pytest.raises(LoraError, match=r"\.safetensors"):
        save_lora(tmp_path / "a.bin", state, rank=2, alpha=2)
    with pytest.raises(LoraError, match="nothing to save"):
        save_lora(tmp_path / "a.safetensors", {}, rank=2, alpha=2)
    with pytest.raises(LoraError, match="not the name of a PEFT"):
        save_lora(tmp_path / "a.safetensors", {"x.weight": torch.ones(1)}, rank=2, alpha=2)
    with pytest.raises(LoraError, match="Unknown LoRA format"):
        save_lora(tmp_path / "a.safetensors", state, rank=2, alpha=2, format="x")  # type: ignore
    big = {name: tensor * 1e8 for name, tensor in state.items()}
    with pytest.raises(LoraError, match="float16 cannot hold"):
        save_lora(tmp_path / "a.safetensors", big, rank=2, alpha=2)
    assert not list(tmp_path.iterdir())


def test_inspect_without_metadata(pipe, tmp_path):
    report = inspect_lora(random_lora(pipe, tmp_path / "peft", "peft", rank=3, alpha=6.0))
    assert (report.kind, report.ranks, report.alphas) == ("PEFT", [3], [6.0])
    assert (report.trigger_words, report.title) == ([], None)
    path = tmp_path / "a.safetensors"
    save_file({"fc.weight": torch.ones(2, 2)}, path, {"ss_tag_frequency": "{broken"})
    report = inspect_lora(path)
    assert (report.kind, report.base, report.supported) == ("unknown", "unknown", False)
    assert Path(report.file_name) == Path("a.safetensors")


def test_8_bit_floats(pipe, tmp_path):
    exact = load_file(random_lora(pipe, tmp_path / "exact.safetensors"))
    few = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in exact.items()}
    save_file(few, tmp_path / "few.safetensors")
    save_file({key: tensor.float() for key, tensor in few.items()}, tmp_path / "same.safetensors")
    found = [
        compose(
            pipe, "a [x cat](a)", loras={"a": tmp_path / name}, num_inference_steps=1,
            method="merge", output_type="latent", progress=False,
        ).images for name in ("few.safetensors", "same.safetensors", "exact.safetensors")
    ]  # fmt: skip
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
