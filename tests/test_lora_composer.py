"""LoRA-Composer and regional sampling, against plainer forms of themselves."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loraweave
from loraweave import MethodError, Region
from loraweave.backbone.sites import cross_attention_sites
from loraweave.methods import LoRAComposer, get_method
from loraweave.methods.lora_composer import INJECTED, reinitialised
from prepared import PROMPT, stage_of

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
BARE = {
    "presence": 0.0, "fill": 0.0, "leak": 0.0, "isolation": False, "reinitialise": "no",
    "outside": "prompt",
}  # fmt: skip


def noise(count=1):
    generator = torch.Generator().manual_seed(3)
    return torch.randn((count, 4, 16, 16), generator=generator, dtype=torch.float64)


def draw(pipe, loras, method="lora_composer", regions=None, steps=3, **own):
    return loraweave.compose(
        pipe, PROMPT, loras=loras, method=method, settings=own, num_inference_steps=steps,
        regions={"a": LEFT, "b": RIGHT} if regions is None else regions, output_type="latent",
        generator=torch.Generator().manual_seed(4), progress=False,
    )  # fmt: skip


def test_without_its_own_parts_it_is_masked(double, loras):
    bare = draw(double, loras, **BARE)
    masked = draw(double, loras, "masked", text="alone")
    torch.testing.assert_close(bare.images, masked.images, atol=1e-9, rtol=0)
    for part, value in {
        "isolation": True, "presence": 8.0, "fill": 2.0, "leak": 10.0, "reinitialise": "plain",
        "injected": "cross", "text": "own",
        "soft_edges": 1.0,
    }.items():  # fmt: skip
        other = draw(double, loras, **{**BARE, part: value})
        assert not torch.allclose(other.images, bare.images, atol=1e-6), part


def test_injection_is_the_loras_keys_values_and_output(double, loras, tmp_path):
    """The rest of the LoRA's part for the denoiser may as well not be there."""
    parts = tuple(path.replace(".", "_") for path in INJECTED)
    tensors = load_file(loras["a"])
    kept = {k: v for k, v in tensors.items() if "lora_te" in k or k.split(".")[0].endswith(parts)}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, tmp_path / "part.safetensors", metadata=header(loras["a"]))
    cross = {**BARE, "injected": "cross"}
    whole = draw(double, loras, **cross).images
    part = {**loras, "a": tmp_path / "part.safetensors"}
    torch.testing.assert_close(draw(double, part, **cross).images, whole, atol=1e-12, rtol=0)
    everything = draw(double, part, **BARE).images
    assert not torch.allclose(everything, whole, atol=1e-6), "b has more"


@torch.no_grad()
@pytest.mark.parametrize("injection", ["cross", "all"])
def test_injection_is_a_loop_over_regions(double, loras, injection):
    """Every cross-attention layer, against whole layers with merged weights, cut and pasted."""
    seen, method = {}, get_method("lora_composer", {**BARE, "injected": injection})
    boxes = {"a": Region(box=(0.5, 0, 1, 0.5)), "b": Region(box=(0, 0.5, 0.5, 1))}

    def see(attn, given, kept, out):
        seen[attn] = given[0], out

    with stage_of(double, loras, method, regions=boxes) as stage:
        names = {attn: name for name, attn in double.unet.named_modules() if attn in sites(double)}
        handles = [attn.register_forward_hook(see, with_kwargs=True) for attn in names]
        stage.predict(noise(), 0, torch.tensor(601))
        for handle in handles:
            handle.remove()
        owners = stage.confined.owners
        masks = torch.zeros(3, 16, 16, dtype=torch.float64)
        masks[1, :8, 8:], masks[2, 8:, :8] = 1, 1
        masks[0] = 1 - masks.sum(0)
    assert len(seen) == len(names) > 2
    for attn, (states, out) in seen.items():
        side = round(states.shape[1] ** 0.5)
        expected = torch.zeros_like(out)
        for owner, mask in zip(owners, masks):
            whole = copy.deepcopy(attn)
            whole._forward_hooks.clear()
            whole.set_processor(AttnProcessor())
            for adapter, weight in owner.adapters:
                for part, layer in whole.named_modules():
                    if (update := adapter.unet.get(f"{names[attn]}.{part}")) is not None:
                        layer.weight += weight * update.weight().to(layer.weight)
            region = mask[:: 16 // side, :: 16 // side].reshape(1, -1, 1)
            expected += whole(states, encoder_hidden_states=owner.states) * region
        torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)
        plain = attn(states, encoder_hidden_states=owners[0].states)
        assert not torch.allclose(out, plain, atol=1e-3)


def sites(pipe):
    return {site.module for site in cross_attention_sites(pipe.unet)}


def test_variants_are_defaults_of_the_other_settings():
    faithful = LoRAComposer({"variant": "faithful"}).settings.model_dump()
    ours, paper = LoRAComposer().settings.model_dump(), LoRAComposer({"variant": "paper"}).settings
    differs = {key for key in ours if ours[key] != faithful[key]}
    assert differs == {
        "variant", "outside", "injected", "reinitialise", "patience", "conditions",
    }  # fmt: skip
    # The authors' code: weights 8, 2 and 10, at most 26 updates, the loss looked at from step 5 on.
    figures = ("presence", "fill", "leak", "max_updates", "patience", "decay")
    assert [faithful[key] for key in figures] == [8, 2, 10, 26, 5, "sqrt"]
    assert paper.leak == pytest.approx(0.8 * paper.presence)
    assert (paper.reinitialise, paper.decay) == ("after_update", "linear")
    some = LoRAComposer({"variant": "faithful", "patience": 3}).settings.model_dump()
    assert some == faithful | {"patience": 3}
    assert LoRAComposer(faithful).settings.model_dump() == faithful
    with pytest.raises(MethodError, match="'variant'"):
        LoRAComposer({"variant": "best"})


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_gradient_is_that_of_the_loss(double, loras):
    with stage_of(double, loras, LoRAComposer({"layout": "strips"})) as stage:
        z, t = noise(), stage.scheduler.timesteps[0]
        losses, gradient = stage.gradient(z, t, 0)
        along = torch.randn(z.shape, generator=torch.Generator().manual_seed(5)).double()
        step = 1e-5
        ahead, behind = (stage.gradient(z + sign * step * along, t, 0)[0] for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    assert losses.item() > 0
    assert (gradient * along).sum().item() == pytest.approx(slope.item(), rel=1e-3)


def test_updates_end_when_the_loss_rises(double, loras):
    # A step of size 0 changes nothing, so all runs see the same losses.
    every = [loss for _, loss in draw(double, loras, steps=8, patience=8, step_size=0.0)
             .info["losses"][0]]  # fmt: skip
    assert len(every) == 8
    rises = [i for i in range(1, 8) if every[i] > every[i - 1]]
    for patience in range(8):
        some = draw(double, loras, steps=8, patience=patience, step_size=0.0).info["losses"][0]
        last = next((i for i in rises if i >= patience), 7)
        assert [i for i, _ in some] == list(range(last + 1))
    three = draw(double, loras, steps=8, patience=8, max_updates=3).info["losses"][0]
    assert [i for i, _ in three] == [0, 1, 2]
    assert draw(double, loras, presence=0.0, fill=0.0, leak=0.0).info["losses"] == [[]]


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_batch_is_singles(double, loras, rows):
    both = loraweave.compose(
        double, PROMPT, loras=loras, method="lora_composer", settings={"layout": "strips"},
        num_inference_steps=3, num_images_per_prompt=2, output_type="latent", progress=False,
        batch_size=2, pass_batch=rows,
        generator=[torch.Generator().manual_seed(n) for n in (1, 2)],
    )  # fmt: skip
    for n in (1, 2):
        single = loraweave.compose(
            double, PROMPT, loras=loras, method="lora_composer", settings={"layout": "strips"},
            num_inference_steps=3, output_type="latent", progress=False,
            generator=torch.Generator().manual_seed(n),
        )  # fmt: skip
        torch.testing.assert_close(both.images[n - 1 : n], single.images, atol=1e-8, rtol=0)


def test_fitting_noise_comes_into_the_regions():
    z = torch.randn((2, 8, 16), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    regions = torch.zeros(2, 4, 8, dtype=torch.bool)
    regions[0, 0:2, 0:2] = True
    regions[1, 2:4, 5:8] = True
    maps = [torch.zeros(1, 4, 8), torch.zeros(2, 4, 8)]
    maps[0][0, 2:4, 6:8] = 1  # the first one's words look at the lower right corner
    maps[1][0, 0:2, 1:4] = 0.5
    maps[1][1, 0:2, 1:4] = 0.5
    new = reinitialised(z, maps, regions, 2)
    assert new.mean().item() == pytest.approx(z.mean().item(), abs=1e-12)
    assert new.std().item() == pytest.approx(z.std().item(), abs=1e-12)
    raw = z.clone()
    raw[:, 0:4, 0:4] = z[:, 4:8, 12:16]
    raw[:, 4:8, 10:16] = z[:, 0:4, 2:8]
    raw = (raw - raw.mean()) / raw.std() * z.std() + z.mean()
    torch.testing.assert_close(new, raw, atol=1e-12, rtol=0)


def test_windows_are_in_place_where_the_level_does_not_divide_the_latent():
    z = torch.arange(7 * 10.0, dtype=torch.float64).view(1, 7, 10)
    region, own = torch.zeros(1, 4, 5, dtype=torch.bool), torch.zeros(1, 4, 5)
    region[0, 2:4, 3:5] = True  # cells 4 to 6 by 6 to 9
    own[0, 0:2, 0:2] = 1
    new = reinitialised(z, [own], region, 2)
    raw = z.clone()
    raw[:, 4:7, 6:10] = z[:, 0:3, 0:4]
    raw = (raw - raw.mean()) / raw.std() * z.std() + z.mean()
    torch.testing.assert_close(new, raw, atol=1e-12, rtol=0)


def test_a_region_of_any_shape_is_filled_in_its_own_shape():
    z = torch.randn((1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    regions = torch.ones(4, 4).triu().bool()
    regions = torch.stack([regions, ~regions])
    new = reinitialised(z, [region[None].float() for region in regions], regions, 1)
    torch.testing.assert_close(new, z, atol=1e-12, rtol=0)


def test_what_would_be_lost_is_refused(double, loras, tmp_path):
    queries = {k: v for k, v in load_file(loras["a"]).items() if "attn2_to_q" in k}
    save_file(queries, tmp_path / "queries.safetensors", metadata=header(loras["a"]))
    with pytest.raises(MethodError, match="'a' has no keys, values or output of cross-attention"):
        draw(double, {**loras, "a": tmp_path / "queries.safetensors"}, injected="cross")


def test_a_lora_that_stops_acts_before_the_first_step_of_every_picture(double, loras):
    timed = {**loras, "a": loraweave.LoraRef(path=loras["a"], stop=0.5)}
    both, second = (
        loraweave.compose(
            double, PROMPT, loras=timed, method="lora_composer", settings={"layout": "strips"},
            num_inference_steps=2, num_images_per_prompt=len(seeds), output_type="latent",
            generator=[torch.Generator().manual_seed(n) for n in seeds], progress=False,
        ).images
        for seeds in ((1, 2), (2,))
    )  # fmt: skip
    assert torch.equal(both[1:], second)


@pytest.mark.parametrize("method", ["lora_composer", "regional"])
def test_strips_and_regions_exclude_each_other(double, loras, method):
    with pytest.raises(MethodError, match=f"{method} with layout 'strips' cuts the picture"):
        draw(double, loras, method, layout="strips")


def test_regional_has_one_model_and_a_text_for_each_region(double, loras):
    whole = draw(double, loras, "regional").images
    turned = draw(double, loras, "regional", regions={"a": RIGHT, "b": LEFT}).images
    assert not torch.allclose(whole, turned, atol=1e-3)
    with stage_of(double, loras, get_method("regional", {"layout": "strips"})) as stage:
        owners = stage.confined.owners
    names = [[adapter.name for adapter, _ in owner.adapters] for owner in owners]
    assert names == [["a", "b"]] * 3
    assert [o.text for o in owners] == [
        "a sks cat and a zwx dog in the meadow",
        "sks cat",
        "zwx dog",
    ]


fraction = st.integers(0, 20).map(lambda n: n / 20)
boxes = st.tuples(fraction, fraction, fraction, fraction).filter(
    lambda b: b[0] < b[2] and b[1] < b[3]
)


@settings(max_examples=8, deadline=None)
@given(boxes, boxes)
def test_no_box_makes_a_picture_undefined(double, loras, one, other):
    out = draw(double, loras, regions={"a": one, "b": other}, steps=2)
    assert out.images.isfinite().all()
