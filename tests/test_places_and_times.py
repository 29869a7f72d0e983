"""LoRAs that act on one subject, on the background, for a while, or in some blocks."""

import pytest
import torch
from diffusers import DDIMScheduler

import loraweave
from loraweave import LoraError, MethodError, SceneError
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.denoise.composition import composition
from loraweave.lora.adapter import load_adapter
from loraweave.lora.blocks import with_blocks
from loraweave.lora.pipeline import gather_adapters
from loraweave.lora_ref import BlockWeights, LoraRef
from loraweave.methods.clora import concept_groups
from loraweave.prompt import full_prompt
from loraweave.scene import Scene
from tiny import random_lora, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning")

PROMPT = "a [sks cat](a) with a [ball](hat) and a [zwx dog](b) in the [river](place) <lora:ink:0.5>"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline().to(torch.float64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, plain = tmp_path_factory.mktemp("loras"), tiny_pipeline()
    names = ("a", "b", "hat", "place", "ink")
    return {
        name: random_lora(
            plain,
            folder / f"{name}.safetensors",
            seed=n,
            convolutions=n == 1,
            text_encoder=name == "hat",
        )
        for n, name in enumerate(names)
    }


def scene_of(files, prompt=PROMPT, **on):
    used = {
        name: path for name, path in files.items() if f"({name}" in prompt or f":{name}" in prompt
    }
    return Scene(
        prompt=prompt,
        loras={n: LoraRef(path=path, on=on.get(n)) for n, path in used.items()},
    )


def passes_of(pipe, scene):
    with (
        gather_adapters(pipe, scene) as adapters,
        composition(scene, StableDiffusion1(pipe), adapters) as composed,
    ):
        return composed.passes(), composed.merged_pass()


def test_everything_acts_where_it_is_put(pipe, files):
    scene = scene_of(files, hat="a", place="background", ink="b")
    assert [c.name for c in scene.concepts] == ["a", "b"]
    assert {s.name: s.on for s in scene.styles} == {"hat": "a", "place": "background", "ink": "b"}
    (base, cat, dog), merged = passes_of(pipe, scene)
    names = [[adapter.name for adapter, _ in p.adapters] for p in (base, cat, dog, merged)]
    assert names == [["place"], ["a", "hat"], ["b", "ink"], ["a", "b", "hat", "place", "ink"]]
    assert base.text == "a cat with a ball and a dog in the river"
    assert cat.text == "a sks cat with a ball and a dog in the river"
    assert merged.text == "a sks cat with a ball and a zwx dog in the river"
    (ball,) = set(cat.words.of("a")) - {2, 3}
    assert ball > 3, "what is worn belongs to its wearer"
    assert dog.words.nouns["a"] == [2]
    groups = concept_groups([base, cat, dog], ["a", "b"])
    assert (1, ball, 0) in groups
    assert not any(token == ball for k, token, _ in groups if k != 1)


def test_a_style_acts_everywhere_unless_it_is_put_somewhere(pipe, files):
    prompt = "a [sks cat](a) and a dog <lora:ink:0.5>"
    for on, expected in (
        (None, [["ink"], ["a", "ink"]]),
        ("everywhere", [["ink"], ["a", "ink"]]),
        ("background", [["ink"], ["a"]]),
        ("a", [[], ["a", "ink"]]),
    ):
        passes, _ = passes_of(pipe, scene_of(files, prompt, ink=on))
        assert [[adapter.name for adapter, _ in p.adapters] for p in passes] == expected


def test_a_place_must_be_one(files):
    with pytest.raises(SceneError, match=r"loras\.ink\.on is 'c'.*it may be a, b, background"):
        scene_of(files, "a [cat](a) and a [dog](b) <lora:ink:1>", ink="c")
    with pytest.raises(SceneError, match=r"loras\.hat\.on is 'place'"):
        scene_of(files, hat="place", place="background")


def draw(pipe, scene, method="clora", steps=4, settings=None, **changes):
    settings = settings or {"max_update_step": 0} if method == "clora" else settings
    return loraweave.compose(
        pipe, scene.replace(num_inference_steps=steps, **changes), method=method,
        settings=settings, output_type="latent", progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["merge", "clora", "composite", "switch"])
def test_a_style_on_one_subject_is_another_picture(pipe, files, method):
    prompt = "a [sks cat](a) and a [zwx dog](b) <lora:ink:1>"
    one, other, everywhere = (
        draw(
            pipe, scene_of(files, prompt, ink=on), method,
            settings={"every": 2} if method == "switch" else None,
        ).images
        for on in ("a", "b", None)
    )  # fmt: skip
    if method == "merge":  # it has one pass only
        assert torch.equal(one, other)
        assert torch.equal(one, everywhere)
    else:
        assert not torch.allclose(one, other, atol=1e-3)
        assert not torch.allclose(one, everywhere, atol=1e-3)


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        (LoraRef(), {0: 1, 0.5: 1, 0.99: 1}),
        (LoraRef(start=0.25, stop=0.5), {0.24: 0, 0.25: 1, 0.49: 1, 0.5: 0}),
        (LoraRef(start=0.25), {0.24: 0, 0.25: 1, 0.99: 1, 1: 1}),
        (LoraRef(schedule=((0.2, 1.0), (0.6, 0.0))), {0: 1, 0.2: 1, 0.3: 0.75, 0.6: 0, 0.9: 0}),
        (LoraRef(schedule=((0.0, 0.3),)), {0: 0.3, 0.7: 0.3}),
    ],
)
def test_strength_over_time(ref, expected):
    assert {f: ref.strength(f) for f in expected} == pytest.approx(expected)
    assert ref.scheduled == (ref != LoraRef())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": 0.5, "stop": 0.5}, "start 0.5 is not before stop 0.5"),
        ({"start": 0.5, "schedule": [[0, 1]]}, "either start and stop or a schedule"),
        ({"schedule": [[0.5, 1], [0.5, 0]]}, "do not rise"),
        ({"stop": 1.5}, "stop"),
        ({"weight": {"unet": {"down": {"blok_1": 1}}}}, "no block; write block_0"),
    ],
)
def test_bad_times_and_blocks(given, message):
    with pytest.raises(SceneError, match=message):
        LoraRef(**given)


@pytest.mark.parametrize("method", ["merge", "clora", "masked"])
def test_a_lora_that_stops_is_off_from_then_on(pipe, files, method):
    """At 4 steps and stop .5: two steps with it and two without, as with a stock callback."""
    prompt = "a [sks cat](b) in the river"
    settings = {"masked": {"layout": "strips", "text": "own"}}.get(method)
    stops = Scene(prompt=prompt, loras={"b": LoraRef(path=files["b"], stop=0.5)})
    found = draw(pipe, stops, method, settings=settings).images
    stock = tiny_pipeline().to(torch.float64)
    stock.load_lora_weights(files["b"].parent, weight_name="b.safetensors", adapter_name="b")

    def callback(own, i, t, values):
        if i == 1:
            own.disable_lora()
        return values

    expected = stock(
        "a sks cat in the river", num_inference_steps=4, output_type="latent",
        generator=torch.Generator().manual_seed(0), callback_on_step_end=callback,
    ).images  # fmt: skip
    if method == "clora":  # the base model draws what the one concept does not claim
        assert not torch.allclose(found, draw(pipe, stops.replace(loras={"b": files["b"]})).images)
    else:
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("settings", [{"rule": "ties"}, {"rank": 2}])
def test_what_is_one_lora_cannot_stop_in_part(pipe, files, settings):
    loras = {"b": LoraRef(path=files["b"], stop=0.5)}
    with pytest.raises(MethodError, match="cannot let b act for a while"):
        draw(pipe, Scene(prompt="a [sks cat](b)", loras=loras), "merge", settings=settings)


def test_what_would_be_left_out_is_refused(pipe, files):
    behind = scene_of(files, "a [sks cat](a) <lora:ink:1>", ink="background")
    with pytest.raises(MethodError, match=r"without the base pass .* ink"):
        draw(pipe, behind, "clora", settings={"base_pass": False})
    worn = scene_of(files, "a [sks cat](a) with a [ball](hat)", hat="a")
    boxed = worn.replace(regions={"a": {"box": (0, 0, 1, 1)}})
    with pytest.raises(MethodError, match="regions for a; leave out one"):
        draw(pipe, boxed, "masked", settings={"layout": "strips"})


def test_who_reads_the_text_brings_what_is_on_them(pipe, files):
    """`composite` with text `sum`: the text encoder has all LoRAs, in every pass."""
    scene = scene_of(files, "a [sks cat](a) and a [zwx dog](b) with a [ball](hat)", hat="b")
    with (
        gather_adapters(pipe, scene) as adapters,
        composition(scene, StableDiffusion1(pipe), adapters) as composed,
    ):
        cat, dog = scene.concepts
        full = composed.make_pass([cat, dog], prompt=full_prompt(scene.parsed))
        read = composed.make_pass([cat], prompt=full_prompt(scene.parsed), readers=[cat, dog])
        assert torch.equal(read.states, full.states)
        alone = composed.make_pass([cat], prompt=full_prompt(scene.parsed))
        assert not torch.allclose(alone.states, full.states)
        assert [adapter.name for adapter, _ in read.adapters] == ["a"]


# -- blocks ----------------------------------------------------------------------------------------


def test_block_weights_are_those_of_diffusers(pipe, files):
    """On attention layers, where diffusers applies them."""
    weights = {"down": {"block_0": [0.2]}, "mid": 0.5, "up": {"block_1": [0.3, -0.4]}}
    scene = Scene(
        prompt="a [sks cat](a) in the river",
        loras={"a": LoraRef(path=files["a"], weight={"unet": weights})},
    )
    found = draw(pipe, scene, "merge").images
    stock = tiny_pipeline().to(torch.float64)
    stock.load_lora_weights(files["a"].parent, weight_name="a.safetensors", adapter_name="a")
    stock.set_adapters("a", {"unet": weights})
    stock.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    expected = stock(
        "a sks cat in the river", num_inference_steps=4, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    plain = draw(pipe, Scene(prompt=scene.prompt, loras={"a": files["a"]}), "merge").images
    assert not torch.allclose(found, plain, atol=1e-3)


def test_a_number_holds_for_every_layer_of_a_block(files):
    plain = tiny_pipeline()
    own = load_adapter("b", files["b"], unet=plain.unet, text_encoder=plain.text_encoder)
    scaled = with_blocks(own, BlockWeights(down=0.25, mid=0.5, up={"block_1": -1.0}))
    for path, update in scaled.unet.items():
        factor = 1.0
        if path.startswith("down_blocks"):
            factor = 0.25
        elif path.startswith("mid_block"):
            factor = 0.5
        elif path.startswith("up_blocks.1"):
            factor = -1.0
        torch.testing.assert_close(update.weight(), factor * own.unet[path].weight())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"down": {"block_7": 1.0}}, r"down\.block_7 and nothing there"),
        ({"up": {"block_1": [1.0]}}, r"1 weights for the attentions of up\.block_1, which has 2"),
    ],
)
def test_blocks_that_are_not_there(files, weights, message):
    plain = tiny_pipeline()
    own = load_adapter("a", files["a"], unet=plain.unet, text_encoder=plain.text_encoder)
    with pytest.raises(LoraError, match=message):
        with_blocks(own, BlockWeights(**weights))
