"""Merging in delta space, against PEFT and closed-form values."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import loraweave
from loraweave import LoraError
from loraweave.cli import app
from loraweave.lora.adapter import load_adapter
from loraweave.lora.merging import largest, merged_adapter, put_together, side_by_side
from loraweave.lora.updates import LowRank
from tiny import random_lora, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning")

EVEN = torch.ones(2)
PROMPT = "a [sks cat](a:0.8) and a [zwx dog](b:0.5) in the meadow"


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    """Ranks and alphas that differ, as files have them."""
    folder = tmp_path_factory.mktemp("loras")
    return {
        "a": random_lora(
            pipe, folder / "a.safetensors", rank=4, alpha=1, seed=1, text_encoder=True
        ),
        "b": random_lora(
            pipe, folder / "b.safetensors", rank=3, alpha=6, seed=2, convolutions=True
        ),
    }


@pytest.fixture(scope="module")
def weighted(pipe, files):
    return [
        (load_adapter(n, files[n], unet=pipe.unet, text_encoder=pipe.text_encoder), weight, weight)
        for n, weight in (("a", 0.8), ("b", 0.5))
    ]


def test_the_sum_is_the_sum_of_the_deltas_and_keeps_factors(weighted):
    merged = merged_adapter("m", weighted)
    (a, wa, _), (b, wb, _) = weighted
    assert merged.unet.keys() == a.unet.keys() | b.unet.keys()
    assert merged.text_encoder.keys() == a.text_encoder.keys()
    for path, update in merged.unet.items():
        parts = [w * x.unet[path].weight() for x, w in ((a, wa), (b, wb)) if path in x.unet]
        torch.testing.assert_close(update.weight(), sum(parts), atol=1e-6, rtol=1e-5)
        assert update.rank == sum(x.unet[path].rank for x in (a, b) if path in x.unet)


def test_the_sum_is_pefts_cat(pipe, files, weighted):
    """`cat` is the one rule of PEFT that is an exact sum (its others act on the factors)."""
    own = tiny_pipeline()
    for name, path in files.items():
        own.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    merged = merged_adapter("m", weighted)
    paths = [p for p in weighted[0][0].unet if p in weighted[1][0].unet]
    assert paths
    for path in paths:
        layer = own.unet.get_submodule(path)
        expected = 0.8 * layer.get_delta_weight("a") + 0.5 * layer.get_delta_weight("b")
        torch.testing.assert_close(merged.unet[path].weight(), expected, atol=1e-5, rtol=1e-4)


def test_pefts_own_cat_is_the_sum():
    """By add_weighted_adapter, in float64, on a layer of its own."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5)).double()
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(layer, config, "one")
    model.add_adapter("two", LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
    model.double().add_weighted_adapter(["one", "two"], [0.8, 0.5], "both", combination_type="cat")
    lora = model.base_model.model[0]
    own = [
        (LowRank(lora.lora_A[n].weight, lora.lora_B[n].weight, lora.scaling[n]), weight)
        for n, weight in (("one", 0.8), ("two", 0.5))
    ]
    found = side_by_side(own).weight()
    torch.testing.assert_close(found, lora.get_delta_weight("both"), atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", ["sum", "magnitude", "ties", "dare", "dare_ties"])
def test_keeping_everything_is_the_sum_or_its_mean(rule):
    deltas = torch.tensor([[1.0, -2.0, 3.0], [2.0, -1.0, 1.0]])
    found = put_together(deltas, EVEN, rule, 1.0, "k")
    expected = deltas.mean(0) if rule.endswith("ties") else deltas.sum(0)
    torch.testing.assert_close(found, expected)


def test_ties_by_hand():
    deltas = torch.tensor([[4.0, -3.0, 0.1, 2.0], [-1.0, -5.0, 3.0, 0.2]])
    # the larger half of each: [4, -3, 0, 0] and [0, -5, 3, 0]
    assert put_together(deltas, EVEN, "ties", 0.5, "").tolist() == [4.0, -4.0, 3.0, 0.0]
    assert put_together(deltas, EVEN, "magnitude", 0.5, "").tolist() == [4.0, -8.0, 3.0, 0.0]
    against = torch.tensor([[4.0], [-1.0], [2.0]])  # the sign of the sum is +; -1 does not agree
    assert put_together(against, torch.ones(3), "ties", 1.0, "").tolist() == [3.0]
    # Signs are elected before the weights count: - wins, and half of -4 is left.
    uneven = torch.tensor([[3.0], [-4.0]])
    assert put_together(uneven, torch.tensor([1.0, 0.5]), "ties", 1.0, "").tolist() == [-2.0]


@settings(max_examples=25, deadline=None)
@given(density=st.floats(0.05, 1.0), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_the_largest_entries_are_kept(density, size, seed):
    delta = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    found = largest(delta, density)
    kept = found != 0
    assert kept.sum() == max(1, round(density * size))
    assert torch.equal(found[kept], delta[kept])
    if not kept.all():
        assert found[kept].abs().min() >= delta[~kept].abs().max()


def test_dare_keeps_the_mean_and_follows_its_seed():
    ones = torch.ones(1, 40_000)
    found = put_together(ones, EVEN[:1], "dare", 0.25, "0/unet/x")
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert found.mean().item() == pytest.approx(1, abs=0.04)  # 4.6 standard errors
    assert torch.equal(found, put_together(ones, EVEN[:1], "dare", 0.25, "0/unet/x"))
    assert not torch.equal(found, put_together(ones, EVEN[:1], "dare", 0.25, "1/unet/x"))


def test_a_low_rank_is_the_nearest(weighted):
    losses = []
    whole = merged_adapter("m", weighted)
    small = merged_adapter("m", weighted, rank=2, losses=losses)
    lost = 0.0
    for path, update in small.unet.items():
        assert update.rank <= 2
        flat = whole.unet[path].weight().flatten(1)
        values = torch.linalg.svdvals(flat)
        difference = (update.weight().flatten(1) - flat).norm()
        torch.testing.assert_close(difference, values[2:].norm(), atol=1e-4, rtol=1e-3)
        lost += difference.item() ** 2
    assert sum(own for _, own in losses) >= lost > 0.01  # the text encoder's are in there, too
    assert merged_adapter("m", weighted, rank=64).unet.keys() == whole.unet.keys()
    for path, update in merged_adapter("m", weighted, rank=64).unet.items():
        torch.testing.assert_close(update.weight(), whole.unet[path].weight())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "linear"}, "no merging rule 'linear'; there are: sum"),
        ({"density": 0}, "a share in"),
        ({"rank": 0}, "at least 1"),
    ],
)
def test_bad_settings(weighted, changes, message):
    with pytest.raises(LoraError, match=message):
        merged_adapter("m", weighted, **changes)
    with pytest.raises(LoraError, match="nothing to merge"):
        merged_adapter("m", [])


def draw(pipe, files, **settings):
    return loraweave.compose(
        pipe, PROMPT, loras=files, method="merge", settings=settings, num_inference_steps=3,
        generator=torch.Generator().manual_seed(2), output_type="latent", progress=False,
    ).images  # fmt: skip


def test_the_method_draws_with_every_rule(files):
    double = tiny_pipeline().to(torch.float64)
    plain = draw(double, files)
    torch.testing.assert_close(draw(double, files, rank=64), plain, atol=1e-4, rtol=0)
    seen = [plain]
    for rule in ("magnitude", "ties", "dare", "dare_ties"):
        found = draw(double, files, rule=rule)
        assert torch.equal(found, draw(double, files, rule=rule))
        assert not any(torch.allclose(found, other, atol=1e-3) for other in seen)
        seen.append(found)


def test_rules_for_loras_that_are_loaded_in_the_pipeline(files):
    pipe = tiny_pipeline()
    for name, path in files.items():
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    expected = draw(tiny_pipeline(), files, rule="ties")
    pipe.disable_lora()
    torch.testing.assert_close(draw(pipe, {}, rule="ties"), expected, atol=1e-4, rtol=0)


def test_dense_updates_act_as_low_rank_ones(pipe, weighted):
    from loraweave.lora.merging import Dense

    for path, update in weighted[1][0].unet.items():
        layer = pipe.unet.get_submodule(path)
        shape = (
            (2, layer.in_channels, 6, 6)
            if hasattr(layer, "in_channels")
            else (2, 5, layer.in_features)
        )
        x = torch.randn(shape)
        dense = Dense(update.weight())
        assert isinstance(update, LowRank)
        torch.testing.assert_close(
            dense.delta(x, layer), update.delta(x, layer), atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize(("rule", "to"), [("sum", "kohya"), ("ties", "diffusers")])
def test_command_writes_an_ordinary_file(base_folder, files, weighted, tmp_path, rule, to):
    out = tmp_path / "both.safetensors"
    result = CliRunner().invoke(app, [
        "merge", f"{files['a']}:0.8", f"{files['b']}:0.5", "--rule", rule, "--to", to, "-o",
        str(out), "--base", str(base_folder), "--json",
    ])  # fmt: skip
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["relative_error"] < (1e-6 if rule == "sum" else 0.7)
    plain = tiny_pipeline()
    found = load_adapter("m", out, unet=plain.unet, text_encoder=plain.text_encoder)
    expected = merged_adapter("m", weighted, rule, rank=None if rule == "sum" else 7)
    assert found.unet.keys() == expected.unet.keys()
    for path, update in found.unet.items():
        wanted = expected.unet[path].weight()
        # Entries at the border of what is kept may fall on either side in half precision.
        assert (update.weight() - wanted).norm() < 0.05 * wanted.norm()


def test_a_file_that_fits_in_part_is_merged_if_asked(base_folder, files, tmp_path):
    own = load_file(files["a"])
    strange = own | {"lora_unet_nowhere.lora_down.weight": torch.zeros(4, 8)}
    save_file(strange, tmp_path / "strange.safetensors")
    out = tmp_path / "both.safetensors"
    command = ["merge", str(tmp_path / "strange.safetensors"), str(files["b"]), "-o", str(out),
               "--base", str(base_folder)]  # fmt: skip
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert "--allow-partial" in " ".join(refused.stderr.split())
    merged = CliRunner().invoke(app, [*command, "--allow-partial"])
    assert merged.exit_code == 0, merged.stderr
    assert "left out 1 tensors of strange.safetensors" in merged.stderr
    assert out.is_file()


def test_command_refuses(base_folder, files, tmp_path):
    given = ["-o", str(tmp_path / "x.safetensors"), "--base", str(base_folder)]
    for words, message in (
        ([str(files["a"]), "--rule", "mean"], "no merging rule 'mean'"),
        ([f"{files['a']}:much"], "weight 'much' is not a number"),
        ([str(tmp_path / "none.safetensors")], "none.safetensors"),
    ):
        result = CliRunner().invoke(app, ["merge", *words, *given])
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "x.safetensors").exists()
