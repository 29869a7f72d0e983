"""Owners of places in one denoiser call, against passes of their own."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import loraweave
from loraweave import MethodError, RegionError
from loraweave.denoise.confined import Confined
from loraweave.layout.regions import region_masks, shared, strip_masks
from loraweave.lora.keys import plain_modules
from loraweave.scene import Region
from prepared import PROMPT, engine

T = torch.tensor(601)


def latents(count=1, h=16, w=16):
    generator = torch.Generator().manual_seed(3)
    return torch.randn((count, 4, h, w), generator=generator, dtype=torch.float64)


def only(k, owners=3, h=16, w=16):
    """Masks with which one owner has the whole picture."""
    masks = torch.zeros(1, owners, h, w, dtype=torch.float64)
    masks[:, k] = 1
    return masks


@torch.no_grad()
@pytest.mark.parametrize(("h", "w"), [(16, 16), (13, 10)])
@pytest.mark.parametrize("halves", ["both", "conditional"])
def test_an_owner_of_the_whole_picture_works_as_its_own_pass(double, loras, h, w, halves):
    z = latents(2, h, w)
    with engine(double, loras) as (executor, passes):
        confined = Confined(executor, passes)
        for k, one in enumerate(passes):
            expected = executor.evaluate([one], z, T, halves=halves)
            found = confined.evaluate(only(k, 3, h, w), z, T, halves=halves, record=True)
            torch.testing.assert_close(found.noise, expected.noise, atol=1e-9, rtol=0)
            torch.testing.assert_close(found.maps[:, k], expected.maps[:, 0], atol=1e-9, rtol=0)


@torch.no_grad()
def test_pictures_may_have_masks_of_their_own(double, loras):
    z, masks = latents(2), torch.cat([only(1), only(2)])
    with engine(double, loras) as (executor, passes):
        confined = Confined(executor, passes)
        both = confined.evaluate(masks, z, T).noise
        for n in range(2):
            alone = confined.evaluate(masks[n : n + 1], z[n : n + 1], T).noise
            torch.testing.assert_close(both[n : n + 1], alone, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_lora_acts_in_its_region_first_and_most(double, loras):
    """One call from the base: what a owns changes more than what it does not."""
    masks = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    masks[:, 0, :, 8:], masks[:, 1, :, :8] = 1, 1
    z = latents()
    with engine(double, loras) as (executor, passes):
        confined = Confined(executor, passes)
        base = confined.evaluate(only(0), z, T).noise
        change = (confined.evaluate(masks, z, T).noise - base).abs()[0, 0, 1].mean(0)
    assert change[:, :8].mean() > 2 * change[:, 8:].mean() > 0


@torch.no_grad()
def test_processors_and_hooks_are_gone_afterwards(double, loras):
    before = {k: id(p) for k, p in double.unet.attn_processors.items()}
    handle = double.unet.conv_out.register_forward_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt), engine(double, loras) as (executor, passes):
        Confined(executor, passes).evaluate(only(0), latents(), T)
    handle.remove()
    assert {k: id(p) for k, p in double.unet.attn_processors.items()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in double.unet.modules())


def _interrupt(*_):
    raise KeyboardInterrupt


def every_layer(pipe, path, part):
    """A LoRA of all linear layers and convolutions whose path has `part` in it."""
    generator, tensors = torch.Generator().manual_seed(5), {}
    for name, module in plain_modules(pipe.unet).items():
        if part not in name or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        inputs = module.weight.shape[1]
        kernel = module.weight.shape[2:]
        tensors[f"unet.{name}.lora_A.weight"] = (
            torch.randn((2, inputs, *kernel), generator=generator) * 0.1
        )
        tensors[f"unet.{name}.lora_B.weight"] = (
            torch.randn((module.weight.shape[0], 2, *(1 for _ in kernel)), generator=generator)
            * 0.1
        )
    assert tensors
    save_file(tensors, path)
    return path


@torch.no_grad()
@pytest.mark.parametrize("part", ["time_emb_proj", "resnets", "ff", "conv_in", "proj_in"])
def test_every_kind_of_layer_can_be_confined(double, tmp_path, part):
    files = {"a": every_layer(double, tmp_path / "a.safetensors", part)}
    z, half = latents(), torch.zeros(1, 2, 16, 16, dtype=torch.float64)
    half[:, 0, :, 8:], half[:, 1, :, :8] = 1, 1
    with engine(double, files, "a [sks cat](a)") as (executor, passes):
        confined = Confined(executor, passes)
        base, own = (executor.evaluate([one], z, T).noise for one in passes)
        found = confined.evaluate(only(1, 2), z, T).noise
        torch.testing.assert_close(found, own, atol=1e-9, rtol=0)
        assert (own - base).abs().max() > 1e-3
        change = (confined.evaluate(half, z, T).noise - base).abs()[0, 0, 1].mean(0)
    assert change[:, :8].mean() > change[:, 8:].mean()


@torch.no_grad()
def test_a_layer_without_a_place_is_an_error(double, tmp_path):
    files = {"a": every_layer(double, tmp_path / "a.safetensors", "time_embedding")}
    with (
        engine(double, files, "a [sks cat](a)") as (executor, passes),
        pytest.raises(MethodError, match=r"'a' changes time_embedding\.linear_1.*frozen=passes"),
    ):
        Confined(executor, passes)


# -- the method ------------------------------------------------------------------------------------


def draw(pipe, loras, prompt, method, **changes):
    given = {"num_inference_steps": 3, "output_type": "latent", "progress": False}
    given["generator"] = torch.Generator().manual_seed(4)
    return loraweave.compose(pipe, prompt, loras=loras, method=method, **given | changes)


def test_one_concept_everywhere_is_plain_sampling_with_its_lora(double, loras):
    prompt, own = "a [sks cat](b) in the meadow", {"b": loras["b"]}
    expected = draw(double, own, prompt, "merge").images
    everywhere = {"b": Region(box=(0, 0, 1, 1))}
    found = draw(double, own, prompt, "masked", regions=everywhere)
    torch.testing.assert_close(found.images, expected, atol=1e-5, rtol=0)
    assert found.info["calls"] == 3
    assert found.info["rows"] == 6


def test_a_concepts_words_alone_are_a_prompt_of_their_own(double, loras):
    own, everywhere = {"b": loras["b"]}, {"b": Region(box=(0, 0, 1, 1))}
    expected = draw(double, own, "[sks cat](b)", "merge").images
    found = draw(
        double, own, "a [sks cat](b) in the meadow", "masked", regions=everywhere,
        settings={"text": "alone"},
    )  # fmt: skip
    torch.testing.assert_close(found.images, expected, atol=1e-5, rtol=0)


def test_regions_decide(double, loras):
    regions = {"a": Region(box=(0, 0, 0.5, 1)), "b": Region(box=(0.5, 0, 1, 1))}
    found = draw(double, loras, PROMPT, "masked", regions=regions)
    strips = draw(double, loras, PROMPT, "masked", settings={"layout": "strips"})
    assert torch.equal(found.images, strips.images)
    turned = dict(zip("ab", reversed(regions.values())))
    other = draw(double, loras, PROMPT, "masked", regions=turned)
    assert not torch.allclose(other.images, found.images, atol=1e-3)
    own = draw(double, loras, PROMPT, "masked", regions=regions, settings={"text": "own"})
    assert not torch.allclose(own.images, found.images, atol=1e-3)
    assert found.masks[0].shape == (3, 2, 16, 16)
    with pytest.raises(RegionError, match=r"no region for b.*--region b="):
        draw(double, loras, PROMPT, "masked", regions={"a": regions["a"]})
    with pytest.raises(MethodError, match="merge takes no regions"):
        draw(double, loras, PROMPT, "merge", regions=regions)


# -- regions ---------------------------------------------------------------------------------------


def test_boxes_own_the_cells_whose_centre_is_in_them():
    regions = {"a": [Region(box=(0, 0, 0.5, 1))], "b": [Region(box=(0.5, 0.26, 1, 0.75))]}
    masks = shared(region_masks(regions, ["a", "b"], (4, 4), (32, 32))[0])
    assert masks[0].tolist() == [[1, 1, 0, 0]] * 4
    assert masks[1].tolist() == [[0] * 4, [0, 0, 1, 1], [0, 0, 1, 1], [0] * 4]


def test_a_small_box_owns_the_nearest_cell_and_overlaps_are_shared():
    regions = {"a": [Region(box=(0.5, 0.5, 0.51, 0.51))], "b": [Region(box=(0, 0, 1, 1))]}
    masks = shared(region_masks(regions, ["a", "b"], (4, 4), (32, 32))[0])
    assert masks[0].sum() == 0.5
    assert masks.sum(0).tolist() == [[1] * 4] * 4


def test_mask_pictures_are_resized_by_area(tmp_path):
    from PIL import Image

    image = Image.new("L", (64, 32))
    image.paste(255, (0, 0, 24, 32))
    image.save(tmp_path / "mask.png")
    masks = region_masks({"a": [Region(image=tmp_path / "mask.png")]}, ["a"], (2, 4), (8, 4))[0]
    torch.testing.assert_close(masks, torch.tensor([[[1, 0.5, 0, 0]] * 2]), atol=0.01, rtol=0)
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    for name, message in (("black.png", "black everywhere"), ("none.png", "cannot read the mask")):
        with pytest.raises(RegionError, match=message):
            region_masks({"a": [Region(image=tmp_path / name)]}, ["a"], (2, 4), (8, 4))


@pytest.mark.parametrize(("count", "width"), [(1, 5), (3, 16), (4, 4)])
def test_strips_share_the_width_out(count, width):
    masks = strip_masks(count, (3, width))
    assert torch.equal(masks.sum(0), torch.ones(3, width))
    widths = masks[:, 0].sum(1)
    assert widths.max() - widths.min() <= 1
