"""Pictures that a scene is drawn after: diffusers' T2I-Adapters in every method."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import MultiAdapter, StableDiffusionAdapterPipeline, T2IAdapter
from PIL import Image
from typer.testing import CliRunner

import loraweave
from adapters import random_adapter, random_picture
from loraweave import BaseModelMismatch, Condition, ModelNotFound, RegionError, Scene, SceneError
from loraweave.backbone.conditions import adapter_config, check_fits, load_adapter, read_picture
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.cli import app
from loraweave.conditioning import adapter_folder, prepare
from loraweave.denoise.composition import composition
from loraweave.denoise.conditions import Conditions, Followed, weight_map
from loraweave.denoise.executor import executing
from loraweave.lora.pipeline import gather_adapters
from loraweave.miniature.shipped import native_side
from prepared import PROMPT, composed_on
from test_methods import QUICK, halves  # noqa: F401
from tiny import tiny_pipeline

pytestmark = pytest.mark.filterwarnings(  # diffusers'
    "ignore:Already found a .peft_config.:UserWarning"
)
SD15 = {"block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]}  # fmt: skip
BOXES = {"a": (0.0, 0.0, 0.5, 1.0), "b": (0.5, 0.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A condition with a grey picture."""
    folder = tmp_path_factory.mktemp("grey")
    return Condition(
        adapter=random_adapter(folder / "adapter"), image=random_picture(folder / "a.png")
    )


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """A condition with a picture of three channels, half as strong."""
    folder = tmp_path_factory.mktemp("coloured")
    return Condition(
        adapter=random_adapter(folder / "adapter", reads=3, seed=1),
        image=random_picture(folder / "a.png", mode="RGB"),
        weight=0.5,
    )


def draw(pipe, loras, conditions, method="merge", prompt=PROMPT, **changes):
    given = {"num_inference_steps": 4, "output_type": "latent", "settings": QUICK.get(method)}
    given |= {"generator": torch.Generator().manual_seed(4), "progress": False}
    return loraweave.compose(
        pipe, prompt, loras=loras, method=method, conditions=conditions, **given | changes
    )


def changed(condition, **changes):
    return condition.model_copy(update=changes)


class TestFeatures:
    @pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
    def test_one_condition_is_diffusers_own_pipeline(self, loras, grey, dtype, most):
        """In float32 the tiny base's latents, up to 17, are rounded at the sixth digit."""
        pipe = tiny_pipeline().to(dtype)
        found = draw(pipe, loras, [changed(grey, weight=0.8)]).images
        pipe.load_lora_weights(loras["a"].parent, weight_name="a.safetensors", adapter_name="a")
        pipe.load_lora_weights(loras["b"].parent, weight_name="b.safetensors", adapter_name="b")
        pipe.set_adapters(["a", "b"], [1.0, 0.7])
        theirs = adapted(pipe, T2IAdapter.from_pretrained(grey.adapter, dtype=dtype))
        with Image.open(grey.image) as image:
            expected = theirs(
                "a sks cat and a zwx dog in the meadow", image=image, num_inference_steps=4,
                adapter_conditioning_scale=0.8, output_type="latent", width=32, height=32,
                generator=torch.Generator().manual_seed(4),
            ).images  # fmt: skip
        torch.testing.assert_close(found, expected, atol=most, rtol=0)

    def test_several_conditions_are_diffusers_multi_adapter(self, double, grey, tmp_path):
        other = changed(
            grey, adapter=random_adapter(tmp_path / "other", seed=5), weight=-0.5,
            image=random_picture(tmp_path / "a.png", seed=3),
        )  # fmt: skip
        plain = "a sks cat in the meadow"
        found = draw(double, {}, [grey, other], prompt=plain, method="merge").images
        both = [T2IAdapter.from_pretrained(one.adapter, dtype=torch.float64)
                for one in (grey, other)]  # fmt: skip
        expected = adapted(double, MultiAdapter(both))(
            plain, image=[Image.open(one.image) for one in (grey, other)], num_inference_steps=4,
            adapter_conditioning_scale=[1.0, -0.5], output_type="latent", width=32, height=32,
            generator=torch.Generator().manual_seed(4),
        ).images  # fmt: skip
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    def test_sizes_that_do_not_halve(self, double, loras, grey, tmp_path):
        picture = random_picture(tmp_path / "a.png", size=(40, 56))
        given = {"width": 40, "height": 56}
        without = draw(double, loras, [], **given).images
        found = draw(double, loras, [changed(grey, image=picture)], **given).images
        assert found.shape == without.shape == (1, 4, 28, 20)
        assert not torch.allclose(found, without, atol=1e-2)


def adapted(pipe, adapter):
    theirs = StableDiffusionAdapterPipeline(
        **{k: v for k, v in pipe.components.items() if k != "image_encoder"}, adapter=adapter,
        requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    return theirs


@pytest.mark.parametrize("method", loraweave.METHODS)
class TestEveryMethod:
    def test_follows_the_picture(self, pipe, loras, grey, method):
        without = draw(pipe, loras, None, method, num_inference_steps=2)
        followed = draw(pipe, loras, [grey], method, num_inference_steps=2)
        assert not torch.allclose(followed.images, without.images, atol=1e-2)
        for nothing in ([], [changed(grey, until=0.0)]):
            same = draw(pipe, loras, nothing, method, num_inference_steps=2)
            assert torch.equal(same.images, without.images)
        zero = draw(pipe, loras, [changed(grey, weight=0.0)], method, num_inference_steps=2)
        torch.testing.assert_close(zero.images, without.images)
        for n in (followed, zero):
            assert (n.info["calls"], n.info["rows"]) == (
                without.info["calls"], without.info["rows"],
            )  # fmt: skip

    def test_pictures_of_a_batch_and_rows_in_parts(self, loras, grey, method):
        double = tiny_pipeline().to(torch.float64)
        seeds = [torch.Generator().manual_seed(n) for n in (1, 2)]
        given = {"num_images_per_prompt": 2, "num_inference_steps": 2}
        together = draw(double, loras, [grey], method, batch_size=2, pass_batch=3,
                        generator=seeds, **given)  # fmt: skip
        seeds = [torch.Generator().manual_seed(n) for n in (1, 2)]
        single = draw(double, loras, [grey], method, generator=seeds, **given)
        torch.testing.assert_close(together.images, single.images, atol=1e-8, rtol=0)


def test_gradients_go_through_what_the_picture_adds(double, loras, grey):
    """The gradient of the maps is that of the guided denoiser, together and pass by pass."""
    scene = Scene(prompt=PROMPT, loras=loras, conditions=[grey])
    z = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1)).double()
    t = torch.tensor(601)
    weights = torch.randn((3, 1, 64, 77), generator=torch.Generator().manual_seed(2)).double()

    def loss(maps):
        own = weights[..., : maps.shape[-2], : maps.shape[-1]]
        return (maps * own).sum((1, 2, 3, 4))

    with (
        gather_adapters(double, scene) as adapters,
        composition(scene, StableDiffusion1(double), adapters) as composed,
        executing(composed, None, prepare(composed)[0]) as executor,
    ):
        passes = composed.passes()
        shape = executor.evaluate(passes, z, t, halves="conditional", maps_only=True).maps.shape
        weights = torch.randn(shape[1:], generator=torch.Generator().manual_seed(2)).double()
        (one, together, _), (_, parts, _) = (
            executor.gradient(passes, z, lambda x: x, t, loss, mode=mode)
            for mode in ("together", "one_by_one")
        )
        along = torch.randn(z.shape, generator=torch.Generator().manual_seed(5)).double()
        values = [
            executor.gradient(passes, z + s * 1e-5 * along, lambda x: x, t, loss)[0].item()
            for s in (1, -1)
        ]
    torch.testing.assert_close(together, parts, atol=1e-10, rtol=0)
    assert (together * along).sum().item() == pytest.approx(
        (values[0] - values[1]) / 2e-5, rel=1e-4
    )
    with composed_on(double, loras) as (_, plain):
        passes = plain.composition.passes()
        other, *_ = plain.gradient(passes, z, lambda x: x, t, loss)
    assert one.item() != pytest.approx(other.item(), rel=1e-4)


class TestTimesAndPlaces:
    def test_until_is_a_fraction_of_the_run(self, pipe, loras, grey):
        """Of 4 steps the first two follow the picture: the third starts from what they gave."""
        seen = {}

        def noting(name):
            def callback(pipe, i, t, values):
                seen.setdefault(name, []).append(values["latents"].clone())
                return values

            return callback

        for until in (0.5, 0.26, 1.0):
            draw(pipe, loras, [changed(grey, until=until)], callback_on_step_end=noting(until))
        same = [torch.equal(a, b) for a, b in zip(seen[0.5], seen[1.0])]
        assert same == [True, True, False, False]
        # Steps begin at 0, .25, .5 and .75 of the run.
        assert all(torch.equal(a, b) for a, b in zip(seen[0.26], seen[0.5]))

    def test_features_at_a_time(self):
        one, two = (Followed((torch.full((1, 1, 2, 2), v),), u) for v, u in ((1.0, 0.5), (2.0, 1)))
        conditions = Conditions([one, two])
        assert [conditions.at(x)[0].max().item() for x in (0, 0.49, 0.5, 0.99)] == [3, 3, 2, 2]
        assert Conditions([one]).at(0.5) == ()
        assert Conditions().at(0) == ()

    def test_the_largest_weight_where_regions_overlap(self):
        regions = torch.tensor([[[1, 1, 0, 0]], [[0, 1, 1, 0]]]).bool()
        assert weight_map(1.0, [0.2, 0.5], regions).tolist() == [[0.2, 0.5, 0.5, 1.0]]
        assert weight_map(0.0, [0.8, -1.0], regions).tolist() == [[0.8, 0.8, -1.0, 0.0]]

    def test_weights_in_regions(self, double, loras, grey):
        scene = Scene(
            prompt=PROMPT, loras=loras, regions={n: {"box": box} for n, box in BOXES.items()},
            conditions=[grey, changed(grey, weight=0.0, regions={"b": 0.8})],
        )  # fmt: skip
        with (
            gather_adapters(double, scene) as adapters,
            composition(scene, StableDiffusion1(double), adapters) as composed,
        ):
            conditions, _ = prepare(composed)
            alone, _ = prepare_alone(composed, scene.replace(conditions=[grey]))
        for both, one in zip(conditions.at(0.0), alone.at(0.0), strict=True):
            middle = one.shape[-1] // 2
            assert one.abs().max() > 0.1
            torch.testing.assert_close(both[..., :middle], one[..., :middle])
            torch.testing.assert_close(both[..., middle:], 1.8 * one[..., middle:])

    @pytest.mark.parametrize("method", ["merge", "clora"])
    def test_methods_without_regions_take_those_of_conditions(self, pipe, loras, grey, method):
        everywhere = dict.fromkeys(BOXES, 0.3)
        by_region = changed(grey, regions=everywhere)
        found = draw(pipe, loras, [by_region], method, regions=BOXES).images
        expected = draw(pipe, loras, [changed(grey, weight=0.3)], method).images
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        half = changed(grey, regions={"a": 0.3})
        with pytest.raises(loraweave.MethodError, match="takes no regions"):
            draw(pipe, loras, [half], method, regions=BOXES)

    def test_masks_at_hand(self, pipe, loras, grey):
        mask = np.zeros((16, 16), dtype=bool)
        mask[:, :8] = True
        part = [changed(grey, weight=0.0, regions={"a": 1.0})]
        by_mask = draw(pipe, loras, part, regions={"a": mask})
        assert "masks of a" in by_mask.info["caveats"][0]
        by_box = draw(pipe, loras, part, regions={"a": BOXES["a"]}).images
        assert torch.equal(by_mask.images, by_box)


def prepare_alone(composed, scene):
    composed.scene = scene
    return prepare(composed)


class TestRecord:
    def test_hashes_and_the_same_picture_again(self, pipe, loras, grey, coloured, tmp_path):
        scene = Scene(prompt=PROMPT, loras=loras, conditions=[grey, coloured], seed=3,
                      num_inference_steps=2)  # fmt: skip
        out = loraweave.compose(pipe, scene, method="merge", progress=False)
        record = loraweave.output.read_png_record(out.save(tmp_path / "a.png"))
        assert record["caveat"] is None
        first, second = record["conditions"]
        assert first.keys() == {"adapter", "adapter_sha256", "image", "image_sha256"}
        assert len({one[k] for one in (first, second) for k in one if "sha" in k}) == 4
        again = loraweave.scene.scene_from_dict(record["scene"])
        assert again == scene
        redrawn = loraweave.compose(pipe, again, method="merge", progress=False)
        assert redrawn.images[0].tobytes() == out.images[0].tobytes()
        assert redrawn.info["conditions"] == record["conditions"]

    def test_a_picture_at_hand_is_a_caveat(self, pipe, loras, grey):
        with Image.open(grey.image) as image:
            at_hand = {**dict(grey), "image": image.copy()}
        found = draw(pipe, loras, [at_hand])
        expected = draw(pipe, loras, [grey])
        assert torch.equal(found.images, expected.images)
        assert found.info["caveats"] == ["the picture of a condition was given by a program"]
        assert found.info["scene"]["conditions"] == []
        assert expected.info["caveats"] == [None]
        hashes = [out.info["conditions"][0]["image_sha256"] for out in (found, expected)]
        assert hashes[0] == hashes[1]

    def test_from_plain_data(self, grey, tmp_path):
        plain = json.loads(Scene(prompt="a cat", conditions=[grey]).to_json())
        assert loraweave.scene.scene_from_dict(plain).conditions == [grey]
        (tmp_path / "scene.yaml").write_text(
            "prompt: a cat\nconditions: [{adapter: miniature:sketch, image: a.png, until: 0.5},\n"
            "  {adapter: pose, image: /b.png}]\n"
        )
        first, second = Scene.from_file(tmp_path / "scene.yaml").conditions
        assert (str(first.adapter), first.image) == ("miniature:sketch", tmp_path / "a.png")
        assert (second.adapter, str(second.image)) == (tmp_path / "pose", "/b.png")

    def test_a_scene_has_its_own(self, pipe, loras, grey):
        scene = Scene(prompt=PROMPT, loras=loras)
        with pytest.raises(SceneError, match="a Scene has its own conditions"):
            loraweave.compose(pipe, scene, conditions=[grey])


class TestRefused:
    def test_adapters(self, pipe, loras, grey, tmp_path, base_folder):
        def refused(error, match, **changes):
            with pytest.raises(error, match=match):
                draw(pipe, loras, [changed(grey, **changes)])

        refused(ModelNotFound, "is not there.*local folder", adapter=tmp_path / "missing")
        refused(ModelNotFound, "is a file.*local folder", adapter=grey.image)
        refused(ModelNotFound, "no config.json", adapter=tmp_path)
        refused(ModelNotFound, "holds a UNet2DConditionModel", adapter=base_folder / "unet")
        refused(ModelNotFound, "no adapter 'miniature:pose'", adapter="miniature:pose")
        wide = random_adapter(tmp_path / "wide")
        (wide / "config.json").write_text("{")
        refused(ModelNotFound, "is damaged", adapter=wide)
        (wide / "config.json").write_text('["T2IAdapter"]')
        refused(ModelNotFound, "is damaged", adapter=wide)
        (wide / "config.json").write_text('{"_class_name": "T2IAdapter", "channels": 3}')
        refused(ModelNotFound, "channels is 3", adapter=wide)
        empty = random_adapter(tmp_path / "empty")
        (empty / "diffusion_pytorch_model.safetensors").write_text("words")
        refused(ModelNotFound, "cannot be loaded", adapter=empty)
        (empty / "diffusion_pytorch_model.safetensors").unlink()
        refused(ModelNotFound, "is not there; restore it", adapter=empty)
        (empty / "diffusion_pytorch_model.bin").write_bytes(b"")
        refused(ModelNotFound, "a pickle is there", adapter=empty)
        other = random_adapter(tmp_path / "other", reads=2)
        refused(ModelNotFound, "pictures of 2 channels", adapter=other)

    def test_adapters_of_another_base(self, pipe, loras, grey, tmp_path):
        for name, changes, match in (
            ("channels", {"channels": [32, 48]}, r"\[32, 48\] channels.*\[32, 64\]"),
            ("levels", {"channels": [32, 64, 64]}, r"\[32, 64, 64\].*\[32, 64\]"),
            ("factor", {"downscale_factor": 4}, "4 pixels a side, this base one of 2"),
            ("xl", {"adapter_type": "full_adapter_xl", "channels": [32, 64, 64, 64]}, "xl, made"),
        ):
            folder = random_adapter(tmp_path / name, 1, **changes)
            with pytest.raises(BaseModelMismatch, match=match):
                draw(pipe, loras, [changed(grey, adapter=folder)])

    def test_pickles_only_when_asked_for(self, pipe, loras, grey, tmp_path):
        folder = random_adapter(tmp_path / "adapter")
        adapter = T2IAdapter.from_pretrained(folder)
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        adapter.save_pretrained(folder, safe_serialization=False)
        pickled = [changed(grey, adapter=folder)]
        with pytest.raises(ModelNotFound, match="pickle"):
            draw(pipe, loras, pickled)
        found = draw(pipe, loras, pickled, allow_pickle=True).images
        assert torch.equal(found, draw(pipe, loras, [grey]).images)

    def test_stable_diffusion_1_5(self, tmp_path):
        """Of its adapters as they are published; with memory for shapes only."""
        for channels in (1, 3):
            with torch.device("meta"):
                adapter = T2IAdapter(in_channels=channels)
                features = adapter(torch.empty(1, channels, 512, 768))
            check_fits("it", adapter.config, SD15, 8)
            assert [tuple(f.shape[1:]) for f in features] == [
                (320, 64, 96), (640, 32, 48), (1280, 16, 24), (1280, 8, 12),
            ]  # fmt: skip
        (tmp_path / "config.json").write_text('{"_class_name": "T2IAdapter"}')
        check_fits("it", adapter_config(tmp_path), SD15, 8)  # its defaults are those
        blocks = SD15["down_block_types"]
        coarse = {**SD15, "down_block_types": ["DownBlock2D", *blocks[1:]]}
        with pytest.raises(BaseModelMismatch, match="needs one of full_adapter_xl"):
            check_fits("it", adapter_config(tmp_path), coarse, 8)
        unusual = {**SD15, "down_block_types": [blocks[0], "DownBlock2D", *blocks[2:]]}
        with pytest.raises(BaseModelMismatch, match="blocks without attention"):
            check_fits("it", adapter_config(tmp_path), unusual, 8)

    def test_pictures(self, pipe, loras, grey, tmp_path):
        def refused(match, image):
            with pytest.raises(SceneError, match=match):
                draw(pipe, loras, [changed(grey, image=image)])

        refused("48x32 pixels and the scene 32x32; resize",
                random_picture(tmp_path / "a.png", size=(48, 32)))  # fmt: skip
        refused("cannot read the picture", tmp_path / "missing.png")
        (tmp_path / "text.png").write_text("words")
        refused("cannot read the picture", tmp_path / "text.png")
        cut = grey.image.read_bytes()[:200]
        (tmp_path / "cut.png").write_bytes(cut)
        refused("cannot read the picture", tmp_path / "cut.png")
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "deep.png")
        refused("8 bits", tmp_path / "deep.png")

    def test_pictures_of_other_kinds_are_converted(self, tmp_path):
        path = random_picture(tmp_path / "a.png", mode="RGB")
        values, digest = read_picture(path, 1, (32, 32))
        with Image.open(path) as image:
            assert read_picture(image.convert("L"), 1, (32, 32))[1] == digest
            assert read_picture(image.convert("RGBA"), 3, (32, 32))[0].shape == (1, 3, 32, 32)
        assert values.shape == (1, 1, 32, 32)
        assert 0 <= values.min() < 0.3 < 0.7 < values.max() <= 1

    def test_values(self, grey):
        for match, wrong in (
            ("conditions.1: until", {"until": 1.5}),
            ("conditions.1: until", {"until": -0.1}),
            ("conditions.1: weight", {"weight": "1"}),
            ("conditions.1: weight", {"weight": float("nan")}),
            ("conditions.1: .*wieght", {"wieght": 1}),
            ("conditions.1: regions.cat", {"regions": {"cat": 9}}),
        ):
            with pytest.raises(SceneError, match=match):
                Scene(prompt=PROMPT, conditions=[grey, {**dict(grey), **wrong}])
        with pytest.raises(SceneError, match=r"conditions\.0: .*image"):
            Scene(prompt=PROMPT, conditions=[{"adapter": "x"}])
        with pytest.raises(SceneError, match="conditions"):
            Scene(prompt=PROMPT, conditions={"adapter": "x"})

    def test_regions(self, pipe, loras, grey):
        with pytest.raises(SceneError, match="'c', which is no concept"):
            Scene(prompt=PROMPT, conditions=[changed(grey, regions={"c": 1.0})])
        inside = changed(grey, regions={"a": 1.0})
        with pytest.raises(RegionError, match=r"'a', which has no region.*--region a="):
            draw(pipe, loras, [inside])
        with Image.open(grey.image) as image:
            at_hand = {**dict(grey), "image": image.copy(), "regions": {"c": 1.0}}
        with pytest.raises(SceneError, match="'c', which is no concept"):
            draw(pipe, loras, [at_hand])


class TestCommandLine:
    @pytest.fixture
    def model(self, base_folder, lora_files):
        loras = [f"--lora={name}={path}" for name, path in lora_files.items()]
        return [*loras, "--base", base_folder, "--device", "cpu", "--method", "merge"]

    PROMPT = "a [sks cat](cat) and a [zwx dog](dog) in the meadow"

    def run(self, *arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_option_record_and_again(self, tmp_path, model, grey, coloured, lora_files):
        path, again = tmp_path / "a.png", tmp_path / "b.png"
        result = self.run(
            "generate", self.PROMPT, *model, "--steps", 2, "-o", path, "--region", "cat=0,0,.5,1",
            "--condition", f"adapter={grey.adapter}, image={grey.image},weight=0.8,until=.5",
            "--condition", f"adapter={coloured.adapter},image={coloured.image},regions.cat=2",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        record = loraweave.output.read_png_record(path)
        made = loraweave.scene.scene_from_dict(record["scene"])
        assert made.conditions == [
            changed(grey, weight=0.8, until=0.5),
            changed(coloured, weight=1.0, regions={"cat": 2.0}),
        ]
        expected = loraweave.compose(tiny_pipeline(), made, method="merge", progress=False)
        with Image.open(path) as image:
            assert image.tobytes() == expected.images[0].tobytes()
        from_record = ["generate", "--from", path, "--base", model[-5], "--device", "cpu", "-o"]
        result = self.run(*from_record, again)
        assert (result.exit_code, "note:" in result.stderr) == (0, False), result.stderr
        assert path.read_bytes() == again.read_bytes()
        result = self.run(*from_record, again, "--condition",
                          f"adapter={grey.adapter},image={grey.image},regions.cat=1")  # fmt: skip
        assert "made with 2 conditions, this with 1" in result.stderr

    def test_another_file_is_said(self, tmp_path, model, grey):
        picture, path = random_picture(tmp_path / "sketch, 1.png", seed=8), tmp_path / "a.png"
        option = ["--condition", f"adapter={grey.adapter},image={picture}"]
        self.run("generate", self.PROMPT, *model, "--steps", 1, "-o", path, *option)
        random_picture(picture, seed=9)
        result = self.run("generate", "--from", path, "--base", model[-5], "--device", "cpu",
                          "-o", tmp_path / "b.png")  # fmt: skip
        assert f"note: the image of condition 1, {picture}, is not what" in result.stderr
        assert "adapter" not in result.stderr

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("adapter={a}", ["image", "missing"]),
            ("{a},image={i}", ["not of the form key=value", "adapter=FOLDER"]),
            ("adapter={a},image={i},weight=much", ["weight is 'much'", "not a number"]),
            ("adapter={a},image={i},weight=1,weight=2", ["weight is given twice"]),
            ("adapter={a},image={i},until=1.5", ["until"]),
            ("adapter={a},image={i},until=nan", ["until"]),
            ("adapter={a},image={i},regions.bird=1", ["'bird', which is no concept"]),
            ("adapter={a},image={i},regions.cat=1", ["'cat', which has no region"]),
            ("adapter={a}/no,image={i}", ["is not there"]),
            ("adapter={a},image={a}", ["cannot read the picture"]),
            ("adapter=miniature:pose,image={i}", ["miniature:sketch"]),
        ],
    )
    def test_refused(self, tmp_path, model, grey, text, words):
        text = text.format(a=grey.adapter, i=grey.image)
        result = self.run("generate", self.PROMPT, *model, "-o", tmp_path / "a.png", "-q",
                          "--condition", text)  # fmt: skip
        assert (result.exit_code, result.stdout) == (2, ""), result.exception
        flat = " ".join(result.stderr.split())
        assert [word for word in words if word not in flat] == [], result.stderr
        assert list(tmp_path.iterdir()) == []

    def test_sketch_is_for_the_miniature(self, tmp_path, model, grey):
        result = self.run("generate", self.PROMPT, *model, "-o", tmp_path / "a.png", "-q",
                          "--sketch", grey.image)  # fmt: skip
        assert (result.exit_code, result.stdout) == (2, "")
        assert "miniature:sketch was made for another base" in " ".join(result.stderr.split())


def test_the_adapter_that_ships_fits_the_miniature():
    folder = adapter_folder(Path("miniature:sketch"))
    config = adapter_config(folder)
    pipe = loraweave.load("miniature", device="cpu")
    check_fits("it", config, pipe.unet.config, pipe.vae_scale_factor)
    assert config["in_channels"] == 1
    assert not any(
        "/" in str(value) for value in json.loads((folder / "config.json").read_text()).values()
    )
    adapter, _ = load_adapter(folder, torch.float32, torch.device("cpu"))
    side, levels = native_side(), pipe.unet.config["block_out_channels"]
    blank, lines = (adapter(torch.full((1, 1, side, side), value)) for value in (0.0, 1.0))
    # diffusers' adapter for two levels halves once more, that for three starts with two alike.
    sizes = [side // 8, side // 16] if len(levels) == 2 else [side // 16, side // 16, side // 32]
    assert [one.shape[-1] for one in blank] == sizes
    for one, other in zip(blank, lines):
        assert (one - other).abs().max() > 0.1


def test_in_the_authors_variant_of_lora_composer_they_end_with_the_updates(double, loras, grey):
    def composed(pictures, seeds=(1,), rows=None, **settings):
        return loraweave.compose(
            double, PROMPT, loras=loras, method="lora_composer", conditions=pictures,
            regions=BOXES, settings=settings, num_inference_steps=4, output_type="latent",
            num_images_per_prompt=len(seeds), batch_size=len(seeds), pass_batch=rows,
            generator=[torch.Generator().manual_seed(n) for n in seeds], progress=False,
        ).images  # fmt: skip

    two = {"max_updates": 2, "reinitialise": "plain"}
    ending = {**two, "conditions": "refinement"}
    ended = composed([changed(grey, until=0.5)], **two)
    torch.testing.assert_close(composed([grey], **ending), ended, atol=1e-12, rtol=0)
    assert not torch.allclose(composed([grey], **two), ended)
    # Updates stop at other steps in other pictures; each follows for as long as it is updated.
    ending = {"conditions": "refinement", "patience": 0, "step_size": 200}
    for rows in (None, 2):
        both = composed([grey], (1, 2), rows, **ending)
        for n in (1, 2):
            single = composed([grey], (n,), **ending)
            torch.testing.assert_close(both[n - 1 : n], single, atol=1e-8, rtol=0)
