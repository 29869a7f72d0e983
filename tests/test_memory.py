"""The memory that a piece of work needs."""

import sys
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import loraweave
from loraweave import MethodError, SceneError
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.denoise.composition import frozen
from loraweave.denoise.executor import MemoryMode
from loraweave.memory.live_bytes import LiveBytes
from loraweave.memory.measured import peak_memory
from loraweave.memory.plan import ALLOWANCE, Needs, Plan, choose, kept_to, needs, read_bytes
from loraweave.methods import get_method
from prepared import PROMPT, engine
from tiny import tiny_pipeline

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux only")
def test_growth_is_counted_and_given_back():
    with peak_memory() as outer:
        with peak_memory() as large:
            torch.ones(64 * MIB, dtype=torch.uint8)  # gone at once
        with peak_memory() as small:
            torch.ones(16 * MIB, dtype=torch.uint8)
        assert outer.mib is None
    assert large.mib == pytest.approx(64, abs=8)
    assert small.mib == pytest.approx(16, abs=8)
    assert outer.mib == pytest.approx(64, abs=8), "the largest of what was inside"


# -- known before it is used -----------------------------------------------------------------------


def test_live_bytes_are_what_is_alive_at_once():
    def work(n):
        a = torch.ones(n)  # 4n
        b = a + 1  # 8n
        c = b * 2  # 12n
        del a, b
        c += 1  # in place
        return c.view(2, -1).t().sum()  # views, and 4 bytes

    for fake in (nullcontext(), FakeTensorMode()):
        with fake, LiveBytes() as seen:
            work(1000)
        assert (seen.peak, seen.largest, seen.now) == (12_000, 4000, 0)
    with LiveBytes() as seen:
        kept = work(1000)
        assert seen.now == 4
    assert kept.item() == 5000
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes() as seen:
        y = x.exp().exp().exp().sum()
        assert seen.now == 3 * 4000 + 4  # each is kept for the gradient
        torch.autograd.grad(y, x)
    assert 3 * 4000 < seen.peak <= 5 * 4000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("6GB", 6 * 10**9),
        ("1.5GiB", 3 * 2**29),
        (" 800MB ", 8 * 10**8),
        ("6gb", 6 * 10**9),
        ("2Gib", 2**31),
        (7, 7),
        (6.5e9, 6_500_000_000),
    ],
)
def test_sizes_are_read(text, found):
    assert read_bytes(text) == found


@pytest.mark.parametrize(
    "text", ["", "much", "6", "-1GB", "0GB", 0, -5, "6 apples", "infGB", "1e400GB", float("inf")]
)
def test_what_is_no_size_is_said(text):
    with pytest.raises(SceneError, match="is no size; write 6GB"):
        read_bytes(text)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_needs_are_those_of_a_real_call(pipe, loras, checkpointing):
    """Found on fake tensors, and by the executor with its LoRAs on real ones."""
    backbone = StableDiffusion1(pipe)
    z, t = torch.randn(1, 4, 16, 16), torch.tensor(500)
    with engine(pipe, loras) as (executor, passes):
        side = 16 * pipe.vae_scale_factor
        found = needs(backbone, side, side, passes[0].states[0])
        executor.evaluate(passes, z, t)  # what is kept for later calls is made
        executor.mode = MemoryMode(checkpointing=checkpointing)
        with torch.no_grad(), LiveBytes() as call:
            executor.evaluate(passes, z, t)
        with LiveBytes() as graph:
            executor.gradient(passes, z, lambda x: x, t, lambda m: m.square().sum((1, 2, 3, 4)))
    assert 0.5 < call.peak / (6 * found.call) <= 1
    expected = 3 * (found.lean if checkpointing else found.graph)
    assert 0.5 < graph.peak / expected <= 1.1  # ranks of LoRAs are kept, too; see ALLOWANCE
    assert found.lean < 0.6 * found.graph
    assert found.tiled == found.decoding  # one tile


MIB_OF = Needs(call=100 * MIB, graph=600 * MIB, lean=200 * MIB, decoding=900 * MIB, tiled=300 * MIB)


def chosen(limit, gradients=True, device="cuda", in_use=1000):
    """A plan for 6 rows; the tiny model's weights are nothing beside these numbers."""
    return choose(
        limit * MIB, MIB_OF, pipe=tiny_pipeline(), device=torch.device(device), rows=6,
        gradients=gradients, in_use=in_use * MIB,
    )  # fmt: skip


def test_the_least_is_given_up_that_suffices():
    none = MemoryMode(limited=True)
    free = 1000 + 256
    assert chosen(free + 3960) == Plan(none, False, "no", (free + 3960) * MIB)  # 6 * 600 * 1.1
    fewer = chosen(free + 3959)
    assert fewer.mode == MemoryMode(graph_rows=5, limited=True)
    assert not fewer.tiling
    lean = chosen(free + 1319)  # 2 * 600 * 1.1 does not fit
    assert lean.mode == MemoryMode(None, 5, True, True)
    assert not lean.tiling
    assert chosen(free + 989).tiling  # 900 * 1.1 does not fit
    assert chosen(free + 659, gradients=False).mode == MemoryMode(5, limited=True)  # 6 * 100 * 1.1
    assert chosen(free + 440).mode == MemoryMode(4, 2, True, True)
    for plan in (fewer, lean):
        assert plan.expected <= free * MIB + 3959 * MIB


def test_weights_wait_on_the_host_where_nothing_else_helps():
    pipe = tiny_pipeline()
    text, unet, _ = (
        sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
        for model in (pipe.text_encoder, pipe.unet, pipe.vae)
    )
    least = 1000 + 256 + 440
    without = 1000 + 256 + 330  # two rows of a call, or a picture in tiles
    assert chosen(least).offload == "no"
    for limit, offload, gradients in (
        (least * MIB - 1, "models", True),
        (without * MIB - text - unet - 1, "layers", False),
    ):
        plan = choose(
            limit, MIB_OF, pipe=pipe, device=torch.device("cuda"), rows=6, gradients=gradients,
            in_use=1000 * MIB,
        )  # fmt: skip
        assert plan.offload == offload
        assert f"{offload} wait on the host" in plan.sentence(limit)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_too_little_is_an_error_that_says_what_is_needed(device):
    with pytest.raises(SceneError, match=r"too little: this picture needs about \d\.\d\d GiB"):
        chosen(1100, device=device)


@pytest.mark.parametrize("offload", ["models", "layers"])
def test_offloaded_models_draw_the_same_and_come_back(loras, offload):
    pipe = tiny_pipeline()
    expected = draw(pipe, loras).images
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    objects = [id(p) for p in pipe.unet.parameters()]
    plan = Plan(MemoryMode(), True, offload, 0)
    with frozen(pipe.unet), kept_to(plan, StableDiffusion1(pipe)):
        assert pipe.vae.use_tiling
        assert any(hasattr(m, "_hf_hook") for m in pipe.unet.modules())
        found = draw(pipe, loras).images
        with pytest.raises(SceneError, match="offloaded already"):
            draw(pipe, loras, max_memory="6GB")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not any(hasattr(m, "_hf_hook") for m in pipe.unet.modules())
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    assert [id(p) for p in pipe.unet.parameters()] == objects
    assert all(p.requires_grad for p in pipe.unet.parameters())
    assert torch.equal(draw(pipe, loras).images, expected)
    assert not pipe.vae.use_tiling


def draw(pipe, loras, method="clora", **changes):
    return loraweave.compose(
        pipe, PROMPT, loras=loras, method=method, num_inference_steps=2, output_type="pt",
        settings={"max_update_step": 1, "refinements": 0} if method == "clora" else None,
        progress=False, **changes,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="told by Linux only")
@pytest.mark.parametrize("method", ["clora", "weave"])
def test_a_limit_changes_no_picture_and_says_what_it_chose(double, loras, method, monkeypatch):
    expected = draw(double, loras, method)
    wide = draw(double, loras, method, max_memory="900GB")
    assert "nothing has to be given up" in wide.info["notes"][-1]
    monkeypatch.setattr("loraweave.memory.plan.memory_in_use", lambda device: 0)
    monkeypatch.setattr("loraweave.memory.plan._of_adapter", lambda adapter: 0)
    free = {"cpu": dict.fromkeys(ALLOWANCE["cpu"], (1.0, 0))}
    monkeypatch.setattr("loraweave.memory.plan.ALLOWANCE", free)
    with pytest.raises(SceneError, match="needs about"):
        draw(double, loras, method, max_memory=1000)
    backbone = StableDiffusion1(double)
    with engine(double, loras) as (_, passes):
        found = needs(backbone, *backbone.size(None, None), passes[0].states[0])
    least = max(2 * found.call, found.decoding, 2 * found.lean if method == "clora" else 0)
    tight = draw(double, loras, method, max_memory=least)
    words = "at most 2 rows a call" if method == "weave" else "with checkpointing"
    assert words in tight.info["notes"][-1] or found.decoding == least
    for one in (wide, tight):
        torch.testing.assert_close(one.images, expected.images, atol=1e-9, rtol=0)
    assert tight.info["calls"] >= expected.info["calls"]


def test_pictures_that_are_decoded_at_once_need_as_much_each():
    most = Needs(call=MIB, graph=MIB, lean=MIB, decoding=900 * MIB, tiled=300 * MIB)
    for pictures, tiles in ((1, False), (3, True)):
        plan = choose(
            2000 * MIB, most, pipe=tiny_pipeline(), device=torch.device("cuda"), rows=6,
            gradients=False, in_use=0, pictures=pictures,
        )  # fmt: skip
        assert plan.tiling == tiles


def test_layers_stay_where_graphs_would_keep_them():
    pipe, limit = tiny_pipeline(), (1000 + 256 + 440) * MIB
    weights = sum(p.numel() * p.element_size() for p in pipe.unet.parameters())
    with pytest.raises(SceneError, match="too little"):
        choose(
            limit - 10 * weights, MIB_OF, pipe=pipe, device=torch.device("cuda"), rows=6,
            gradients=True, in_use=1000 * MIB,
        )  # fmt: skip


def test_smaller_calls_are_a_caveat(pipe, loras):
    plain, parts = (draw(pipe, loras, "clora", pass_batch=most) for most in (None, 2))
    assert plain.info["caveats"] == [None]
    assert "2 rows at a time" in parts.info["caveats"][0]


def test_what_changes_with_tiles_and_what_does_not_is_recorded(pipe, loras, monkeypatch):
    plain = draw(pipe, loras, "merge")
    limited = draw(pipe, loras, "merge", max_memory="900GB")
    assert limited.info["texts"] == plain.info["texts"], "nothing more was read"
    assert limited.info["caveats"] == plain.info["caveats"]
    plan = Plan(MemoryMode(limited=True), True, "no", 0)
    monkeypatch.setattr("loraweave.api.planned", lambda *a, **k: (plan, "tiles"))
    tiled = draw(pipe, loras, "merge", max_memory="900GB")
    assert "tiles" in tiled.info["caveats"][0]


def test_a_method_without_gradients_says_that_checkpointing_saves_nothing(pipe, loras):
    assert "saves nothing" in draw(pipe, loras, "weave", checkpointing=True).info["notes"][-1]
    notes = draw(pipe, loras, "clora", checkpointing=True).info["notes"]
    assert not any("saves nothing" in note for note in notes)
    for name, settings, takes in (
        ("clora", {}, True), ("clora", {"max_update_step": 0}, False), ("weave", {}, False),
        ("lora_composer", {}, True), ("lora_composer", {"max_updates": 0}, False),
        ("regional", {}, False), ("regional", {"guidance": "boxdiff"}, True), ("conform", {}, True),
        ("attend_and_excite", {}, True),
    ):  # fmt: skip
        assert get_method(name, settings).takes_gradients(0) is takes
    weave = get_method("weave")
    assert [weave.takes_gradients(placed) for placed in (0, 2, 3)] == [False, False, True]


def test_what_excludes_the_limit_is_said(pipe, loras):
    for other in ({"pass_batch": 2}, {"checkpointing": True}):
        with pytest.raises(SceneError, match="leave them out"):
            draw(pipe, loras, max_memory="6GB", **other)


def test_one_graph_for_all_passes_where_memory_is_for_fewer_is_an_error(pipe, loras):
    with engine(pipe, loras) as (executor, passes):
        executor.mode = MemoryMode(graph_rows=2)
        with pytest.raises(MethodError, match="needs a graph of 3 rows, and memory is for 2"):
            executor.gradient(
                passes, torch.randn(1, 4, 16, 16), lambda x: x, torch.tensor(5),
                lambda m: m.sum((1, 2, 3, 4)), mode="together",
            )  # fmt: skip
