"""Composite and Switch, against stock pipelines."""

import pytest
import torch

import loraweave
from loraweave.methods.composite import dominance_weights, key_steps
from loraweave.methods.switch import Switch
from prepared import PROMPT
from tiny import tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning")

TEXT = "a sks cat and a zwx dog in the meadow"
WEIGHTS = {"a": 1.0, "b": 0.7}


@pytest.fixture(scope="module")
def stock(loras):
    """A pipeline with both LoRAs loaded by diffusers."""
    pipe = tiny_pipeline().to(torch.float64)
    for name, path in loras.items():
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    return pipe


def seed(value=4):
    return torch.Generator().manual_seed(value)


def draw(loras, method, steps=4, prompt=PROMPT, **settings):
    return loraweave.compose(
        tiny_pipeline().to(torch.float64), prompt, loras=loras, method=method, settings=settings,
        num_inference_steps=steps, generator=seed(), output_type="latent", progress=False,
    )  # fmt: skip


def use(pipe, *names):
    pipe.set_adapters(list(names), [WEIGHTS[name] for name in names])


@torch.no_grad()
def embedded(pipe, *names):
    use(pipe, *names)
    return pipe.encode_prompt(TEXT, "cpu", 1, True, "")


@torch.no_grad()
@pytest.mark.parametrize("text", ["own", "sum"])
def test_composite_is_the_mean_of_stock_predictions_at_every_step(loras, stock, text):
    found = draw(loras, "composite", text=text)
    texts = {n: embedded(stock, *([n] if text == "own" else "ab")) for n in "ab"}
    stock.scheduler.set_timesteps(4)
    z = torch.randn((1, 4, 16, 16), generator=seed(), dtype=torch.float64)
    for t in stock.scheduler.timesteps:
        halves = []
        for name in "ab":
            use(stock, name)
            conditional, unconditional = texts[name]
            states = torch.cat([unconditional, conditional])
            halves.append(stock.unet(z.expand(2, -1, -1, -1), t, states).sample)
        unconditional, conditional = torch.stack(halves).mean(0)
        noise = unconditional + 7.5 * (conditional - unconditional)
        z = stock.scheduler.step(noise[None], t, z).prev_sample
    torch.testing.assert_close(found.images, z, atol=1e-7, rtol=0)
    assert found.info["rows"] == 4 * 2 * 2


@pytest.mark.parametrize("every", [2, 3])
def test_switch_as_its_authors_have_it_is_a_stock_pipeline_with_a_callback(loras, stock, every):
    steps, on = 9, ["a"]
    use(stock, "a")
    conditional, unconditional = embedded(stock, "a")

    def callback(pipe, i, t, values):
        if i > 0 and i % every == 0:
            on.append("b" if on[-1] == "a" else "a")
            use(pipe, on[-1])
        return values

    expected = stock(
        prompt_embeds=conditional, negative_prompt_embeds=unconditional, generator=seed(),
        num_inference_steps=steps, output_type="latent", callback_on_step_end=callback,
    ).images  # fmt: skip
    settings = {"every": every, "first_block_extra": True, "text": "first"}
    found = draw(loras, "switch", steps, **settings)
    torch.testing.assert_close(found.images, expected, atol=1e-7, rtol=0)
    assert found.info["rows"] == steps * 2
    assert len(on) > 2


def test_which_lora_is_on(loras):
    class Two:
        passes = (0, 1, 2)

    def turns(**settings):
        stage = Two()
        stage.settings = Switch(settings).settings
        from loraweave.methods.switch import SwitchStage

        return [SwitchStage.on(stage, i) for i in range(18)]

    assert turns() == [0] * 5 + [1] * 5 + [2] * 5 + [0] * 3
    assert turns(first_block_extra=True) == [0] * 6 + [1] * 5 + [2] * 5 + [0] * 2


def test_one_lora_makes_all_three_the_same(loras):
    one, prompt = {"b": loras["b"]}, "a [zwx dog](b:0.7) in the meadow"
    expected = draw(one, "merge", prompt=prompt).images
    for method in ("composite", "switch"):
        found = draw(one, method, prompt=prompt).images
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_composite_with_own_prompts_is_clora_without_masks_updates_and_base(loras):
    plain = {"masks": False, "max_update_step": 0, "base_pass": False}
    found = draw(loras, "composite", prompts="own").images
    torch.testing.assert_close(found, draw(loras, "clora", **plain).images, atol=1e-9, rtol=0)


def test_dominance():
    assert dominance_weights(2) == pytest.approx((0.8, 1.2))
    for n in range(2, 9):
        low, high = dominance_weights(n)
        assert low * (n - 1) + high == pytest.approx(n)
        assert high / low == pytest.approx(n - 0.5)
    assert key_steps(16, 4) == [0, 4, 8, 12]
    assert key_steps(16, 0) == [0, 2, 4, 6, 9, 12, 14]
    assert key_steps(5, 1) == [0, 1, 2, 3, 4]


def test_dominance_changes_the_picture_and_goes_round(loras):
    plain, weighed = (draw(loras, "composite", dominance=d).images for d in (False, True))
    assert not torch.allclose(plain, weighed, atol=1e-3)
