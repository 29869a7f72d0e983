"""The weights that ship: loadable by stock diffusers, small enough, and as good as they were."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import loraweave as lw
from loraweave.backbone.sd1 import base_name
from loraweave.detect.registry import SEGMENTERS
from loraweave.errors import LoraError, MethodError, TrainingError
from loraweave.lora.inspect import inspect_lora
from loraweave.miniature.check import COMMITTED
from loraweave.miniature.checks.pictures import CHECK_SEED, drawn
from loraweave.miniature.codec import pixels_of, through
from loraweave.miniature.compare import compare_methods, comparison_grid, rates
from loraweave.miniature.concepts import KNOWN, draw_concepts
from loraweave.miniature.extras import EXTRAS
from loraweave.miniature.finder import load_finder
from loraweave.miniature.golden import golden_blocks
from loraweave.miniature.judge import load_judge
from loraweave.miniature.prompts import listed
from loraweave.miniature.recipe.dream import dreamed
from loraweave.miniature.recipe.loras import plans
from loraweave.miniature.recipe.train import SIZES, train_miniature
from loraweave.miniature.scenes import PAIRS, scenes
from loraweave.miniature.shipped import WEIGHTS, base_folder, lora_file, lora_names, native_side
from loraweave.miniature.world import BACKGROUNDS, KINDS, TAUGHT_WORLD, render, sample_drawing
from loraweave.train.edlora import tokens_of


@pytest.fixture(scope="module")
def pipe():
    return lw.load("miniature", device="cpu")


def test_weights_fit_into_what_is_promised():
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 36e6
    assert {p.suffix for p in files} <= {".safetensors", ".json"}


def test_stock_diffusers_loads_and_draws():
    stock = StableDiffusionPipeline.from_pretrained(
        base_folder(), dtype=torch.float32, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    ours = lw.load("miniature", device="cpu")
    prompt = "a red cat in the meadow"
    theirs = stock(
        prompt, num_inference_steps=4, output_type="np",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    mine = lw.compose(
        ours, prompt, method="merge", num_inference_steps=4, output_type="np", progress=False,
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    assert np.abs(theirs - mine).max() < 1e-5


def test_pictures_are_as_colourful_as_drawings(pipe):
    """A wrong scale of the latents would still pass for pictures, but for burnt ones."""
    drawings = [
        render(sample_drawing(CHECK_SEED + n, TAUGHT_WORLD), native_side()).image for n in range(12)
    ]
    prompts = [
        listed([kind], place) for kind, place in zip(KINDS[:12], itertools.cycle(BACKGROUNDS))
    ]
    spread = [np.std(np.stack(images)) for images in (drawings, drawn(pipe, prompts, "spread"))]
    assert spread[1] == pytest.approx(spread[0], rel=0.2)


def test_every_lora_is_as_planned():
    assert lora_names() == sorted(plans())
    for name, plan in plans().items():
        report = inspect_lora(lora_file(name))
        ed = plan.kind == "ed-lora"
        assert report.kind == ("ED-LoRA" if ed else plan.format)
        assert report.ranks == [plan.rank]
        assert (report.alphas or [plan.rank]) == [plan.alpha]
        assert ("text_encoder" in report.components) == plan.text_encoder
        if plan.trigger:
            tokens = " ".join(tokens_of(plan.trigger)) if ed else f"{plan.trigger} {plan.noun}"
            assert report.trigger_words[0] == tokens
    with pytest.raises(LoraError, match="blackcat"):
        lora_file("nobody")


@pytest.mark.parametrize("name", ["inkcat", "sanddog", "pencil", "candyland", "rainbowscarf"])
def test_stock_diffusers_loads_the_loras(pipe, name):
    """Every kind of file, with and without the text encoder, draws what we draw."""
    plan, path = plans()[name], lora_file(name)
    words = f"a {plan.trigger} {plan.noun}" if plan.trigger else "a cat"
    marked = f"a [{plan.trigger} {plan.noun}]({name})" if plan.trigger else f"a cat <lora:{name}:1>"
    ours = lw.compose(
        pipe, marked, loras={name: path}, method="merge", num_inference_steps=3, progress=False,
        output_type="np", generator=torch.Generator().manual_seed(5),
    ).images  # fmt: skip
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    try:
        theirs = pipe(
            words, num_inference_steps=3, output_type="np",
            generator=torch.Generator().manual_seed(5),
        ).images  # fmt: skip
    finally:
        pipe.unload_lora_weights()
    assert np.abs(ours - theirs).max() < 1e-3


def test_what_the_denoiser_paints_over_is_the_same_scene(pipe):
    drawings = [
        render(sample_drawing(CHECK_SEED + 100 + n, TAUGHT_WORLD), native_side()).image
        for n in range(3)
    ]
    pixels, g = pixels_of(drawings), torch.Generator().manual_seed(0)
    painted = dreamed(pipe, pixels, ["a cat"] * 3, g)
    assert painted.shape == pixels.shape
    assert painted.abs().max() <= 1
    apart = torch.cdist(painted.flatten(1), pixels.flatten(1))
    assert apart.argmin(1).tolist() == [0, 1, 2]
    assert (painted - pixels).square().mean() > 1e-3


def test_the_judge_sees_what_was_drawn(pipe):
    judge, right = load_judge(), []
    for scene in scenes(PAIRS, "tuning", 12):
        drawn = scene.drawing()
        right.append(judge.examine(through(pipe.vae, [drawn.image])[0], scene.names).right / 2)
    assert np.mean(right) >= 0.85


def test_the_judge_is_not_pleased_by_everything(pipe):
    judge = load_judge()
    for scene in scenes(PAIRS, "tuning", 12):
        first, second = scene.names
        drawn = scene.alone(first).drawing()
        verdict = judge.examine(through(pipe.vae, [drawn.image])[0], scene.names)
        assert verdict.outcomes[second] in ("missing", "swapped", "blended")
    coats = draw_concepts(["blackcat", "golddog"], "snow", 1, native_side())
    verdict = judge.examine(coats.image, ["tigercat", "dotdog"])
    assert verdict.right == 0


def test_committed_figures_are_those_of_the_weights(quick_check):
    """The quick check, a tenth of the samples, agrees with what is committed."""
    committed = json.loads(COMMITTED.read_text())
    assert committed["version"] == lw.__version__
    found = quick_check
    assert found.keys() == committed.keys()
    assert found["samples_seen"] == committed["samples_seen"]
    for key, value in committed["figures"].items():
        if key == "vae_psnr_db":
            assert found["figures"][key] == pytest.approx(value, abs=0.7)
        elif key not in ("lora_alone", "lora_alone_min"):
            # Three standard errors of a rate over 30 samples.
            slack = 3 * max(value * (1 - value), 0.02) ** 0.5 / 30**0.5
            assert abs(found["figures"][key] - value) <= slack, key
    assert set(committed["figures"]["lora_alone"]) == set(KNOWN)
    assert not set(EXTRAS) & set(KNOWN)


GOLDEN = json.loads((WEIGHTS / "golden.json").read_text())


@pytest.mark.parametrize("method", sorted(lw.METHODS))
def test_golden_pictures(pipe, method):
    """Means of 8x8 blocks of a picture, as they were when the weights were made."""
    blocks = golden_blocks(pipe, method, {name: lora_file(name) for name in KNOWN})
    assert np.abs(blocks - np.array(GOLDEN[method])).mean() < 0.02


def test_methods_are_compared_on_the_same_noise(tmp_path):
    chosen = scenes(PAIRS, "tuning", 3)
    quick = {"clora": {"refinements": 0, "max_update_step": 0}}
    methods = ["merge", "clora", "base", "alone"]
    results = compare_methods(methods, chosen, steps=2, settings=quick)
    again = compare_methods(["merge"], chosen[1:], steps=2)
    assert np.array_equal(results["merge"][2].images[0], again["merge"][1].images[0])
    assert [len(row.images) for row in results["alone"]] == [2, 2, 2]
    table = rates(results)
    right = [row.right for row in results["clora"]]
    assert table["clora"]["concepts_right"]["mean"] == pytest.approx(np.mean(right), abs=1e-4)
    assert all(sum(table[m]["outcomes"].values()) == 6 for m in methods)
    assert "minus_merge" not in table["merge"]
    shares = [table[m]["concepts_right"]["mean"] for m in ("clora", "merge")]
    assert table["clora"]["minus_merge"]["mean"] == pytest.approx(shares[0] - shares[1], abs=1e-4)
    comparison_grid(results, chosen, tmp_path / "grid.png", across=2)
    assert (tmp_path / "grid.png").stat().st_size > 1000
    with pytest.raises(MethodError, match="no method 'mergee'"):
        compare_methods(["mergee"], chosen)


def test_recipe_runs_from_nothing_and_resumes(tmp_path):
    result = train_miniature(tmp_path, size="trial")
    made = tmp_path / "weights"
    assert result == {"folder": str(made), "size": "trial"}
    assert (made / "base" / "model_index.json").is_file()
    assert len(list((made / "loras").glob("*.safetensors"))) == len(SIZES["trial"].loras)
    assert len(load_judge(made / "judge").concepts) == len(KNOWN)
    found = load_finder(made / "finder.safetensors").find(Image.new("RGB", (64, 64)), "cat")
    assert {mask.shape for mask in found} <= {(64, 64)}
    vae = json.loads((made / "base/vae/config.json").read_text())
    assert vae["scaling_factor"] == 1, "the latents are balanced"
    assert not any("_name_or_path" in path.read_text() for path in made.rglob("*.json"))
    before = (made / "base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    again = train_miniature(tmp_path, size="trial")
    assert again == result
    assert before == (made / "base/unet/diffusion_pytorch_model.safetensors").read_bytes()
    assert train_miniature(tmp_path, size="trial", until="base")["folder"] == str(tmp_path)
    for wrong, message in (({"size": "huge"}, "small"), ({"until": "bas"}, "vae, base, loras")):
        with pytest.raises(TrainingError, match=message):
            train_miniature(tmp_path, **{"size": "trial", **wrong})


def test_another_miniature_may_be_named(tmp_path):
    """By its folder of weights, as a training leaves it."""
    code = "from loraweave.miniature.shipped import base_folder, native_side; " + (
        "print(base_folder(), native_side())"
    )
    (tmp_path / "weights").symlink_to(WEIGHTS)
    told = f"base {native_side()}"
    for folder, message in ((tmp_path / "weights", told), (tmp_path, "LORAWEAVE_MINIATURE")):
        out = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"LORAWEAVE_MINIATURE": str(folder)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert message in out.stdout + out.stderr
        assert str(folder) in out.stdout + out.stderr
    assert base_name(lw.load(tmp_path / "weights" / "base", device="cpu")) == "miniature"


def test_golden_pictures_of_omg_may_be_by_another_finder(pipe):
    class Nobody:
        def find(self, image, noun):
            return []

    files = {name: lora_file(name) for name in KNOWN}
    before = set(SEGMENTERS)
    other = golden_blocks(pipe, "omg", files, Nobody())
    assert set(SEGMENTERS) == before
    assert np.abs(other - np.array(GOLDEN["omg"])).max() > 0.02
