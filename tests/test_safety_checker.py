"""A base's safety checker stays on."""

import json

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor

import loraweave
from loraweave import ModelNotFound, compose
from tiny import tiny_pipeline

GIVEN = {"method": "merge", "num_inference_steps": 1, "progress": False}


def tiny_checker(threshold: float) -> StableDiffusionSafetyChecker:
    """A real checker of tiny size; cosines above the threshold are flagged."""
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    config = CLIPConfig(vision_config=vision, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config).eval()
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(2)
    return checker


def with_checker(threshold: float):
    pipe = tiny_pipeline()
    pipe.register_modules(
        safety_checker=tiny_checker(threshold),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    pipe.register_to_config(requires_safety_checker=True)
    return pipe


@pytest.fixture(scope="module")
def plain():
    return compose(tiny_pipeline(), "a cat", **GIVEN)


def test_a_flagged_picture_is_black(plain):
    out = compose(with_checker(-2), "a cat", **GIVEN)
    assert out.info["nsfw"] == [True]
    assert out.images[0].getextrema() == ((0, 0),) * 3
    assert plain.info["nsfw"] == [None]
    assert plain.images[0].getextrema() != ((0, 0),) * 3


def test_any_other_picture_is_as_without_checker(plain):
    out = compose(with_checker(2), "a cat", **GIVEN)
    assert out.info["nsfw"] == [False]
    assert out.images[0].tobytes() == plain.images[0].tobytes()


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_other_outputs_are_black_too(kind):
    out = compose(with_checker(-2), "a cat", **GIVEN, output_type=kind)
    assert out.info["nsfw"] == [True]
    assert (out.images == 0).all()


def test_load_keeps_the_checker(tmp_path):
    with_checker(-2).save_pretrained(tmp_path)
    pipe = loraweave.load(tmp_path, device="cpu")
    assert compose(pipe, "a cat", **GIVEN).info["nsfw"] == [True]


def test_load_refuses_a_folder_that_lost_its_checker(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFound, match=r"names a safety checker.*\[null, null\]"):
        loraweave.load(tmp_path)


def test_a_damaged_checker_beside_a_checkpoint_is_an_error(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    folder = tmp_path / "model"
    (folder / "safety_checker").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelNotFound, match=r"model\.safetensors is not"):
        loraweave.load(tmp_path / "model.safetensors")
