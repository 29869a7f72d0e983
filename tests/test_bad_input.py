"""Wrong input of the public calls: the exact kind of error, and a message that says what was found.

And nothing is drawn or left behind.
"""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

import loraweave
from loraweave import (
    BaseModelMismatch,
    LoraError,
    MethodError,
    ModelNotFound,
    PromptSyntaxError,
    RegionError,
    SceneError,
    UnsupportedLoraFormat,
)
from tiny import random_lora, tiny_pipeline

ONE = "a [sks cat](a) in the meadow"


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()

    def never(*_):
        raise AssertionError("the denoiser was called")

    pipe.unet.conv_in.register_forward_pre_hook(never)
    return pipe


@pytest.fixture(scope="module")
def file(pipe, tmp_path_factory):
    return random_lora(pipe, tmp_path_factory.mktemp("loras") / "a.safetensors", text_encoder=True)


@pytest.fixture
def refused(pipe, file):
    """`refused(kind, *words, **arguments)`: compose raises exactly `kind` naming all the words."""

    def check(kind, *words, prompt=ONE, **given):
        arguments = {"loras": {"a": file}, "num_inference_steps": 1, "progress": False}
        with pytest.raises(kind) as caught:
            loraweave.compose(pipe, prompt, **arguments | given)
        assert caught.type is kind
        message = str(caught.value)
        assert [word for word in words if word not in message] == [], message
        assert "Traceback" not in message
        assert not any(
            m._forward_hooks for part in (pipe.unet, pipe.text_encoder) for m in part.modules()
        )
        assert "_interrupt" not in vars(pipe)

    return check


# -- LoRAs -----------------------------------------------------------------------------------------


def test_a_lora_that_is_nowhere(refused, file):
    refused(LoraError, "'dog'", "loaded: a", prompt="a [zwx dog](dog) and a [sks cat](a)")
    refused(LoraError, "'cta'", "did you mean 'cat'", prompt="a [x](cta)", loras={"cat": file})
    refused(LoraError, "'a'", "loaded: none", loras={})


def test_a_file_that_is_missing(refused, tmp_path):
    refused(LoraError, "gone.safetensors", loras={"a": tmp_path / "gone.safetensors"})


def test_a_file_that_is_no_safetensors(refused, tmp_path):
    text = tmp_path / "text.safetensors"
    text.write_text("this is no LoRA")
    refused(UnsupportedLoraFormat, "text.safetensors", loras={"a": text})
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    refused(UnsupportedLoraFormat, "empty.safetensors", loras={"a": empty})
    pickle = tmp_path / "old.pt"
    torch.save({"x": torch.zeros(1)}, pickle)
    refused(UnsupportedLoraFormat, "old.pt", loras={"a": pickle})


def test_a_file_without_lora_tensors(refused, tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    refused(
        UnsupportedLoraFormat, "model.safetensors", "not a LoRA", "some.weight",
        loras={"a": tmp_path / "model.safetensors"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("width", "base"),
    [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "Stable Diffusion XL")],
)
def test_a_lora_of_another_base(refused, tmp_path, width, base):
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    path = tmp_path / "other.safetensors"
    save_file(
        {
            f"{key}.lora_down.weight": torch.ones(4, width),
            f"{key}.lora_up.weight": torch.ones(320, 4),
            f"{key}.alpha": torch.tensor(4.0),
        },
        path,
    )
    refused(BaseModelMismatch, "other.safetensors", base, "text width 32", loras={"a": path})


def test_a_lora_whose_shapes_do_not_fit(refused, file, tmp_path):
    tensors = load_file(file)
    key = next(k for k in tensors if "unet" in k and k.endswith("attn1_to_q.lora_up.weight"))
    tensors[key] = torch.ones(7, 4)
    save_file(tensors, tmp_path / "cut.safetensors")
    refused(
        BaseModelMismatch, "cut.safetensors", "(7, 4)", loras={"a": tmp_path / "cut.safetensors"}
    )


def test_a_lora_with_numbers_that_are_not_finite(refused, file, tmp_path):
    tensors = load_file(file)
    key = next(k for k in tensors if k.endswith("lora_up.weight"))
    tensors[key][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    refused(UnsupportedLoraFormat, "nan.safetensors", "not finite",
            loras={"a": tmp_path / "nan.safetensors"})  # fmt: skip


def test_a_lora_that_the_prompt_never_uses(refused, file):
    refused(LoraError, "'ink'", "never uses it", loras={"a": file, "ink": file})
    refused(LoraError, "'ink'", "never uses it", loras={"a": file, "ink": loraweave.LoraRef()})


def test_no_shipped_lora_of_that_name(refused):
    refused(LoraError, "'nobody'", loras={"a": "miniature:nobody"})


def test_weights_out_of_range(refused, file):
    refused(PromptSyntaxError, "'a'", "9", prompt="a [sks cat](a:9)")
    with pytest.raises(SceneError, match="weight"):
        loraweave.LoraRef(path=file, weight=9)


# -- the prompt ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a [](a) in the meadow", "no words"),
        ("a [sks|](a) in the meadow", "no class noun"),
        ("a [sks cat]() in the meadow", "no name"),
        ("a [sks cat](a", "')'"),
        ("a [sks cat] (a) in the meadow", "[trigger noun](name)"),
        ("a (cat:1.3x)", "'1.3x'"),
        ("a [sks cat](a) and a [zwx dog](a)", "two places"),
        ("a [sks cat](a) <lora:a:1>", "is a concept already"),
    ],
)
def test_markup(refused, prompt, found):
    refused(PromptSyntaxError, found, prompt=prompt)


def test_markup_of_the_negative_prompt(refused):
    refused(PromptSyntaxError, "in the negative prompt", negative_prompt="(blurry")
    refused(SceneError, "'a'", "plain words", negative_prompt="[sks cat](a)")


def test_a_prompt_that_is_too_long(refused):
    words = " ".join(["meadow"] * 1300)
    refused(SceneError, "chunks of 75", "at most 16", "Shorten", prompt=f"{ONE} {words}")
    refused(SceneError, "chunks of 75", "at most 16", negative_prompt=words)


def test_nine_concepts(refused, file):
    names = [f"l{n}" for n in range(9)]
    prompt = ", ".join(f"a [sks cat]({name})" for name in names)
    refused(SceneError, "9 concepts", "at most 8", prompt=prompt, loras=dict.fromkeys(names, file))


def test_the_tokenizers_own_marker(refused):
    refused(SceneError, "<|endoftext|>", prompt=r"a [sks cat](a) \<\|endoftext\|\> red")


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("height", 33), ("width", 0), ("width", -8), ("height", 9000), ("width", 32.5)],
)
def test_sizes(refused, name, value):
    refused(SceneError, name, **{name: value})


def test_a_size_that_this_vae_does_not_divide(refused, pipe, monkeypatch):
    monkeypatch.setattr(pipe, "vae_scale_factor", 16)
    refused(SceneError, "40x48", "multiples of 16", width=40, height=48)
    refused(SceneError, "64x32", "from 64 up", width=64, height=32)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", 2.5),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("num_images_per_prompt", 0),
        ("output_type", "jpg"),
    ],
)
def test_other_numbers_and_names(refused, name, value):
    shown = str(value) if name in ("num_images_per_prompt", "output_type") else name
    refused(SceneError, name, shown, **{name: value})


def test_wrong_number_of_generators(refused):
    generators = [torch.Generator()] * 3
    refused(SceneError, "3 generators for 2", generator=generators, num_images_per_prompt=2)
    refused(SceneError, "0 generators for 1", generator=[])


def test_wrong_latents(refused):
    refused(SceneError, "latents for 2 pictures", "1", latents=torch.zeros(2, 4, 16, 16))
    refused(SceneError, "(4, 16, 24)", "(4, 16, 16)", latents=torch.zeros(1, 4, 16, 24))
    refused(
        SceneError, "(4, 24, 16)", "48x32", "(4, 16, 24)", latents=torch.zeros(1, 4, 24, 16),
        width=48, height=32,
    )  # fmt: skip


def test_a_callback_that_returns_nothing(pipe, file):
    own = tiny_pipeline()
    with pytest.raises(MethodError, match="must return a dict"):
        loraweave.compose(
            own, ONE, loras={"a": file}, method="merge", num_inference_steps=1,
            callback_on_step_end=lambda *_: None,
        )  # fmt: skip


# -- methods ---------------------------------------------------------------------------------------


def test_unknown_method(refused):
    refused(MethodError, "'clara'", *loraweave.METHODS, method="clara")


def test_unknown_settings_and_values(refused):
    refused(MethodError, "'lambda_'", "mask_threshold", method="clora", settings={"lambda_": 0.3})
    refused(MethodError, "mask_threshold", method="clora", settings={"mask_threshold": 2})
    refused(MethodError, "variant", method="clora", settings={"variant": "best"})
    refused(MethodError, "refinements", "integer", method="clora", settings={"refinements": False})
    refused(MethodError, "step_size", "number", method="clora", settings={"step_size": "20"})
    refused(MethodError, "merge", "'variant'", method="merge", settings={"variant": "improved"})
    refused(MethodError, "merge", method="merge", settings=loraweave.CLoRASettings())


@pytest.mark.parametrize("method", ["clora", "merge"])
def test_regions_for_a_method_that_takes_none(refused, method):
    region = loraweave.Region(box=(0, 0, 0.5, 1))
    refused(MethodError, method, "regions", regions={"a": region}, method=method)


def test_regions_that_fit_nothing(refused):
    refused(SceneError, "'b'", "no concept", regions={"b": {"box": (0, 0, 1, 1)}})
    refused(RegionError, "regions.a", "outside", regions={"a": {"box": (0, 0, 1.5, 1)}})
    refused(RegionError, "regions.a", "neither", regions={"a": {}})


def test_a_scene_and_its_parts_at_once(pipe, file):
    scene = loraweave.Scene(prompt=ONE, loras={"a": file})
    for name, value in [("loras", {"a": file}), ("negative_prompt", "x"), ("height", 32)]:
        with pytest.raises(SceneError, match=f"its own {name}"):
            loraweave.compose(pipe, scene, **{name: value})


# -- pipelines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [object(), None, "runwayml/stable-diffusion-v1-5"])
def test_what_is_no_pipeline(thing):
    with pytest.raises(MethodError, match=rf"{type(thing).__name__} is not supported.*SD 1\.x"):
        loraweave.compose(thing, "a cat", method="merge")


def test_a_pipeline_of_another_class():
    pipe = StableDiffusionXLPipeline.__new__(StableDiffusionXLPipeline)
    with pytest.raises(MethodError, match=r"StableDiffusionXLPipeline is not supported"):
        loraweave.compose(pipe, "a cat", method="merge")


def test_a_pipeline_with_an_ip_adapter():
    pipe = tiny_pipeline()
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(MethodError, match="IP-Adapter"):
        loraweave.compose(pipe, "a cat", method="merge")


def index(folder, text):
    folder.mkdir()
    (folder / "model_index.json").write_text(text)
    return folder


def test_load_what_is_not_there(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no base model at .*nowhere.*not downloaded"):
        loraweave.load(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"no base model at 'stable-diffusion-v1-5/"):
        loraweave.load("stable-diffusion-v1-5/stable-diffusion-v1-5")


def test_load_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        loraweave.load(tmp_path)


def test_load_a_model_of_another_kind(tmp_path):
    folder = index(tmp_path / "xl", json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ModelNotFound, match="holds a StableDiffusionXLPipeline"):
        loraweave.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '"x"'])
def test_load_a_damaged_index(tmp_path, text):
    with pytest.raises(ModelNotFound, match=r"model_index\.json is damaged"):
        loraweave.load(index(tmp_path / "broken", text))


def test_load_a_folder_without_its_parts(tmp_path):
    parts = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        loraweave.load(index(tmp_path / "empty", json.dumps(parts)))


def test_load_a_folder_with_damaged_weights(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        loraweave.load(tmp_path)


def test_load_a_single_file(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelNotFound, match=r"model\.safetensors needs its configuration"):
        loraweave.load(tmp_path / "model.safetensors")
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ModelNotFound, match=r"model\.ckpt is no \.safetensors"):
        loraweave.load(tmp_path / "model.ckpt")
    index(tmp_path / "model", json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ModelNotFound, match=r"model\.safetensors is not a Stable Diffusion 1\.x"):
        loraweave.load(tmp_path / "model.safetensors")


def test_what_was_saved_is_loaded(tmp_path, file):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    loaded = loraweave.load(tmp_path, device="cpu")
    given = {"loras": {"a": file}, "method": "merge", "num_inference_steps": 1, "output_type": "np"}
    expected = loraweave.compose(pipe, ONE, **given)
    found = loraweave.compose(loaded, ONE, **given)
    assert np.array_equal(found.images, expected.images)
    assert found.info["base"]["sha256"] == expected.info["base"]["sha256"]
    assert found.info["base"]["name"] == tmp_path.name
    assert loraweave.load(tmp_path, device="cpu", dtype=torch.float16).unet.dtype == torch.float16


# -- saving ----------------------------------------------------------------------------------------


def test_saving(tmp_path, file):
    given = {"loras": {"a": file}, "method": "merge", "num_inference_steps": 1}
    out = loraweave.compose(tiny_pipeline(), ONE, **given)
    with pytest.raises(SceneError, match=r"is not a \.png"):
        out.save(tmp_path / "picture.jpg")
    with pytest.raises(SceneError, match="does not exist"):
        out.save(tmp_path / "no" / "picture.png")
    as_array = loraweave.compose(tiny_pipeline(), ONE, **given, output_type="np")
    with pytest.raises(SceneError, match="ndarray cannot be saved; use output_type='pil'"):
        as_array.save(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []
