"""What every method promises, and what CLoRA does in particular."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import loraweave
from loraweave import LoraError, MethodError, SceneError
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.denoise.executor import Evaluation, Executor, Gradient
from loraweave.denoise.loop import StepScheduler, guided
from loraweave.detect import SEGMENTERS
from loraweave.detect.registry import Entry
from loraweave.layout.masks import fused, resized
from loraweave.methods import CLoRA, Merge, get_method
from loraweave.methods.clora import concept_groups
from loraweave.methods.described import described
from loraweave.scene import Scene
from prepared import PROMPT, composed_on, stage_of
from tiny import tiny_pipeline

pytestmark = pytest.mark.filterwarnings(  # diffusers'
    "ignore:Already found a .peft_config.:UserWarning"
)

QUICK = {  # others: as they are
    "clora": {"max_update_step": 1, "refinements": 1},
    "masked": {"layout": "strips"},
    "regional": {"layout": "strips"},
    "lora_composer": {"layout": "strips", "max_updates": 1},
    "omg": {"segmenter": "halves", "start": 0.0},
    "attend_and_excite": {"max_update_step": 1, "refinements": 1},
    "conform": {"max_update_step": 1, "refinements": 1},
}
NOUNS = ("cat", "dog", "bird", "robot", "ball", "house", "river", "photo")


class Halves:
    """A segmenter that finds cats in the left half and everything else in the right one."""

    def find(self, image, noun):
        mask = np.zeros((8, 8), dtype=bool)
        mask[:, slice(0, 4) if noun == "cat" else slice(4, 8)] = True
        return [mask]


@pytest.fixture(autouse=True)
def halves(monkeypatch):
    monkeypatch.setitem(SEGMENTERS, "halves", Entry(Halves))


SCHEDULERS = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
]


def draw(pipe, loras, method="clora", prompt=PROMPT, **changes):
    """Two quick steps; latents as output unless asked otherwise."""
    given = {"num_inference_steps": 2, "output_type": "latent", "settings": QUICK.get(method)}
    given |= {"generator": torch.Generator().manual_seed(4), "progress": False}
    return loraweave.compose(pipe, prompt, loras=loras, method=method, **given | changes)


def seed(value):
    return torch.Generator().manual_seed(value)


def snapshot(pipe):
    """Everything about a pipeline that a run could leave behind: values, and object identities."""
    seen = {"vars": {k: id(v) for k, v in vars(pipe).items()}}
    seen["scheduler"] = repr(vars(pipe.scheduler))
    for name in ("unet", "text_encoder", "vae"):
        model = getattr(pipe, name)
        seen[name] = {
            "modules": [(path, id(module)) for path, module in model.named_modules()],
            "attributes": [
                {k: id(v) for k, v in vars(m).items() if k not in ("training", "_active_adapter")}
                for m in model.modules()
            ],
            "hooks": [
                [(id(hooks), list(hooks)) for k, hooks in vars(m).items() if k.endswith("_hooks")]
                for m in model.modules()
            ],
            "training": [module.training for module in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "no_grad": [p.grad is None for p in model.parameters()],
        }
    seen["adapters"] = (pipe.get_list_adapters(), pipe.get_active_adapters())
    return seen


def weights(pipe):
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "vae": pipe.vae}
    return {
        f"{n} {k}": v.clone() for n, model in parts.items() for k, v in model.state_dict().items()
    }


def assert_same_weights(before, after):
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


class Stop(Exception):
    """What a callback raises in these tests."""


@pytest.mark.parametrize("method", loraweave.METHODS)
class TestContract:
    """Every method, by its name."""

    def test_same_seed_same_picture_other_seed_other_picture(self, pipe, loras, method):
        one = draw(pipe, loras, method, generator=seed(1)).images
        assert torch.equal(draw(pipe, loras, method, generator=seed(1)).images, one)
        assert not torch.allclose(draw(pipe, loras, method, generator=seed(2)).images, one)

    def test_without_guidance_there_is_no_unconditional_half(self, loras, method, monkeypatch):
        pipe = tiny_pipeline().to(torch.float64)
        lean = draw(pipe, loras, method, guidance_scale=1.0)
        monkeypatch.setattr(Executor, "halves", "both")
        whole = draw(pipe, loras, method, guidance_scale=1.0)
        torch.testing.assert_close(lean.images, whole.images, atol=1e-9, rtol=0)
        assert lean.info["rows"] < whole.info["rows"]

    def test_loras_matter(self, pipe, loras, method):
        with_loras = draw(pipe, loras, method).images
        without = draw(pipe, loras, method, "a [sks cat](a:0) and a [zwx dog](b:0) in the meadow")
        assert not torch.allclose(with_loras, without.images, atol=1e-2)

    @pytest.mark.parametrize("end", [None, Stop, KeyboardInterrupt])
    def test_the_pipeline_comes_back_as_it_was(self, loras, method, end):
        pipe = tiny_pipeline()
        pipe.unet.train()
        pipe.unet.mid_block.eval()
        pipe.unet.conv_in.weight.requires_grad_(False)
        before, weights_before = snapshot(pipe), weights(pipe)

        def callback(pipe, i, t, values):
            if end:
                raise end
            return values

        if end:
            with pytest.raises(end):
                draw(pipe, loras, method, callback_on_step_end=callback)
        else:
            draw(pipe, loras, method, callback_on_step_end=callback, output_type="pil")
        assert snapshot(pipe) == before
        assert_same_weights(weights_before, weights(pipe))

    @pytest.mark.parametrize("kind", ["models", "layers"])
    def test_models_may_be_offloaded(self, pipe, loras, method, kind):
        """As accelerate's hooks do for diffusers, here with the processor as the device."""
        expected = draw(pipe, loras, method, output_type="np")
        other, hook, cpu = tiny_pipeline(), None, torch.device("cpu")
        for name in ("text_encoder", "unet", "vae"):
            if kind == "models":
                _, hook = cpu_offload_with_hook(getattr(other, name), cpu, hook)
            else:
                cpu_offload(getattr(other, name), cpu)
        found = draw(other, loras, method, output_type="np")
        np.testing.assert_allclose(found.images, expected.images, atol=1e-4)
        assert found.info["base"] == expected.info["base"]

    def test_checkpointing_changes_nothing(self, double, loras, method):
        expected, found = (
            draw(double, loras, method, checkpointing=on).images for on in (False, True)
        )
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
        modules = double.unet.modules()
        assert not any(getattr(m, "gradient_checkpointing", False) for m in modules)

    def test_weight_zero_is_a_lora_of_zeros(self, pipe, loras, method, tmp_path):
        zeros = {}
        for name, path in loras.items():
            tensors = load_file(path)
            save_file(
                {k: v * 0 if "lora_up" in k else v for k, v in tensors.items()},
                zeros.setdefault(name, tmp_path / f"{name}.safetensors"),
            )
        weightless = "a [sks cat](a:0) and a [zwx dog](b:0) in the meadow"
        expected = draw(pipe, zeros, method).images
        assert torch.equal(draw(pipe, loras, method, weightless).images, expected)
        by_ref = {n: loraweave.LoraRef(path=path, weight=0) for n, path in loras.items()}
        assert torch.equal(draw(pipe, by_ref, method).images, expected)

    def test_weights_of_blocks_and_over_time_are_numbers_where_they_are_all_alike(
        self, pipe, loras, method
    ):
        """All blocks at .5, or a factor of .5 at every time, is half the weight of the U-Net."""

        def weighted(**given):
            # One file for both: the other one also has layers outside of all blocks.
            files = {name: loraweave.LoraRef(path=loras["a"], **given) for name in "ab"}
            return draw(pipe, files, method).images

        half = {"unet": 0.5, "text_encoder": 1.0}
        blocks = {"down": 0.5, "mid": 0.5, "up": 0.5}
        expected = weighted(weight=half)
        by_block = weighted(weight={"unet": blocks, "text_encoder": 1.0})
        by_time = weighted(schedule=[(0.0, 0.5)])
        assert torch.allclose(by_block, expected, atol=1e-5)
        assert torch.allclose(by_time, expected, atol=1e-5)
        others = [
            weighted(),
            weighted(weight={"unet": blocks | {"up": 0.0}, "text_encoder": 1.0}),
            weighted(weight={"unet": 0.5, "text_encoder": 0.0}),
            weighted(weight=half, stop=0.5),
        ]
        assert not any(torch.allclose(other, expected, atol=1e-4) for other in others)

    def test_two_pictures_are_two_single_calls(self, pipe, loras, method):
        scene = Scene(prompt=PROMPT, loras=loras, num_inference_steps=2, seed=11)
        given = {"method": method, "settings": QUICK.get(method), "output_type": "latent"}
        both = loraweave.compose(pipe, scene, **given, num_images_per_prompt=2)
        assert both.images.shape == (2, 4, 16, 16)
        assert both.info["seeds"] == [11, 12]
        assert len(both.masks) == len(both.maps) == len(both.info["losses"]) == 2
        for n in range(2):
            single = loraweave.compose(pipe, scene.replace(seed=11 + n), **given)
            assert torch.equal(both.images[n : n + 1], single.images)
            assert torch.equal(both.masks[n], single.masks[0])
        by_generator = draw(
            pipe, loras, method, num_images_per_prompt=2, generator=[seed(11), seed(12)]
        )
        assert torch.equal(by_generator.images, both.images)

    def test_pictures_of_a_batch_are_single_pictures(self, loras, method):
        pipe = tiny_pipeline().to(torch.float64)
        given = {"num_images_per_prompt": 3, "num_inference_steps": 3}
        batch, singles = (
            draw(
                pipe, loras, method, **given, batch_size=size,
                generator=[seed(n) for n in (11, 12, 13)],
            )
            for size in (2, 1)
        )  # fmt: skip
        torch.testing.assert_close(batch.images, singles.images, atol=1e-8, rtol=0)
        for one, other in zip((*batch.masks, *batch.maps), (*singles.masks, *singles.maps)):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
        assert batch.info["seeds"] == [11, 12, 13]
        for one, other in zip(batch.info["losses"], singles.info["losses"]):
            np.testing.assert_allclose(one, other, atol=1e-8)

    def test_order_of_the_lora_files_does_not_matter(self, pipe, loras, method):
        turned = dict(reversed(loras.items()))
        assert list(turned) != list(loras)
        expected = draw(pipe, loras, method).images
        assert torch.equal(draw(pipe, turned, method).images, expected)

    def test_latents_replace_the_noise(self, pipe, loras, method):
        noise = torch.randn((1, 4, 16, 16), generator=seed(4))
        kept = noise.clone()
        expected = draw(pipe, loras, method, generator=seed(4)).images
        given = draw(pipe, loras, method, latents=noise, generator=None).images
        assert torch.equal(given, expected)
        assert torch.equal(noise, kept), "the caller's tensor is not written to"

    def test_output_types(self, pipe, loras, method):
        outputs = {
            kind: draw(pipe, loras, method, output_type=kind).images for kind in ("pil", "np", "pt")
        }
        assert [image.size for image in outputs["pil"]] == [(32, 32)]
        assert outputs["np"].shape == (1, 32, 32, 3)
        assert outputs["pt"].shape == (1, 3, 32, 32)
        assert 0 <= outputs["np"].min() < outputs["np"].max() <= 1
        np.testing.assert_allclose(outputs["pt"].permute(0, 2, 3, 1).numpy(), outputs["np"])
        drawn = np.asarray(outputs["pil"][0], dtype=float) / 255
        np.testing.assert_allclose(drawn, outputs["np"][0], atol=0.51 / 255)

    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_schedulers(self, loras, method, scheduler):
        pipe = tiny_pipeline()
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        before = repr(vars(pipe.scheduler))
        outputs = [draw(pipe, loras, method, num_inference_steps=3).images for _ in range(2)]
        assert torch.equal(outputs[0], outputs[1])
        assert outputs[0].isfinite().all()
        assert repr(vars(pipe.scheduler)) == before

    def test_not_square(self, pipe, loras, method):
        out = draw(pipe, loras, method, height=32, width=48, output_type="pil")
        assert out.images[0].size == (48, 32)
        for records in (*out.masks, *out.maps):
            assert records.numel() == 0 or records.shape[1:] == (2, 16, 24)

    def test_callback_sees_every_step_and_may_change_the_latents(self, pipe, loras, method):
        seen = []

        def watch(given, i, t, values):
            assert given is pipe
            seen.append((i, t.item(), values["latents"].clone()))
            return values

        out = draw(pipe, loras, method, num_inference_steps=3, callback_on_step_end=watch)
        assert [i for i, *_ in seen] == [0, 1, 2]
        assert seen[0][1] > seen[1][1] > seen[2][1]
        assert torch.equal(seen[-1][2], out.images)

        def replaced(pipe, i, t, values):
            return {"latents": torch.zeros_like(values["latents"])}

        out = draw(pipe, loras, method, callback_on_step_end=replaced)
        assert out.images.abs().max() == 0

    def test_interrupt_stops_after_the_step(self, pipe, loras, method):
        steps = []

        def callback(pipe, i, t, values):
            steps.append(values["latents"])
            pipe._interrupt = i == 1
            return values

        out = draw(
            pipe, loras, method, num_inference_steps=4, num_images_per_prompt=2,
            callback_on_step_end=callback,
        )  # fmt: skip
        assert len(steps) == 2
        assert torch.equal(out.images, steps[-1])
        assert len(out.masks) == len(out.maps) == len(out.info["seeds"]) == 1
        assert not hasattr(pipe, "_interrupt")

    def test_inside_inference_mode(self, pipe, loras, method):
        expected = draw(pipe, loras, method).images
        with torch.inference_mode():
            noise = torch.randn((1, 4, 16, 16), generator=seed(4))
            assert torch.equal(draw(pipe, loras, method).images, expected)
            assert torch.equal(draw(pipe, loras, method, latents=noise).images, expected)

    def test_info_and_record(self, pipe, loras, method, tmp_path):
        out = draw(pipe, loras, method, output_type="pil")
        assert out.info["method"] == method
        assert out.info["concepts"] == ["a", "b"]
        assert out.info["calls"] >= 2
        assert out.info["rows"] >= 4
        record = loraweave.output.read_png_record(out.save(tmp_path / "picture.png"))
        assert record["scene"]["seed"] == 4
        assert record["settings"] == out.info["settings"]

    @pytest.mark.parametrize("count", range(1, 9))
    def test_one_to_eight_concepts(self, pipe, loras, method, count):
        words = [f"a [sks {noun}](l{n})" for n, noun in enumerate(NOUNS[:count])]
        files = {f"l{n}": loras["ab"[n % 2]] for n in range(count)}
        out = draw(pipe, files, method, ", ".join(words), num_inference_steps=2)
        assert out.images.isfinite().all()
        assert out.info["concepts"] == list(files)

    def test_zeros_and_shared_text_are_the_stock_pipeline(self, loras, method):
        if method not in ("merge", "masked", "composite", "switch"):
            pytest.skip("its passes have texts of their own, or its latents move")
        pipe = tiny_pipeline().to(torch.float64)
        weightless = "a [sks cat](a:0) and a [zwx dog](b:0) in the meadow"
        found = draw(pipe, loras, method, weightless, num_inference_steps=4).images
        text = "a sks cat and a zwx dog in the meadow"
        expected = pipe(text, num_inference_steps=4, output_type="latent", generator=seed(4)).images
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)

    def test_files_may_change_names_where_the_order_says_nothing(self, loras, method):
        """The concepts' names are no more than names."""
        pipe = tiny_pipeline().to(torch.float64)
        renamed = {"zed": loras["a"], "abc": loras["b"]}
        prompt = PROMPT.replace("(a)", "(zed)").replace("(b:0.7)", "(abc:0.7)")
        expected = draw(pipe, loras, method).images
        torch.testing.assert_close(
            draw(pipe, renamed, method, prompt).images, expected, atol=1e-9, rtol=0
        )

    def test_the_order_of_the_concepts_does_not_matter(self, loras, method, monkeypatch):
        """Passes, groups, masks and shares in the opposite order: the same picture."""
        if method in ("switch", "masked", "regional", "lora_composer"):
            pytest.skip("its LoRAs take turns, or strips, in the order of the prompt")
        pipe = tiny_pipeline().to(torch.float64)
        expected = draw(pipe, loras, method).images
        found = Scene.concepts.fget
        monkeypatch.setattr(Scene, "concepts", property(lambda own: found(own)[::-1]))
        turned = draw(pipe, loras, method)
        assert turned.info["concepts"] == ["b", "a"]
        torch.testing.assert_close(turned.images, expected, atol=1e-7, rtol=0)

    def test_rows_of_a_call_may_be_limited(self, loras, method):
        pipe = tiny_pipeline().to(torch.float64)
        one, other = (draw(pipe, loras, method, pass_batch=rows) for rows in (1, None))
        torch.testing.assert_close(one.images, other.images, atol=1e-8, rtol=0)
        assert one.info["rows"] >= other.info["rows"]

    def test_an_active_adapter_of_the_pipeline_goes_on_acting(self, pipe, loras, method):
        """A style that is loaded and active equals the same style named in the prompt."""
        own = tiny_pipeline()
        load(own, loras["b"], "ink")
        own.set_adapters(["ink"], [0.5])
        before, weights_before = snapshot(own), weights(own)
        prompt = "a [sks cat](a) and a dog"
        found = draw(own, {"a": loras["a"]}, method, prompt).images
        named = {"a": loras["a"], "ink": loras["b"]}
        expected = draw(pipe, named, method, prompt + " <lora:ink:0.5>").images
        without = draw(pipe, {"a": loras["a"]}, method, prompt).images
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
        assert not torch.allclose(found, without, atol=1e-2)
        assert snapshot(own) == before
        assert_same_weights(weights_before, weights(own))

    @pytest.mark.parametrize("files", ["none", "all"])
    @pytest.mark.parametrize("end", [None, KeyboardInterrupt])
    def test_a_concept_that_is_loaded_acts_once(self, pipe, loras, method, files, end):
        own = tiny_pipeline()
        for name, path in loras.items():
            load(own, path, name)
        own.set_adapters(["a", "b"])
        before, weights_before = snapshot(own), weights(own)

        def callback(pipe, i, t, values):
            if end:
                raise end
            return values

        given = {} if files == "none" else loras
        if end:
            with pytest.raises(end):
                draw(own, given, method, callback_on_step_end=callback)
        else:
            found = draw(own, given, method, callback_on_step_end=callback).images
            expected = draw(pipe, loras, method).images
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
        assert own.get_active_adapters() == ["a", "b"]
        assert snapshot(own) == before
        assert_same_weights(weights_before, weights(own))

    def test_a_concept_that_is_fused_is_an_error(self, loras, method):
        own = tiny_pipeline()
        load(own, loras["a"], "a")
        own.fuse_lora()
        with pytest.raises(LoraError, match=r"^a: fused.*unfuse_lora"):
            draw(own, {}, method, "a [sks cat](a)")


def load(pipe, path, name):
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)


# -- against diffusers -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance", [7.5, 1.0, 0.0])
def test_without_concepts_merge_is_the_pipeline_itself(scheduler, guidance):
    """Bit for bit, noise of the scheduler's scale included; also after another run."""
    pipe = tiny_pipeline()
    # "leading", as Stable Diffusion 1.5 has it: the first noise level depends on the steps
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    given = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "latent"}
    given |= {"negative_prompt": "a bird", "height": 32, "width": 48}
    found = loraweave.compose(
        pipe, "a cat on the beach", method="merge", generator=seed(5), **given
    ).images
    expected = pipe("a cat on the beach", generator=seed(5), **given).images
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    again = loraweave.compose(
        pipe, "a cat on the beach", method="merge", generator=seed(5), **given
    ).images
    assert torch.equal(found, again), "the state of the pipeline's scheduler does not matter"


def test_merge_is_set_adapters(pipe, loras):
    own = tiny_pipeline()
    for name, path in loras.items():
        load(own, path, name)
    own.set_adapters(["a", "b"], [1.0, 0.7])
    expected = own(
        "a sks cat and a zwx dog in the meadow", num_inference_steps=2, generator=seed(4),
        output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(
        draw(pipe, loras, "merge").images, expected, atol=2e-4, rtol=1e-3
    )  # fmt: skip


def test_output_pictures_are_those_of_the_pipeline(pipe):
    given = {"num_inference_steps": 2, "output_type": "np"}
    found = loraweave.compose(pipe, "a cat", method="merge", generator=seed(5), **given).images
    expected = pipe("a cat", generator=seed(5), **given).images
    np.testing.assert_allclose(found, expected, atol=1e-5)


# -- CLoRA -----------------------------------------------------------------------------------------


def clora_stage(pipe, loras, prompt=PROMPT, steps=50, **settings):
    return stage_of(pipe, loras, CLoRA(settings), steps, prompt)


def start(dtype=torch.float32):
    return torch.randn((1, 4, 16, 16), generator=seed(6), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("variant", ["improved", "faithful"])
def test_number_of_updates_over_the_papers_schedule(pipe, loras, variant):
    """50 steps: one update at each of the first 25, 20 more at 0, 10 and 20."""
    with clora_stage(pipe, loras, variant=variant) as stage:
        gradients, with_noise, evaluations, z = [], [], [], start()
        out = Evaluation(torch.zeros(1, 3, 2, 4, 16, 16), torch.rand(1, 3, 2, 256, 77))

        def gradient(passes, *_, halves, noise, **__):
            gradients.append((len(passes), halves))
            with_noise.append(noise)
            return Gradient(torch.zeros(1), torch.zeros_like(z), out if noise else None)

        def evaluate(passes, *_, **__):
            evaluations.append(len(passes))
            return out

        stage.executor.gradient, stage.executor.evaluate = gradient, evaluate
        per_step = []
        for i, t in enumerate(stage.scheduler.timesteps):
            before = len(gradients)
            z = stage.refine(z, i, t)
            stage.predict(z, i, t)
            per_step.append(len(gradients) - before)
    expected = [1 if i < 25 else 0 for i in range(50)]
    for i in (0, 10, 20):
        expected[i] = 21
    assert per_step == expected
    # The authors' noise is from before the last update, so it comes with that.
    stale = 25 if variant == "faithful" else 0
    assert sum(with_noise) == stale
    assert evaluations == [3] * (50 - stale)
    assert set(gradients) == {(3, "both" if variant == "faithful" else "conditional")}
    assert len(stage.trace.losses) == 85
    assert len(stage.trace.masks) == len(stage.trace.maps) == 50


@pytest.mark.parametrize(("variant", "halves", "steps"), [("improved", 1, 3), ("faithful", 2, 1)])
def test_denoiser_calls_and_rows(pipe, loras, variant, halves, steps):
    """`steps` of three need a call of their own: the faithful noise comes with the last update."""
    settings = {"variant": variant, "max_update_step": 2, "refinement_steps": (0,)}
    info = draw(pipe, loras, settings={**settings, "refinements": 2}, num_inference_steps=3).info
    updates = 3 + 1
    assert info["calls"] == updates + steps
    assert info["rows"] == updates * 3 * halves + steps * 3 * 2
    assert info["backward_rows"] == updates * 3 * halves
    assert [i for i, _ in info["losses"][0]] == [0, 0, 0, 1]


@pytest.mark.parametrize("variant", ["improved", "faithful"])
def test_refinement_lowers_the_loss(pipe, loras, variant):
    with clora_stage(pipe, loras, variant=variant) as stage:
        t = stage.scheduler.timesteps[0]
        stage.refine(start(), 0, t)
    losses = [loss for _, loss in stage.trace.losses]
    assert len(losses) == 21
    assert losses[-1] < losses[10] < losses[0]
    assert sum(b < a for a, b in pairwise(losses)) >= 18  # steps of fixed length overshoot at times


@pytest.mark.parametrize("variant", ["improved", "faithful"])
@torch.no_grad()
def test_one_step_in_plain_words(loras, variant):
    """z moves against the gradient; faithful takes noise and masks from before the last move."""
    pipe = tiny_pipeline().to(torch.float64)
    settings = {"variant": variant, "step_rule": "literal", "refinements": 2}
    with clora_stage(pipe, loras, **settings) as stage:
        t, z = stage.scheduler.timesteps[0], start(torch.float64)
        path = [z]
        for _ in range(3):
            _, gradient, _ = stage.executor.gradient(
                stage.passes, path[-1], lambda z: z, t, stage.loss,
                halves="both" if variant == "faithful" else "conditional",
            )  # fmt: skip
            path.append(path[-1] - 20 * gradient)
        moved = stage.refine(z, 0, t)
        torch.testing.assert_close(moved, path[3], atol=1e-12, rtol=0)
        assert not torch.allclose(path[3], path[2])

        noise = stage.predict(moved, 0, t)
        source = path[2] if variant == "faithful" else path[3]
        out = stage.executor.evaluate(stage.passes, source, t)
        masks = resized(stage.masks(out, source), (16, 16))
        torch.testing.assert_close(noise, guided(fused(out.noise, masks), 7.5), atol=1e-9, rtol=0)


@torch.no_grad()
def test_no_update_after_the_last_update_step(pipe, loras):
    with clora_stage(pipe, loras, variant="faithful", refinements=0) as stage:
        z, times = start(), stage.scheduler.timesteps
        assert not torch.equal(stage.refine(z, 24, times[24]), z)
        moved = stage.refine(z, 25, times[25])
        assert torch.equal(moved, z)
        fresh = stage.executor.evaluate(stage.passes, z, times[25])
        masks = resized(stage.masks(fresh, z), (16, 16))
        expected = guided(fused(fresh.noise, masks), 7.5)
        assert torch.equal(stage.predict(z, 25, times[25]), expected), "no stale noise left"


def test_literal_step_rule(pipe, loras):
    gradient, z = start() / 7, start()
    with clora_stage(pipe, loras, step_rule="literal", variant="faithful") as stage:
        for i in (0, 24, 49):
            assert torch.equal(stage._step(z, gradient, i), 20.0 * gradient)
    with clora_stage(pipe, loras, step_rule="literal", step_size=3.0) as stage:
        assert torch.equal(stage._step(z, gradient, 0), 3.0 * gradient)
        scale = torch.linspace(1, 0.5, 50)  # Attend-and-Excite's
        for i in (10, 49):
            torch.testing.assert_close(stage._step(z, gradient, i), 3 * scale[i].sqrt() * gradient)


@pytest.mark.parametrize("step_size", [20.0, 5.0])
def test_relative_step_rule_is_calibrated_once_and_capped(pipe, loras, step_size):
    z, gradient = start(), torch.randn(1, 4, 16, 16, generator=seed(8)) * 1e-5
    share = 0.01 * step_size / 20
    rule = {"step_rule": "relative", "relative_step": 0.01, "step_size": step_size}
    with clora_stage(pipe, loras, variant="faithful", **rule) as stage:
        moves = [stage._step(z, factor * gradient, 0) for factor in (1, 0.25, 1, 1000)]
    lengths = [(move.norm() / z.norm()).item() for move in moves]
    assert lengths == pytest.approx([share, share / 4, share, share], rel=1e-4)
    for move in moves:
        torch.testing.assert_close(move / move.norm(), gradient / gradient.norm())


def test_a_zero_gradient_moves_nothing(pipe, loras):
    for rule in ("literal", "relative"):
        with clora_stage(pipe, loras, step_rule=rule) as stage:
            assert stage._step(start(), torch.zeros(1, 4, 16, 16), 0).abs().max() == 0


def test_auto_step_rule(pipe, loras, monkeypatch):
    with clora_stage(pipe, loras) as stage:
        assert stage.stepper.rule == "relative"
    monkeypatch.setattr(StableDiffusion1, "published_scale", True)
    with clora_stage(pipe, loras) as stage:
        assert stage.stepper.rule == "literal"


def test_groups_are_the_nouns_everywhere_and_the_trigger_in_its_own_pass(pipe, loras):
    with clora_stage(pipe, loras) as stage:
        groups, passes = stage.groups, stage.passes
    encode = pipe.tokenizer.convert_ids_to_tokens
    words = [
        (label, k, encode(pipe.tokenizer(passes[k].text).input_ids)[token].removesuffix("</w>"))
        for k, token, label in groups
    ]
    assert sorted(words) == sorted(
        [(0, k, "cat") for k in range(3)]
        + [(1, k, "dog") for k in range(3)]
        + [(0, 1, "sks"), (1, 2, "zwx")]
    )


def test_two_concepts_of_one_class_have_groups_of_their_own(pipe, loras):
    prompt = "a [sks cat](a) and a [zwx cat](b)"
    with clora_stage(pipe, loras, prompt) as stage:
        groups = concept_groups(stage.passes, ["a", "b"])
    tokens = {(k, label): [] for k in range(3) for label in range(2)}
    for k, token, label in groups:
        tokens[k, label].append(token)
    assert tokens == {
        (0, 0): [2], (0, 1): [5],  # a cat and a cat
        (1, 0): [2, 3], (1, 1): [6],  # a sks cat and a cat
        (2, 0): [2], (2, 1): [5, 6],  # a cat and a zwx cat
    }  # fmt: skip
    out = draw(pipe, loras, prompt=prompt)
    assert out.masks[0].shape == (2, 2, 16, 16)


@pytest.mark.parametrize("variant", ["improved", "faithful"])
def test_masks_come_from_the_own_pass_the_own_words_and_the_right_halves(pipe, loras, variant):
    maps = torch.zeros(3, 2, 16, 16, 77)  # of one picture
    half = {"un": 0, "con": 1}
    # "a sks cat and a dog ..": sks 2, cat 3, dog 6; "a cat and a zwx dog ..": zwx 5, dog 6.
    maps[1, half["con"], 0, :8, 2] = 1.0  # a's trigger
    maps[1, half["con"], 1, 0, 3] = 0.1  # a's noun, weak but its own peak
    maps[1, half["con"], 2, 0, 6] = 1.0  # the other noun in a's pass: not a's
    maps[2, half["con"], 0, 7:9, 6] = 1.0  # b's noun, overlaps a at (0, 7)
    maps[2, half["con"], 0, 7, 5] = 1.0
    maps[0, half["con"], 5, 5, :] = 1.0  # the base pass: nobody's
    maps[1, half["un"], 9, 9, 3] = 0.3  # only seen where halves are averaged
    with clora_stage(pipe, loras, variant=variant) as stage:
        (masks,) = stage.masks(Evaluation(None, maps.flatten(2, 3)[None]), start())
    found = [{tuple(p) for p in one.nonzero().tolist()} for one in masks]
    a, b = {(0, x) for x in range(8)} | {(1, 0)}, {(0, 7), (0, 8)}
    lost = {"faithful": {(1, 0)}, "improved": {(0, 7)}}[variant]
    # faithful: the noun's peak is at (9, 9), and 0.05 is under 0.4 of it; overlaps stay.
    # improved: the overlap goes to the strongest.
    a = a - lost | ({(9, 9)} if variant == "faithful" else set())
    assert found[1] == a
    assert found[2] == b
    assert len(found[0]) == 256 - len(a | b)
    assert not found[0] & (a | b)


@torch.no_grad()
def test_loss_sees_the_mean_of_the_halves_it_is_given(pipe, loras):
    maps = torch.rand(1, 3, 2, 256, 77, generator=seed(3))
    with clora_stage(pipe, loras) as stage:
        both, mean = stage.loss(maps), stage.loss(maps.mean(2, keepdim=True))
        torch.testing.assert_close(both, mean)
        assert both != stage.loss(maps[:, :, 1:])
        half = stage.loss(maps.to(torch.bfloat16))
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, both, atol=1e-3, rtol=0)


def test_variants_differ(pipe, loras):
    settings = {"max_update_step": 2, "refinements": 1}
    improved, faithful = (
        draw(pipe, loras, settings={**settings, "variant": v}).images
        for v in ("improved", "faithful")
    )
    assert not torch.allclose(improved, faithful, atol=1e-3)


@pytest.mark.parametrize("method", ["clora", "conform", "attend_and_excite"])
@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("mode", ["auto", "one_by_one"])
def test_what_saves_memory_changes_nothing(loras, method, mode, rows):
    """Passes one by one, and calls of few rows, over 10 steps in float64."""
    pipe = tiny_pipeline().to(torch.float64)
    few = {"max_update_step": 5, "refinements": 2}
    plain, saving = (
        draw(pipe, loras, method, num_inference_steps=10, settings={**few, "gradient": how},
             pass_batch=most).images
        for how, most in (("together", None), (mode, rows))
    )  # fmt: skip
    torch.testing.assert_close(saving, plain, atol=1e-8, rtol=0)


def test_concepts_of_one_noun_get_an_instance_each(loras):
    """Each picture of a batch for itself, in every gradient mode."""
    pipe = tiny_pipeline().to(torch.float64)
    one = "a [sks cat](a), a [zwx cat](b) and a [sks dog](c)"
    files = {**loras, "c": loras["a"]}
    few = {"max_update_step": 3, "refinements": 2, "mask_threshold": 0.9}

    def drawn(numbers, **settings):
        return draw(
            pipe, files, prompt=one, num_inference_steps=5, settings={**few, **settings},
            num_images_per_prompt=len(numbers), generator=[seed(n) for n in numbers],
        )  # fmt: skip

    both = drawn((11, 12))
    for n, number in enumerate((11, 12)):
        single = drawn((number,), gradient="one_by_one")
        torch.testing.assert_close(both.images[n : n + 1], single.images, atol=1e-8, rtol=0)
        assert not torch.allclose(drawn((number,), instances=False).images, single.images)
    cats = both.masks[0][:, :2]
    assert (cats.sum(1) <= 1).all()
    assert (cats.sum((0, 2, 3)) > 0).all()
    faithful = [drawn((11,), variant="faithful", instances=own).images for own in (True, False)]
    assert torch.equal(*faithful)


@pytest.mark.parametrize("variant", ["improved", "faithful"])
def test_one_concept_needs_no_update(pipe, loras, variant):
    out = draw(
        pipe, {"a": loras["a"]}, prompt="a [sks cat](a) in the meadow",
        settings={"variant": variant},
    )  # fmt: skip
    assert out.info["losses"] == [[]]
    assert out.info["calls"] == 2
    assert out.info["rows"] == 2 * 2 * 2
    assert out.masks[0].shape == (2, 1, 16, 16)
    assert out.images.isfinite().all()


def test_eight_concepts(pipe, loras):
    nouns = ("cat", "dog", "bird", "robot", "ball", "house", "river", "photo")
    prompt = ", ".join(f"a [sks {noun}](l{n})" for n, noun in enumerate(nouns))
    files = {f"l{n}": loras["ab"[n % 2]] for n in range(8)}
    out = draw(pipe, files, prompt=prompt, num_inference_steps=1)
    assert out.masks[0].shape == (1, 8, 16, 16)
    assert out.masks[0].sum(1).amax() <= 1
    assert out.info["rows"] == 2 * 9 + 18
    assert out.images.isfinite().all()


def test_masks_and_maps_of_the_output(pipe, loras):
    out = draw(pipe, loras, height=32, width=48, num_inference_steps=3)
    masks, maps = out.masks[0], out.maps[0]
    assert masks.shape == maps.shape == (3, 2, 16, 24)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert out.info["concepts"] == ["a", "b"]


def test_an_instance_may_be_given_instead_of_a_name(pipe, loras):
    method = CLoRA(QUICK["clora"])
    by_instance = draw(pipe, loras, method=method, settings=None)
    assert torch.equal(by_instance.images, draw(pipe, loras).images)
    assert by_instance.info["settings"]["refinements"] == 1
    with pytest.raises(MethodError, match="has its settings already"):
        draw(pipe, loras, method=method, settings={})


def test_a_scene_brings_its_own_sizes_and_steps(pipe, loras):
    scene = Scene(
        prompt=PROMPT, loras=loras, num_inference_steps=2, guidance_scale=3.0, height=32, width=48,
        seed=4, negative_prompt="a bird",
    )  # fmt: skip
    given = {"method": "merge", "output_type": "latent"}
    found = loraweave.compose(pipe, scene, **given).images
    expected = draw(
        pipe, loras, "merge", guidance_scale=3.0, height=32, width=48, negative_prompt="a bird"
    ).images
    assert torch.equal(found, expected)
    for name, value in [("num_inference_steps", 3), ("guidance_scale", 2.0), ("width", 64)]:
        with pytest.raises(SceneError, match=name):
            loraweave.compose(pipe, scene, **given, **{name: value})


def test_an_old_interrupt_does_not_stop_a_new_run(loras):
    pipe = tiny_pipeline()
    expected = draw(pipe, loras, "merge").images
    pipe._interrupt = True
    assert torch.equal(draw(pipe, loras, "merge").images, expected)
    assert pipe._interrupt is True, "it comes back as it was"


def test_merge_needs_no_concept_and_clora_does(pipe):
    assert draw(pipe, {}, "merge", "a cat").images.isfinite().all()
    with pytest.raises(MethodError, match="clora needs at least 1 concept"):
        draw(pipe, {}, "clora", "a cat")
    assert Merge.least_concepts == 0


def test_the_pipeline_is_not_kept_alive_by_a_run(loras):
    """Nothing of a run refers to the model afterwards."""
    import gc
    import weakref

    pipe = tiny_pipeline()
    out = draw(pipe, loras)
    unet = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert unet() is None
    assert out.images.isfinite().all()


def test_methods_describe_themselves():
    for name, method in loraweave.METHODS.items():
        assert method.name == name
        for text in (method.summary, method.source, method.passes):
            assert text
        assert copy.deepcopy(method().settings) == method().settings
        told = described(method.Settings)
        assert {k: one["default"] for k, one in told.items()} == method.capabilities()["settings"]
        assert all(one["means"] and one["takes"] for one in told.values()), name
        assert len({one["means"] for one in told.values()}) == len(told), name


class Waits(TorchDispatchMode):
    """Counts what a GPU would have to be waited for."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if name in self.NAMES:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("merge", {}), ("composite", {}), ("switch", {"every": 1}),
        ("masked", {"layout": "strips"}), ("weave", {"early": 0.0}),
        ("clora", {"refinements": 1}), ("clora", {"variant": "faithful", "refinements": 0}),
        ("conform", {"refinements": 1}), ("attend_and_excite", {"thresholds": {}}),
    ],
)  # fmt: skip
def test_no_step_waits_for_a_figure(pipe, loras, method, settings):
    """After the first two of each stage, in which what stays is found."""
    own = get_method(method, settings)
    with composed_on(pipe, loras, method=own) as (composed, executor):
        scheduler = StepScheduler(pipe.scheduler, 6, torch.device("cpu"), None)
        z = torch.randn((1, 4, 16, 16), generator=seed(1))
        for stage in own.stages(composed, executor, scheduler):
            z = stage.start(z)
            steps = list(enumerate(stage.scheduler.timesteps))[stage.first : stage.last]
            for n, (i, t) in enumerate(steps):
                with Waits() as waits:
                    z = stage.refine(z, i, t)
                    noise = stage.predict(z, i, t)
                assert n < 2 or waits.seen == []
                z = stage.scheduler.step(noise, t, z)
