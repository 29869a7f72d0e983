"""Passes in one batch, recorded attention, early stop, gradients, against plain computations."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.backbone.sites import cross_attention_sites
from loraweave.denoise.composition import composition, frozen
from loraweave.denoise.executor import MemoryMode, executing
from loraweave.denoise.hooks import AdapterHooks, adapter_hooks
from loraweave.denoise.loop import Stage, StepScheduler, denoise, guided
from loraweave.denoise.texts import MOST_ROWS
from loraweave.errors import MethodError, SceneError
from loraweave.layout.masks import fused, resized
from loraweave.lora.adapter import load_adapter
from loraweave.lora.pipeline import gather_adapters
from loraweave.memory.live_bytes import LiveBytes
from loraweave.methods import CLoRA
from loraweave.methods.clora import info_nce, normalized
from loraweave.scene import Scene
from prepared import PROMPT, engine
from tiny import tiny_pipeline

T = torch.tensor(601)
READ = (  # the 16x16 level of the tiny U-Net
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
)


def latents(h=16, w=16, dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, 4, h, w), generator=generator, dtype=torch.float64).to(dtype)


def with_weights(model, part, adapters):
    """A copy of a model with the whole delta W of some (adapter, weight) added to its weights."""
    model = copy.deepcopy(model)
    for adapter, weight in adapters:
        for path, update in getattr(adapter, part).items():
            model.get_submodule(path).weight.data += weight * update.weight()
    return model


# -- passes and their adapters ---------------------------------------------------------------------


@torch.no_grad()
def test_texts_are_read_once(pipe, loras):
    layers = [getattr(site.module, name) for site in cross_attention_sites(pipe.unet)
              for name in ("to_k", "to_v")]  # fmt: skip
    seen = []
    handles = [layer.register_forward_hook(lambda *_: seen.append(1)) for layer in layers]
    with engine(pipe, loras) as (executor, passes):
        first, again = (executor.evaluate(passes, latents(), T) for _ in range(2))
        assert len(seen) == len(layers)
        assert torch.equal(first.noise, again.noise)
        assert torch.equal(first.maps, again.maps)
        executor.evaluate(passes[1:], latents(), T)
        assert len(seen) == 2 * len(layers), "other rows"
        assert [work.fresh for work in executor.calls.work] == [True, False, True]
    with engine(pipe, loras) as (executor, passes):
        assert torch.equal(executor.evaluate(passes, latents(), T).noise, first.noise)
        for n in range(40):  # what is kept has a limit
            executor.evaluate([replace(passes[0], states=passes[0].states + n)], latents(), T)
        assert sum(map(len, executor._texts._known)) <= MOST_ROWS
    for handle in handles:
        handle.remove()
    assert layers == [getattr(site.module, name) for site in cross_attention_sites(pipe.unet)
                      for name in ("to_k", "to_v")]  # fmt: skip


@torch.no_grad()
def test_equal_rows_are_computed_once(pipe, loras):
    """Before a LoRA acts its unconditional half is the base's."""
    late = {name: {"path": path, "start": 0.5} for name, path in loras.items()}
    with engine(pipe, late) as (executor, passes):
        early = executor.evaluate(passes, latents(), T)
        assert executor.calls.rows == 5, (
            "three texts, and b's text encoder reads the empty one, too"
        )
        shared = executor.evaluate(passes, latents(), T, halves="shared")
        assert executor.calls.rows == 9
        executor.at(0.5)
        later = executor.evaluate(passes, latents(), T)
        assert executor.calls.rows == 15
    with engine(pipe, loras, PROMPT.replace("(a)", "(a:0:1)").replace("0.7", "0:0.7")) as (
        whole,
        same,
    ):
        expected = whole.evaluate(same, latents(), T)
        assert whole.calls.rows == 6
    for one, other in zip(early, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, other in zip(shared, expected, strict=True):
        torch.testing.assert_close(one[:, :, 1], other[:, :, 1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(later.noise[0, 1, 0], later.noise[0, 0, 0], atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_one_batch_equals_separate_passes(pipe, loras, halves):
    with engine(pipe, loras) as (executor, passes):
        together = executor.evaluate(passes, latents(), T, halves=halves)
        for k, one in enumerate(passes):
            alone = executor.evaluate([one], latents(), T, halves=halves)
            for both, own in zip(together, alone, strict=True):  # noise, maps
                torch.testing.assert_close(both[0, k], own[0, 0], atol=1e-5, rtol=1e-5)
    count = 2 if halves == "both" else 1
    assert together.noise.shape == (1, 3, count, 4, 16, 16)
    assert together.maps.shape == (1, 3, count, 256, 77)
    base, a, b = together.noise[0]
    assert not torch.allclose(base, a, atol=1e-2)
    assert not torch.allclose(a, b, atol=1e-2)


@torch.no_grad()
def test_each_pass_equals_a_model_with_its_adapters_in_the_weights(double, loras):
    """Of the denoiser with convolutions, and of the text encoder, at the scene's weights."""
    z = latents(dtype=torch.float64)
    with engine(double, loras) as (executor, passes):
        found = executor.evaluate(passes, z, T)
    assert [[(a.name, w) for a, w in p.adapters] for p in passes] == [
        [],
        [("a", 1.0)],
        [("b", 0.7)],
    ]
    for k, one in enumerate(passes):
        unet = with_weights(double.unet, "unet", one.adapters)
        encoder = with_weights(double.text_encoder, "text_encoder", one.adapters)
        ids = double.tokenizer(["", one.text], padding="max_length", return_tensors="pt").input_ids
        states = encoder(ids)[0]
        torch.testing.assert_close(one.states, states, atol=1e-10, rtol=0)
        expected = unet(z.expand(2, -1, -1, -1), T, encoder_hidden_states=states).sample
        torch.testing.assert_close(found.noise[0, k], expected, atol=1e-9, rtol=0)
    texts = [p.text for p in passes]
    assert texts == [
        "a cat and a dog in the meadow",
        "a sks cat and a dog in the meadow",
        "a cat and a zwx dog in the meadow",
    ]


@torch.no_grad()
def test_several_adapters_in_one_pass_are_summed(double, loras):
    z = latents(dtype=torch.float64)
    with engine(double, loras) as (executor, passes):
        a, b = passes[1].adapters[0][0], passes[2].adapters[0][0]
        weights = ((a, 0.3), (b, -0.4), (a, 0.5))  # one adapter twice: weights add up
        mixed = replace(passes[0], adapters=weights)
        found = executor.evaluate([passes[2], mixed, passes[0]], z, T).noise[0, 1]
    unet = with_weights(double.unet, "unet", weights)
    expected = unet(z.expand(2, -1, -1, -1), T, encoder_hidden_states=passes[0].states).sample
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@torch.no_grad()
def test_a_style_acts_in_every_pass(double, loras):
    z = latents(dtype=torch.float64)
    prompt = "a [sks cat](a) in the meadow <lora:b:0.6>"
    with engine(double, loras, prompt) as (executor, passes):
        found = executor.evaluate(passes, z, T).noise[0]
    assert [[a.name for a, _ in p.adapters] for p in passes] == [["b"], ["a", "b"]]
    for k, one in enumerate(passes):
        unet = with_weights(double.unet, "unet", one.adapters)
        expected = unet(z.expand(2, -1, -1, -1), T, encoder_hidden_states=one.states).sample
        torch.testing.assert_close(found[k], expected, atol=1e-9, rtol=0)


@torch.no_grad()
def test_weight_zero_and_zero_delta_are_the_base_model(pipe, loras, tmp_path):
    zeros = {}
    for name, path in loras.items():
        tensors = load_file(path)
        tensors = {k: v * 0 if "lora_up" in k else v for k, v in tensors.items()}
        assert any("lora_up" in key for key in tensors)
        zeros[name] = tmp_path / f"{name}.safetensors"
        save_file(tensors, zeros[name])
    prompt = "a [sks cat](a:0) and a [zwx dog](b:0)"
    with engine(pipe, loras, prompt) as (executor, passes):
        weight_zero = executor.evaluate(passes, latents(), T)
        bare = [replace(p, adapters=()) for p in passes]
        base = executor.evaluate(bare, latents(), T)
    with engine(pipe, zeros, "a [sks cat](a) and a [zwx dog](b)") as (executor, passes):
        zero_delta = executor.evaluate(passes, latents(), T)
    for other in (weight_zero, zero_delta):
        assert torch.equal(other.noise, base.noise)
        assert torch.equal(other.maps, base.maps)


@torch.no_grad()
def test_adapters_of_the_pipeline_go_on_acting_below_the_passes(loras):
    pipe = tiny_pipeline().to(torch.float64)
    plain = copy.deepcopy(pipe.unet)
    pipe.load_lora_weights(loras["b"].parent, weight_name=loras["b"].name, adapter_name="style")
    pipe.set_adapters(["style"], [0.5])
    z = latents(dtype=torch.float64)
    with engine(pipe, {"a": loras["a"]}, "a [sks cat](a) in the meadow") as (executor, passes):
        found = executor.evaluate(passes, z, T).noise[0]
    style = load_adapter("b", loras["b"], unet=plain, text_encoder=tiny_pipeline().text_encoder)
    for k, one in enumerate(passes):
        unet = with_weights(plain, "unet", (*one.adapters, (style, 0.5)))
        expected = unet(z.expand(2, -1, -1, -1), T, encoder_hidden_states=one.states).sample
        torch.testing.assert_close(found[k], expected, atol=1e-7, rtol=0)


@torch.no_grad()
def test_an_adapter_of_another_type_than_the_model_is_cast(pipe, loras):
    unet = copy.deepcopy(pipe.unet).to(torch.bfloat16)
    adapter = load_adapter("a", loras["a"], unet=pipe.unet, text_encoder=pipe.text_encoder)
    text = torch.randn(1, 77, 32, dtype=torch.bfloat16)
    z = latents(dtype=torch.bfloat16)
    base = unet(z, T, encoder_hidden_states=text).sample
    with adapter_hooks(unet, "unet", [adapter]) as hooks, hooks.rows([[(adapter, 1.0)]]):
        out = unet(z, T, encoder_hidden_states=text).sample
    assert out.dtype == torch.bfloat16
    assert not torch.allclose(out, base, atol=1e-2)


def test_a_batch_of_another_size_and_unknown_adapters_are_errors(pipe, loras):
    a, b = (load_adapter(n, loras[n], unet=pipe.unet, text_encoder=pipe.text_encoder) for n in "ab")
    text = torch.randn(3, 77, 32)
    with adapter_hooks(pipe.unet, "unet", [a]) as hooks:
        with pytest.raises(MethodError, match="'b'"), hooks.rows([[(b, 1.0)]]):
            pass
        with (
            hooks.rows([[(a, 1.0)], []]),
            pytest.raises(MethodError, match="3 rows where 2"),
            torch.no_grad(),
        ):
            pipe.unet(latents().expand(3, -1, -1, -1), T, encoder_hidden_states=text)


def test_hooks_that_cannot_all_be_placed_leave_none(pipe, loras):
    adapter = load_adapter("a", loras["a"], unet=pipe.unet, text_encoder=pipe.text_encoder)
    broken = replace(adapter, unet={**adapter.unet, "no.such.layer": None})
    with pytest.raises(AttributeError):
        AdapterHooks(pipe.unet, "unet", [broken])
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_frozen_gives_back_flags_modes_and_checkpointing():
    pipe = tiny_pipeline()
    pipe.unet.train()
    pipe.unet.conv_in.eval()
    pipe.unet.enable_gradient_checkpointing()
    pipe.unet.conv_out.weight.requires_grad_(False)

    def state():
        return (
            [p.requires_grad for p in pipe.unet.parameters()],
            [m.training for m in pipe.unet.modules()],
            [getattr(m, "gradient_checkpointing", None) for m in pipe.unet.modules()],
        )

    before, inside = state(), []

    def interrupted():
        with frozen(pipe.unet, pipe.text_encoder):
            inside.extend(state())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [any(flags) for flags in inside] == [False] * 3
    assert state() == before


# -- recorded attention ----------------------------------------------------------------------------


def test_reading_sites_are_those_of_the_level_nearest_to_16(pipe):
    backbone = StableDiffusion1(pipe)
    named = {site.name: site.factor for site in cross_attention_sites(pipe.unet)}
    assert all(named[name] == 1 for name in READ)
    assert [id(m) for m in backbone.sites] == [id(pipe.unet.get_submodule(name)) for name in READ]


@torch.no_grad()
def test_maps_are_probabilities_and_equal_a_computation_from_queries_and_keys(double, loras):
    z, seen = latents(dtype=torch.float64), {}
    with engine(double, loras) as (executor, passes):
        handles = []
        for site in READ:
            for part in ("to_q", "to_k"):
                layer = double.unet.get_submodule(f"{site}.{part}")
                handles.append(
                    layer.register_forward_hook(
                        lambda _m, _a, out, key=(site, part): seen.update({key: out})
                    )
                )
        maps = executor.evaluate(passes, z, T).maps
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 3, 2, 256, dtype=torch.float64))
    expected = []
    for site in READ:
        heads = double.unet.get_submodule(site).heads
        query, key = (
            seen[site, part].unflatten(-1, (heads, -1)).transpose(1, 2) for part in ("to_q", "to_k")
        )  # (B, H, L or T, C / H)
        scores = torch.einsum("bhlc,bhtc->bhlt", query, key) / query.shape[-1] ** 0.5
        expected.append((scores.exp() / scores.exp().sum(-1, keepdim=True)).mean(1))
    expected = torch.stack(expected).mean(0).unflatten(0, (1, 3, 2))
    torch.testing.assert_close(maps, expected, atol=1e-10, rtol=0)


@torch.no_grad()
def test_recording_does_not_change_the_output(pipe, loras):
    scene = Scene(prompt=PROMPT, loras=loras)
    backbone = StableDiffusion1(pipe)
    with (
        gather_adapters(pipe, scene) as adapters,
        composition(scene, backbone, adapters) as composed,
    ):
        passes = composed.passes()
        rows = [p.adapters for p in passes]
        states = torch.stack([p.states[1] for p in passes])
        with composed.unet_hooks.rows(rows):
            plain = backbone.denoise(latents().expand(3, -1, -1, -1), T, states)
        with executing(composed) as executor:
            recorded = executor.evaluate(passes, latents(), T, halves="conditional")
    assert torch.equal(recorded.noise[0, :, 0], plain)


@torch.no_grad()
def test_early_stop_ends_at_the_last_site_with_the_same_maps(pipe, loras):
    calls = []
    with engine(pipe, loras) as (executor, passes):
        full = executor.evaluate(passes, latents(), T)
        handles = [
            module.register_forward_pre_hook(lambda _m, _a, name=name: calls.append(name))
            for name, module in pipe.unet.named_modules()
        ]
        stopped = executor.evaluate(passes, latents(), T, maps_only=True)
        for handle in handles:
            handle.remove()
        again = executor.evaluate(passes, latents(), T)
    assert stopped.noise is None
    assert torch.equal(stopped.maps, full.maps)
    assert torch.equal(again.noise, full.noise), "the stop is over after its context"
    last = READ[-1].removesuffix("attn2")
    assert READ[0] in calls
    assert calls[-1] == f"{READ[-1]}.to_q", "the keys of its text are known"
    for later in ("conv_out", "conv_norm_out", f"{last}ff", f"{last}norm3"):
        assert later not in calls
        pipe.unet.get_submodule(later)  # the names are right


@torch.no_grad()
def test_an_interrupted_forward_pass_leaves_no_processor_behind(pipe, loras):
    before = pipe.unet.attn_processors

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = pipe.unet.conv_out.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), engine(pipe, loras) as (executor, passes):
        executor.evaluate(passes, latents(), T)
    handle.remove()
    after = pipe.unet.attn_processors
    assert {k: id(p) for k, p in after.items()} == {k: id(p) for k, p in before.items()}
    assert not any(module._forward_hooks for module in pipe.unet.modules())


@torch.no_grad()
@pytest.mark.parametrize("pass_batch", [None, 1, 4, 5])
def test_pictures_and_rows_in_any_grouping_give_the_same(double, loras, pass_batch):
    z = torch.cat([latents(dtype=torch.float64, seed=s) for s in (3, 4)])
    with engine(double, loras) as (executor, passes):
        singles = [executor.evaluate(passes, one, T) for one in z.split(1)]
        executor.mode = MemoryMode(pass_batch)
        before = executor.calls.forward
        both = executor.evaluate(passes, z, T)
        calls = executor.calls.forward - before
    for kind in (0, 1):  # noise, maps
        expected = torch.cat([single[kind] for single in singles])
        torch.testing.assert_close(both[kind], expected, atol=1e-10, rtol=0)
    assert calls == {None: 1, 1: 12, 4: 3, 5: 3}[pass_batch]


# -- gradients -------------------------------------------------------------------------------------

LABELS = [0, 0, 0, 1, 1, 1]


def loss_of(maps):
    """A loss that needs the maps of all passes at once, by picture."""
    picked = [torch.cat([own[:, -1, :, 2], own[:, -1, :, 5]]) for own in maps]
    return torch.stack([info_nce(normalized(one), LABELS, 0.5) for one in picked])


def scaled(z):
    return 0.6 * z + 0.01 * z**2


@pytest.mark.parametrize("mode", ["together", "one_by_one"])
@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_gradient_equals_autograd_through_the_whole_denoiser(double, loras, mode, halves):
    z = latents(dtype=torch.float64)
    with engine(double, loras) as (executor, passes):
        loss, found, _ = executor.gradient(passes, z, scaled, T, loss_of, halves=halves, mode=mode)
        leaf = z.clone().requires_grad_()
        maps = executor.evaluate(passes, scaled(leaf), T, halves=halves).maps  # not stopped
        value = loss_of(maps)
        expected = torch.autograd.grad(value, leaf)[0]
    assert loss.shape == (1,)
    torch.testing.assert_close(loss, value.detach(), atol=1e-10, rtol=0)
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, atol=1e-8 * expected.abs().max().item(), rtol=1e-8)
    assert not found.requires_grad


@pytest.mark.parametrize("mode", ["together", "one_by_one"])
def test_each_picture_has_a_loss_and_a_gradient_of_its_own(double, loras, mode):
    z = torch.cat([latents(dtype=torch.float64, seed=s) for s in (3, 4)])
    with engine(double, loras) as (executor, passes):
        losses, found, _ = executor.gradient(passes, z, scaled, T, loss_of, mode=mode)
        alone = [executor.gradient(passes, one, scaled, T, loss_of) for one in z.split(1)]
    torch.testing.assert_close(losses, torch.cat([loss for loss, *_ in alone]), atol=1e-10, rtol=0)
    expected = torch.cat([gradient for _, gradient, _ in alone])
    torch.testing.assert_close(found, expected, atol=1e-8 * expected.abs().max().item(), rtol=1e-8)


def test_gradient_equals_finite_differences(double, loras):
    z = latents(dtype=torch.float64)
    direction = latents(dtype=torch.float64, seed=9)
    direction /= direction.norm()
    with engine(double, loras) as (executor, passes):
        _, gradient, _ = executor.gradient(passes, z, scaled, T, loss_of)
        with torch.no_grad():
            ahead, behind = (
                loss_of(executor.evaluate(passes, scaled(z + s * direction), T).maps)
                for s in (1e-4, -1e-4)
            )
    slope = ((ahead - behind) / 2e-4).item()
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4)


def test_no_weight_gets_a_gradient(double, loras):
    wanting = [p for p in double.unet.parameters() if p.requires_grad]
    assert wanting, "a fresh pipeline's weights ask for gradients"
    with engine(double, loras) as (executor, passes):
        executor.gradient(passes, latents(dtype=torch.float64), scaled, T, loss_of)
    assert all(p.grad is None for p in double.unet.parameters())
    assert all(p.requires_grad for p in wanting)


@pytest.mark.parametrize("mode", ["together", "one_by_one"])
def test_gradient_checkpointing_in_the_users_model_changes_nothing(loras, mode):
    pipe = tiny_pipeline().to(torch.float64)
    z, found = latents(dtype=torch.float64), []
    for checkpointing in (False, True):
        if checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        with engine(pipe, loras) as (executor, passes):
            executor.gradient(passes, z, scaled, T, loss_of, mode=mode)
            found.append(executor.gradient(passes, z, scaled, T, loss_of, mode=mode)[1])
    assert pipe.unet.is_gradient_checkpointing
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["together", "one_by_one"])
@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_a_checkpointed_gradient_is_the_same_and_keeps_less(double, loras, mode, halves):
    z, found, peaks = latents(dtype=torch.float64), [], []
    for checkpointing in (False, True):
        with engine(double, loras) as (executor, passes):
            executor.mode = MemoryMode(checkpointing=checkpointing)
            with LiveBytes() as seen:
                found.append(executor.gradient(
                    passes, z, scaled, T, loss_of, halves=halves, mode=mode
                ))  # fmt: skip
            peaks.append(seen.peak)
            after = executor.gradient(passes, z, scaled, T, loss_of, halves=halves, mode=mode)
            torch.testing.assert_close(after[1], found[-1][1], atol=0, rtol=0)
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-12, rtol=1e-9)
    assert peaks[1] < 0.6 * peaks[0]
    assert not any(getattr(m, "gradient_checkpointing", False) for m in double.unet.modules())


@torch.no_grad()
@pytest.mark.parametrize("pass_batch", [None, 1, 3])
def test_one_unconditional_half_for_all_is_the_first_passs(double, loras, pass_batch):
    z = torch.cat([latents(dtype=torch.float64, seed=s) for s in (3, 4)])
    with engine(double, loras) as (executor, passes):
        own = executor.evaluate(passes, z, T)
        executor.mode, before = MemoryMode(pass_batch), executor.calls.rows
        shared = executor.evaluate(passes, z, T, halves="shared")
    assert executor.calls.rows - before == 2 * 4  # instead of 2 * 6
    for found, expected in zip(shared, own):  # noise, maps
        torch.testing.assert_close(found[:, :, 1], expected[:, :, 1], atol=1e-12, rtol=0)
        first = expected[:, :1, 0].expand_as(expected[:, :, 0])
        torch.testing.assert_close(found[:, :, 0], first, atol=1e-12, rtol=0)
    assert not torch.allclose(shared.noise, own.noise)


def test_large_pictures_are_differentiated_pass_by_pass(pipe, loras, monkeypatch):
    z = latents()
    with engine(pipe, loras) as (executor, passes):
        for limit, calls in ((3 * 256, 1), (3 * 256 - 1, 6)):  # one graph; or all, then one by one
            monkeypatch.setattr("loraweave.denoise.executor.LARGEST_JOINT_GRAPH", limit)
            before = executor.calls.forward
            executor.gradient(passes, z, lambda z: z, T, loss_of)
            assert executor.calls.forward - before == calls


# -- the loop --------------------------------------------------------------------------------------


@torch.no_grad()
def test_fusing_noise_equals_fusing_latents_under_ddim(double, loras):
    """DDIM's step is affine in the noise, and the masks' weights sum to 1 (section 3.3)."""
    method = CLoRA({"variant": "faithful", "max_update_step": 0})
    with engine(double, loras) as (executor, _):
        scheduler = StepScheduler(double.scheduler, 5, torch.device("cpu"), None)
        (stage,) = method.stages(executor.composition, executor, scheduler)
        by_noise = by_latent = latents(dtype=torch.float64)
        for i, t in enumerate(scheduler.timesteps):
            by_noise = scheduler.step(stage.predict(by_noise, i, t), t, by_noise)

            out = executor.evaluate(stage.passes, by_latent, t)
            masks = resized(stage.masks(out, by_latent), (16, 16))
            every = [guided(out.noise[:, k], 7.5) for k in range(3)]
            stepped = [scheduler.step(noise, t, by_latent) for noise in every]  # as one half
            by_latent = fused(torch.stack(stepped, 1)[:, :, None], masks)[:, 0]
    torch.testing.assert_close(by_noise, by_latent, atol=1e-10, rtol=0)
    overlap = torch.stack(stage.trace.masks).sum(2)
    assert overlap.amax() == 2, "a case without overlap would prove less"


def test_more_steps_than_the_scheduler_has_timesteps_are_refused():
    scheduler = DDIMScheduler(num_train_timesteps=20, steps_offset=1)
    with pytest.raises(SceneError, match=r"20 steps are too many .* timestep 20 and knows 0 to 19"):
        StepScheduler(scheduler, 20, torch.device("cpu"), None)
    assert len(StepScheduler(scheduler, 19, torch.device("cpu"), None).timesteps) == 19


def test_the_pipelines_scheduler_is_never_touched(pipe):
    scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    before = copy.deepcopy(vars(scheduler))
    own = StepScheduler(scheduler, 4, torch.device("cpu"), None)
    z = own.initial(latents())
    for t in own.timesteps:
        z = own.step(own.scale(z, t), t, z)
    after = vars(scheduler)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if torch.is_tensor(value) else value == after[name]
        assert same, name


@pytest.mark.parametrize("stop_at", [0, 2])
def test_the_loop_ends_after_the_step_that_was_interrupted(pipe, stop_at):
    class Still(Stage):
        def __init__(self, scheduler):
            super().__init__(scheduler)
            self.seen = []

        def predict(self, z, i, t):
            self.seen.append(i)
            return torch.zeros_like(z)

    stage = Still(StepScheduler(pipe.scheduler, 4, torch.device("cpu"), None))
    denoise([stage], latents(), interrupted=lambda: stage.seen[-1] == stop_at)
    assert stage.seen == list(range(stop_at + 1))


def test_guidance():
    noise = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1, 1)
    assert guided(noise, 7.5).item() == 1 + 7.5 * 2
    assert [guided(noise, scale).item() for scale in (1, 0.5, 0)] == [3, 3, 3], "as in diffusers"


# -- pictures that are not square ------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("h", "w", "row", "column"), [(16, 24, 2, 20), (24, 16, 20, 2)])
def test_maps_lie_as_the_latent_does(pipe, loras, h, w, row, column):
    """A change at one cell of the latent shows in the maps at that cell."""
    z = latents(h, w)
    changed = z.clone()
    changed[:, :, row, column] += 5
    with engine(pipe, loras, height=2 * h, width=2 * w) as (executor, passes):
        size = executor.backbone.map_size(z)
        before, after = (executor.evaluate(passes, x, T).maps for x in (z, changed))
    assert size == (h, w)
    change = (after - before)[0, 1, 1].abs().sum(-1).unflatten(0, size)
    place = divmod(change.argmax().item(), w)
    assert abs(place[0] - row) <= 2  # the tiny model sees a few cells at once
    assert abs(place[1] - column) <= 2


@torch.no_grad()
def test_sizes_that_the_levels_do_not_divide(pipe, loras):
    with engine(pipe, loras) as (executor, passes):
        out = executor.evaluate(passes, latents(17, 21), T)
        assert executor.backbone.map_size(latents(17, 21)) == (17, 21)
    assert out.noise.shape[-2:] == (17, 21)
    assert out.maps.shape[3] == 17 * 21


@torch.no_grad()
@pytest.mark.parametrize(("h", "w"), [(17, 21), (16, 26)])
def test_map_size_of_a_deeper_level_follows_the_denoisers_own_rounding(h, w):
    backbone = StableDiffusion1(tiny_pipeline())
    backbone.factor = 2  # only the rule is asked here: one stride-2 convolution of the real model
    down = backbone.unet.down_blocks[0].downsamplers[0]
    assert down(torch.zeros(1, 32, h, w)).shape[-2:] == backbone.map_size(latents(h, w))
