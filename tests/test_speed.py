"""What `bench speed` measures and counts."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import loraweave
from loraweave import MethodError
from loraweave.bench.bases import speed_base, speed_loras, speed_prompt
from loraweave.bench.flops import CallCosts, work_of
from loraweave.bench.naive import naive_picture
from loraweave.bench.speed import Plan, counted, loaded, measure
from loraweave.cli import app
from loraweave.evaluate.flops import flop_counter

SIZE, STEPS = (64, 64), 5
SETTINGS = {
    "clora": {
        "variant": "faithful", "max_update_step": 2, "refinement_steps": [0], "refinements": 1,
    },
    "lora_composer": {"layout": "strips", "max_updates": 2}, "masked": {"layout": "strips"},
    "attend_and_excite": {"max_update_step": 2}, "weave": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    pipe = speed_base("tiny", "cpu", torch.float32)
    return pipe, speed_loras(pipe, tmp_path_factory.mktemp("loras"), 3, 4)


def real_flops(draw):
    with flop_counter() as counter:
        draw()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("merge", {}), ("composite", {}), ("switch", {}), ("masked", {}), ("weave", {}),
        ("weave", {"restart": False, "attention": "queries"}), ("attend_and_excite", {}),
        ("clora", {"gradient": "together"}), ("clora", {"gradient": "one_by_one"}),
        ("clora", {"gradient": "together", "variant": "improved"}), ("lora_composer", {}),
    ],
)  # fmt: skip
def test_counted_flops_are_those_of_a_real_run(tiny, method, more):
    pipe, loras = tiny
    own = {name: loras[name] for name in list(loras)[:2]}
    settings = SETTINGS.get(method, {}) | more

    def draw():
        loraweave.compose(
            pipe, speed_prompt(2), loras=own, method=method, settings=settings, width=SIZE[0],
            height=SIZE[1], num_inference_steps=STEPS, progress=False,
        )  # fmt: skip

    work, texts = work_of(method, 2, STEPS, settings)
    found = CallCosts("tiny", SIZE, 2, 4).picture(work, texts)
    # What is not counted: losses, and what isolation leaves out. Where each owner has keys of its
    # own, the cost follows the places, which are those of another picture.
    rel = 0.05 if more.get("attention") == "queries" else 0.03
    assert found == pytest.approx(real_flops(draw), rel=rel)


def test_plain_and_naive_are_counted_as_stock_parts_compute_them(tiny):
    pipe, loras = tiny
    name, own = next(iter(loras)), {n: loras[n] for n in list(loras)[:2]}
    updates = [2, 1, 0]

    def plain():
        with loaded(pipe, {name: loras[name]}):
            pipe("a sks cat in the meadow", width=64, height=64, num_inference_steps=3,
                 guidance_scale=7.5)  # fmt: skip

    def naive():
        with loaded(pipe, own):
            calls.append(naive_picture(pipe, speed_prompt(2), list(own), SIZE, 3, updates))

    calls = []
    plan = Plan(base="tiny", size=SIZE, steps=3, methods=("merge",), counts=(1,), rank=4)
    row = counted(plan)[0]
    assert row["method"] == "plain"
    assert row["tflops"] == pytest.approx(real_flops(plain) / 1e12, rel=0.001, abs=5e-5)
    counted_naive = CallCosts("tiny", SIZE, 2, 4).naive(len(own), updates)
    assert counted_naive == pytest.approx(real_flops(naive), rel=0.01)
    assert calls == [3 * (2 + 1 + 1)]


def test_rows_are_ratios_to_plain_and_to_naive():
    plan = Plan(
        base="tiny", size=SIZE, methods=("merge", "weave", "clora", "naive"), counts=(1, 2),
        rank=4, steps=4, guided_steps=2, updates=1, repetitions=2,
    )  # fmt: skip
    rows = {(r["method"], r["loras"], r["steps"]): r for r in measure(plan)}
    assert set(rows) == {
        ("plain", 1, 4), ("plain", 1, 2), ("merge", 1, 4), ("merge", 2, 4), ("weave", 1, 4),
        ("weave", 2, 4), ("clora", 2, 2), ("naive", 2, 2),
    }  # fmt: skip
    for row in rows.values():
        assert row["repetitions"] == 2
        assert row["seconds"] > 0
        assert row["spread"] >= 0
        assert (row["base"], row["device"], row["dtype"]) == ("tiny", "cpu", "float32")
    for steps in (4, 2):
        plain = rows["plain", 1, steps]
        assert plain["flops_ratio"] == plain["seconds_ratio"] == 1
    # It looks at attention, too, but reads the text once, which is much of so small a model.
    assert 0.95 < rows["merge", 1, 4]["flops_ratio"] < 1
    assert rows["weave", 2, 4]["calls"] == 5
    assert rows["naive", 2, 2]["naive_flops_ratio"] == 1
    assert 0 < rows["clora", 2, 2]["naive_flops_ratio"] < 1.2
    assert "naive_flops_ratio" not in rows["weave", 2, 4]


def test_pass_by_pass_there_are_more_calls_of_as_many_flops():
    plan = Plan(
        base="tiny", size=SIZE, methods=("clora",), counts=(3,), rank=4, steps=2, guided_steps=2,
        updates=0, repetitions=1, settings={"clora": {"gradient": "one_by_one"}},
    )  # fmt: skip
    together, apart = (measure(one)[1] for one in (plan, replace(plan, pass_batch=2)))
    assert (together["pass_batch"], apart["pass_batch"]) == (None, 2)
    assert apart["calls"] > together["calls"]
    assert apart["tflops"] == pytest.approx(together["tflops"], rel=1e-3, abs=1e-4)


def test_what_takes_most_of_the_time_is_said():
    given = ["--base", "miniature", "--size", "64x64", "--methods", "merge", "--loras", "1"]
    # So many steps that no part of loading a LoRA is among them.
    given += ["--steps", "4", "--repetitions", "1", "--profile"]
    result = CliRunner().invoke(app, ["bench", "speed", *given, "--json"])
    assert result.exit_code == 0, result.output
    for row in json.loads(result.stdout)["rows"]:
        shares = [part["share"] for part in row["slowest"]]
        assert len(shares) == 3
        assert 0 < sum(shares) <= 1
        assert shares == sorted(shares, reverse=True)
        assert all(part["calls"] >= 1 and "aten" in part["part"] for part in row["slowest"])
    assert "aten" in CliRunner().invoke(app, ["bench", "speed", *given]).stdout


def test_the_command_counts_and_writes(tmp_path):
    path = tmp_path / "speed.json"
    given = ["--flops-only", "--methods", "merge,weave", "--loras", "2", "--steps", "5"]
    result = CliRunner().invoke(app, ["bench", "speed", *given, "--json", "-o", str(path)])
    assert result.exit_code == 0, result.output
    rows = json.loads(path.read_text())["rows"]
    assert [row["method"] for row in rows] == ["plain", "merge", "weave"]
    assert rows[0]["seconds"] is None
    assert 1 < rows[2]["flops_ratio"] < 1.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "wave"], "no method 'wave'; there are"),
        (["--loras", "9"], "9 LoRAs; 1 to 8 can be measured"),
        (["--loras", "two"], "--loras 'two' is no list of numbers"),
        (["--size", "512"], "--size '512' is no size"),
        (["--methods", "clora", "--loras", "1"], "clora needs two LoRAs at least"),
        (["--set", "clora.refinements=5"], "clora.refinements would give clora another schedule"),
        (["--profile"], "--flops-only draws nothing that --profile could look at"),
        (["--pass-batch", "2"], "--pass-batch changes calls and memory, not FLOPs"),
        (["--methods", "attend_and_excite"], "cannot be counted without drawing"),
        (["--methods", "merge", "--loras", "2", "--set", "merge.rule=ties"], "LoRAs of its own"),
    ],
)
def test_bad_input_is_refused(given, message):
    result = CliRunner().invoke(app, ["bench", "speed", "--flops-only", *given])
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_unknown_method_is_an_error():
    with pytest.raises(MethodError, match="no method 'wave'"):
        Plan(size=SIZE, methods=("wave",)).check()
