"""The weights that ship: loadable by stock diffusers, small enough, and as good as they were."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import loraweave as lw
from loraweave.errors import LoraError, TrainingError
from loraweave.lora.inspect import inspect_lora
from loraweave.miniature.compare import TUNING_SEED, compare_methods, comparison_grid, rates
from loraweave.miniature.concepts import CONCEPTS, draw_concepts
from loraweave.miniature.golden import golden_blocks
from loraweave.miniature.judge import load_judge
from loraweave.miniature.prompts import pair_scenes
from loraweave.miniature.recipe.judge import through
from loraweave.miniature.recipe.train import train_miniature
from loraweave.miniature.shipped import WEIGHTS, base_folder, lora_file, lora_names


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


def test_every_concept_has_its_lora():
    assert lora_names() == sorted(CONCEPTS)
    for name in lora_names():
        report = inspect_lora(lora_file(name))
        assert report.ranks == [8]
        assert f"{CONCEPTS[name].trigger} {CONCEPTS[name].kind}" in report.trigger_words
    with pytest.raises(LoraError, match="blackcat"):
        lora_file("nobody")


def test_the_judge_sees_what_was_drawn(pipe):
    judge, right = load_judge(), []
    for scene in pair_scenes(12, seed=5):
        drawn = draw_concepts(scene.names, scene.background, scene.seed)
        right.append(judge.examine(through(pipe.vae, [drawn.image])[0], scene.names).right / 2)
    assert np.mean(right) >= 0.85


def test_the_judge_is_not_pleased_by_everything(pipe):
    judge = load_judge()
    for scene in pair_scenes(12, seed=6):
        first, second = scene.names
        drawn = draw_concepts([first], scene.background, scene.seed)
        verdict = judge.examine(through(pipe.vae, [drawn.image])[0], scene.names)
        assert verdict.outcomes[second] in ("missing", "swapped", "blended")
    coats = draw_concepts(["blackcat", "golddog"], "snow", 1)
    verdict = judge.examine(coats.image, ["tigercat", "dotdog"])
    assert verdict.right == 0


GOLDEN = json.loads((WEIGHTS / "golden.json").read_text())


@pytest.mark.parametrize("method", sorted(lw.METHODS))
def test_golden_pictures(pipe, method):
    """Means of 8x8 blocks of a picture, as they were when the weights were made."""
    blocks = golden_blocks(pipe, method, {name: lora_file(name) for name in CONCEPTS})
    assert np.abs(blocks - np.array(GOLDEN[method])).mean() < 0.02


def test_methods_are_compared_on_the_same_noise(tmp_path):
    scenes = pair_scenes(3, TUNING_SEED)
    quick = {"clora": {"refinements": 0, "max_update_step": 0}}
    results = compare_methods(["merge", "clora"], scenes, steps=2, settings=quick)
    again = compare_methods(["merge"], scenes[1:], steps=2)
    assert np.array_equal(results["merge"][2][0], again["merge"][1][0])
    table = rates(results)
    judged = [verdict for _, verdict in results["clora"]]
    assert table["clora"]["concepts_right"]["mean"] == sum(v.right for v in judged) / 6
    assert sum(table["merge"]["outcomes"].values()) == 6
    assert "minus_merge" not in table["merge"]
    shares = [table[m]["concepts_right"]["mean"] for m in ("clora", "merge")]
    assert table["clora"]["minus_merge"]["mean"] == pytest.approx(shares[0] - shares[1], abs=1e-4)
    comparison_grid(results, scenes, tmp_path / "grid.png", across=2)
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_recipe_runs_from_nothing_and_resumes(tmp_path):
    result = train_miniature(tmp_path, size="trial")
    made = tmp_path / "weights"
    assert result == {"folder": str(made), "size": "trial"}
    assert (made / "base" / "model_index.json").is_file()
    assert len(list((made / "loras").glob("*.safetensors"))) == len(CONCEPTS)
    before = (made / "base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    again = train_miniature(tmp_path, size="trial")
    assert again == result
    assert before == (made / "base/unet/diffusion_pytorch_model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="small"):
        train_miniature(tmp_path, size="huge")
