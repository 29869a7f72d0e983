"""Every format and algorithm of LoRA files: equal values give equal updates, nothing is lost."""

import copy
import json
from contextlib import ExitStack

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from formats import ALPHA, KINDS, RANK, deltas, values, write
from loraweave.denoise.hooks import adapter_hooks
from loraweave.errors import BaseModelMismatch, LoraError, UnsupportedLoraFormat
from loraweave.lora import adapter_from_peft, inspect_lora, load_adapter, plain_modules
from loraweave.lora.convert import convert_lora
from loraweave.lora.ldm import ldm_names
from loraweave.lora.skeleton import Skeleton, sd1_skeleton
from loraweave.lora.updates import Dora, Hadamard, Kronecker, LowRank, compressed
from tiny import random_lora, tiny_pipeline

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
CONV = "down_blocks.0.resnets.0.conv1"
LINEAR = f"{BLOCK}.attn1.to_q"


FORMATS = {  # where `inspect` says it in other words than the fixtures
    "pseudo-kohya": "kohya, doubled names",
    "diffusers, lora.down": "diffusers",
    "diffusers old, with prefix": "diffusers, old names",
    "diffusers old, without prefix": "diffusers, old names",
    "PEFT folder": "PEFT",
    "PEFT folder for each model": "PEFT",
    "PEFT bare": "PEFT, without prefix",
    "PEFT bare, alpha in the header": "PEFT, without prefix",
    "cloneofsimo, old order": "cloneofsimo",
    "cloneofsimo, new order": "cloneofsimo",
    "ED-LoRA main": "ED-LoRA",
    "ED-LoRA research": "ED-LoRA",
}


def load(pipe, source, **options):
    return load_adapter("x", source, unet=pipe.unet, text_encoder=pipe.text_encoder, **options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def noise_of(unet: nn.Module) -> Tensor:
    """Two rows of different latents and texts through a denoiser."""
    with torch.no_grad():
        return unet(randn(2, 4, 16, 16, seed=5), 500, randn(2, 77, 32, seed=6)).sample


def with_adapter(unet: nn.Module, adapter, weights: tuple[float, float]) -> Tensor:
    rows = [[(adapter, weight)] for weight in weights]
    with adapter_hooks(unet, "unet", [adapter]) as hooks, hooks.rows(rows):
        return noise_of(unet)


# ---------------------------------------------------------------- names and layouts


@pytest.mark.parametrize("kind", KINDS)
def test_one_set_of_values_in_every_format(pipe, tmp_path, kind):
    made = values(pipe)
    path = write(kind, made, pipe, tmp_path / "it")
    adapter = load(pipe, path, allow_pickle=True)
    found = {("unet", p): u.weight() for p, u in adapter.unet.items()}
    found |= {("text_encoder", p): u.weight() for p, u in adapter.text_encoder.items()}
    expected = deltas(made)
    assert found.keys() == expected.keys()
    for place, delta in expected.items():
        torch.testing.assert_close(found[place], delta, msg=str(place))
    assert adapter.dropped == ()

    report = inspect_lora(path, True, models=Skeleton(pipe.unet, pipe.text_encoder))
    assert report.refused is None
    assert report.tensors_landed == report.tensors_total == adapter.tensors
    assert report.format == FORMATS.get(kind, kind)
    assert (report.rank, report.scale, report.dropped) == (RANK, 1.0, [])


@pytest.mark.parametrize("kind", ["PEFT folder", "PEFT bare"])
def test_a_text_encoder_alone(pipe, tmp_path, kind):
    made = values(pipe)
    made["unet"] = {}
    adapter = load(pipe, write(kind, made, pipe, tmp_path / "it"))
    assert (len(adapter.unet), len(adapter.text_encoder)) == (0, 8)


def test_ldm_names_are_those_of_the_original_code():
    """diffusers' own converter, given tensors under our names, must give back its own names."""
    unet = sd1_skeleton().unet
    names = ldm_names(plain_modules(unet))
    assert len(set(names.values())) == len(names) == len(plain_modules(unet))
    state = unet.state_dict()
    given = {}
    for path, name in names.items():
        given[f"model.diffusion_model.{name}.weight"] = state[f"{path}.weight"]
        if f"{path}.bias" in state:
            given[f"model.diffusion_model.{name}.bias"] = state[f"{path}.bias"]
    norms = {"norm1": "in_layers.0", "norm2": "out_layers.0"}
    for path in state:  # the converter reads the norms too; give it those it asks for by name
        stem, _, last = path.rpartition(".")
        head, _, norm = stem.rpartition(".")
        if norm in norms and f"{head}.conv1" in names:
            base = names[f"{head}.conv1"].removesuffix(".in_layers.2")
            given[f"model.diffusion_model.{base}.{norms[norm]}.{last}"] = state[path]
    for last in ("weight", "bias"):
        given[f"model.diffusion_model.out.0.{last}"] = state[f"conv_norm_out.{last}"]
    converted = convert_ldm_unet_checkpoint(given, unet.config)
    for path in names:
        assert converted[f"{path}.weight"] is state[f"{path}.weight"], path


def test_ldm_names_of_convolutions_land(pipe):
    down, up = randn(2, 32, 3, 3), randn(32, 2, 1, 1)
    tensors = {"lora_unet_input_blocks_1_0_in_layers_2.lora_down.weight": down,
               "lora_unet_input_blocks_1_0_in_layers_2.lora_up.weight": up}  # fmt: skip
    assert list(load(pipe, tensors).unet) == [CONV]


def test_numbers_that_do_not_fit(pipe, tmp_path):
    made = values(pipe, text=False)
    tensors = load_file(write("cloneofsimo, old order", made, pipe, tmp_path / "it"))
    with pytest.raises(UnsupportedLoraFormat, match=r"numbers 35 layers.*are 36"):
        load(pipe, {k: t for k, t in tensors.items() if not k.startswith("unet:35:")})
    wrong = {**tensors, "unet:0:up": randn(48, RANK)}
    with pytest.raises(BaseModelMismatch, match="neither of the two known orders"):
        load(pipe, wrong)


def test_edlora_embeddings(pipe, tmp_path):
    path = write("ED-LoRA main", values(pipe), pipe, tmp_path)
    state = torch.load(path, weights_only=True)
    with pytest.raises(UnsupportedLoraFormat, match=r"--allow-pickle"):
        load(pipe, path)
    state["params"]["new_concept_embedding"] = {"<c1>": randn(1, 32), "<c2>": randn(1, 32, seed=1)}
    torch.save(state, path)
    assert list(load(pipe, path, allow_pickle=True).embeddings) == ["<c1>", "<c2>"]
    assert inspect_lora(path, True).format == "ED-LoRA"
    state["params"]["new_concept_embedding"] = {"<c1>": randn(16, 32)}
    torch.save(state, path)
    with pytest.raises(BaseModelMismatch, match="one for each cross-attention layer of its base"):
        load(pipe, path, allow_pickle=True)


# ---------------------------------------------------------------- algorithms


def kohya(path: str, **parts: Tensor) -> dict[str, Tensor]:
    return {f"lora_unet_{path.replace('.', '_')}.{role}": t for role, t in parts.items()}


@pytest.mark.parametrize("path", [LINEAR, CONV, "time_embedding.linear_1"])
@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr whole", "LoCon", "DoRA", "DoRA in"])
def test_what_a_row_gets_is_what_the_changed_weight_gives(pipe, path, kind):
    module = plain_modules(pipe.unet)[path]
    out, inner = module.weight.shape[:2]
    columns = module.weight[0].numel()
    conv = module.weight.ndim == 4
    half = {"lora_down.weight": randn(3, *module.weight.shape[1:]),
            "lora_up.weight": randn(out, 3, seed=1), "alpha": torch.tensor(1.5)}  # fmt: skip
    parts = {
        "LoHa": {"hada_w1_a": randn(out, 3), "hada_w1_b": randn(3, columns, seed=1),
                 "hada_w2_a": randn(out, 3, seed=2), "hada_w2_b": randn(3, columns, seed=3),
                 "alpha": torch.tensor(1.5)},
        "LoKr": {"lokr_w1_a": randn(8, 2), "lokr_w1_b": randn(2, 16, seed=1),
                 "lokr_w2_a": randn(out // 8, 2, seed=2),
                 "lokr_w2_b": randn(2, columns // 16, seed=3), "alpha": torch.tensor(1.0)},
        "LoKr whole": {"lokr_w1": randn(8, 4), "lokr_w2": randn(
            out // 8, inner // 4, *module.weight.shape[2:], seed=1), "alpha": torch.tensor(1.0)},
        "LoCon": half,
        "DoRA": {**half, "dora_scale": randn(out, *(1,) * (module.weight.ndim - 1)).abs() + 1},
        "DoRA in": {**half, "dora_scale": randn(1, inner, *(1,) * (2 * conv)).abs() + 1},
    }[kind]  # fmt: skip
    adapter = load(pipe, kohya(path, **parts))
    update = adapter.unet[path]
    if isinstance(update, Hadamard | LowRank):
        assert update.scale == 0.5
    if kind.startswith("LoKr"):
        assert isinstance(update, Kronecker)
        assert update.scale == (1.0 if kind == "LoKr whole" else 0.5)
    expected = []
    for weight in (0.7, -0.4):
        changed = copy.deepcopy(pipe.unet)
        layer = plain_modules(changed)[path]
        layer.weight.data += update.change(layer.weight.data, weight)
        expected.append(noise_of(changed))
    found = with_adapter(pipe.unet, adapter, (0.7, -0.4))
    torch.testing.assert_close(found[0], expected[0][0], atol=2e-5, rtol=0)
    torch.testing.assert_close(found[1], expected[1][1], atol=2e-5, rtol=0)
    both = with_adapter(pipe.unet, adapter, (0.7, 0.7))  # one weight for all rows: another way
    torch.testing.assert_close(both, expected[0], atol=2e-5, rtol=0)
    assert (found[0] - noise_of(pipe.unet)[0]).abs().max() > 1e-4


def test_published_formulas(pipe):
    """Each algorithm's matrix against its formula, written out."""
    a, b, c, d = randn(32, 2), randn(2, 32, seed=1), randn(32, 2, seed=2), randn(2, 32, seed=3)
    loha = load(pipe, kohya(LINEAR, hada_w1_a=a, hada_w1_b=b, hada_w2_a=c, hada_w2_b=d))
    torch.testing.assert_close(loha.unet[LINEAR].weight(), (a @ b) * (c @ d))
    lokr = load(pipe, kohya(LINEAR, lokr_w1=a[:8], lokr_w2_a=b.T[:4], lokr_w2_b=d[:, :16]))
    torch.testing.assert_close(lokr.unet[LINEAR].weight(), torch.kron(a[:8], b.T[:4] @ d[:, :16]))
    for adapter in (loha, lokr):
        up, down = adapter.unet[LINEAR].factors()
        torch.testing.assert_close(up @ down, adapter.unet[LINEAR].weight())

    # Tucker: LoCon's middle, LoHa's and LoKr's cores, on a 3x3 convolution of 32 channels.
    x, layer = randn(1, 32, 8, 8), plain_modules(pipe.unet)[CONV]
    down, mid, up = randn(3, 32, 1, 1), randn(3, 3, 3, 3, seed=1), randn(32, 3, 1, 1, seed=2)
    tucker = load(pipe, kohya(CONV, **{"lora_down.weight": down, "lora_mid.weight": mid,
                                       "lora_up.weight": up}))  # fmt: skip
    conv = torch.nn.functional.conv2d
    expected = conv(conv(conv(x, down), mid, padding=1), up)
    torch.testing.assert_close(tucker.unet[CONV].delta(x, layer), expected, atol=1e-5, rtol=0)
    core, left, right = randn(2, 2, 3, 3), randn(2, 32, seed=1), randn(2, 32, seed=2)
    whole = torch.einsum("ijhw,io,jn->onhw", core, left, right)
    loha = load(pipe, kohya(CONV, hada_w1_a=left, hada_w1_b=right, hada_t1=core,
                            hada_w2_a=left, hada_w2_b=right, hada_t2=core))  # fmt: skip
    torch.testing.assert_close(loha.unet[CONV].weight(), whole * whole)
    lokr = load(pipe, kohya(CONV, lokr_w1=torch.eye(2), lokr_w2_a=left[:, :16],
                            lokr_w2_b=right[:, :16], lokr_t2=core))  # fmt: skip
    quarter = lokr.unet[CONV].weight()[:16, :16]
    torch.testing.assert_close(quarter, whole[:16, :16])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 4), kernel=st.sampled_from([None, 1, 3]),
    ranks=st.tuples(*[st.one_of(st.none(), st.integers(1, 3))] * 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_kronecker_products_of_all_sizes(sizes, kernel, ranks, seed):
    o1, i1, o2, i2 = sizes
    cells = kernel**2 if kernel else 1

    def factor(rows: int, columns: int, rank: int | None, seed: int) -> tuple[Tensor, ...]:
        if rank is None:
            return (randn(rows, columns, seed=seed),)
        return randn(rows, rank, seed=seed), randn(rank, columns, seed=seed + 1)

    layer = nn.Conv2d(i1 * i2, o1 * o2, kernel, padding=kernel // 2, bias=False) if kernel else (
        nn.Linear(i1 * i2, o1 * o2, bias=False)
    )  # fmt: skip
    first, second = factor(o1, i1, ranks[0], seed), factor(o2, i2 * cells, ranks[1], seed + 2)
    update = Kronecker(first, second, tuple(layer.weight.shape), 0.5)
    x = randn(2, i1 * i2, 4, 4, seed=seed) if kernel else randn(2, 3, i1 * i2, seed=seed)
    layer.weight.data = update.weight()
    torch.testing.assert_close(update.delta(x, layer), layer(x), atol=1e-5, rtol=1e-4)
    up, down = update.factors()
    torch.testing.assert_close(0.5 * up @ down, update.weight().flatten(1), atol=1e-5, rtol=1e-4)


def trained(pipe, config) -> nn.Module:
    """peft's own model with random values in all of its tensors."""
    model = get_peft_model(copy.deepcopy(pipe.unet), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
        elif any(word in name for word in ("lora_", "hada_", "lokr_")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "conv1"], use_dora=True),
        LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "conv1"], use_rslora=True),
        LoHaConfig(r=3, alpha=6, target_modules=["to_q", "conv1"]),
        LoHaConfig(r=3, alpha=6, target_modules=["conv1"], use_effective_conv2d=True),
        LoKrConfig(r=3, alpha=6, target_modules=["to_q", "conv1"]),
        LoKrConfig(r=3, alpha=6, target_modules=["to_q", "conv1"], decompose_both=True,
                   decompose_factor=4),
    ],
    ids=["DoRA", "rsLoRA", "LoHa", "LoHa Tucker", "LoKr", "LoKr both"],
)  # fmt: skip
def test_peft_adapters_act_as_in_peft(pipe, tmp_path, config):
    model = trained(pipe, config)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    expected = noise_of(model)
    assert (expected - noise_of(pipe.unet)).abs().max() > 1e-2
    adapter = load(pipe, folder)
    torch.testing.assert_close(
        with_adapter(pipe.unet, adapter, (1.0, 1.0)), expected, atol=1e-4, rtol=1e-4
    )
    state = get_peft_model_state_dict(model)
    assert adapter.tensors == len(state)
    if config.peft_type == "LORA" and config.use_dora:
        for layer in model.modules():  # peft's way to give a weight
            if hasattr(layer, "set_scale"):
                layer.set_scale("default", 0.4)
        weak = noise_of(model)
        torch.testing.assert_close(
            with_adapter(pipe.unet, adapter, (0.4, 0.4)), weak, atol=1e-4, rtol=1e-4
        )
        with_model = adapter_from_peft("default", model.base_model.model, pipe.text_encoder)
        torch.testing.assert_close(
            with_adapter(pipe.unet, with_model, (1.0, 1.0)), weak, atol=1e-4, rtol=1e-4
        )
        (folder / "adapter_model.safetensors").unlink()
        plain = {k: t for k, t in state.items() if "magnitude" not in k}
        save_file(plain, folder / "adapter_model.safetensors")
        with pytest.raises(UnsupportedLoraFormat, match=r"DORA.*no magnitudes"):
            load(pipe, folder)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"hada_w1_a": randn(32, 2)}, "without"),
        ({"lokr_w1": randn(8, 8)}, "lokr_w2"),
        ({"lokr_w1": randn(8, 8), "lokr_w1_a": randn(8, 1), "lokr_w2": randn(4, 4)}, "at once"),
        ({"dora_scale": randn(32, 1)}, "dora_scale alone"),
        ({"alpha": torch.tensor(1.0)}, "alpha alone"),
        ({"lora_down.weight": randn(2, 32), "lora_up.weight": randn(32, 2),
          "lokr_w1": randn(8, 8), "lokr_w2": randn(4, 4)}, "LoKr and LoRA at once"),
    ],
)  # fmt: skip
def test_incomplete_modules(pipe, parts, reason):
    with pytest.raises(UnsupportedLoraFormat, match=rf"incomplete.*{reason}"):
        load(pipe, kohya(LINEAR, **parts))
    with pytest.raises(UnsupportedLoraFormat, match="nothing of the file can be used"):
        load(pipe, kohya(LINEAR, **parts), allow_partial=True)


@pytest.mark.parametrize(
    "parts",
    [
        # Factors whose product would be terabytes: noticed before it is made.
        {"lokr_w1_a": randn(40_000, 1), "lokr_w1_b": randn(1, 40_000),
         "lokr_w2_a": randn(40_000, 1), "lokr_w2_b": randn(1, 40_000)},
        {"lokr_w1": randn(1, 1), "lokr_t2": randn(1, 1, 3, 3), "lokr_w2_a": randn(1, 90_000),
         "lokr_w2_b": randn(1, 90_000)},
        {"hada_w1_a": randn(1, 90_000), "hada_w1_b": randn(1, 90_000),
         "hada_t1": randn(1, 1, 3, 3), "hada_w2_a": randn(32, 1), "hada_w2_b": randn(1, 288)},
        {"lora_down.weight": randn(1, 90_000, 1, 1), "lora_mid.weight": randn(9_000, 1, 3, 3),
         "lora_up.weight": randn(32, 9_000, 1, 1)},
        {"lokr_w1_a": randn(8, 2), "lokr_w1_b": randn(3, 8), "lokr_w2": randn(4, 4, 3, 3)},
        {"lora_down.weight": randn(2, 32, 3, 3), "lora_up.weight": randn(32, 2),
         "dora_scale": randn(7, 1)},
    ],
)  # fmt: skip
def test_shapes_are_checked_before_anything_is_made(pipe, parts):
    with pytest.raises(BaseModelMismatch, match=r"the file has|two ranks"):
        load(pipe, kohya(CONV, **parts))


_ROLES = [
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale",
    "lora_magnitude_vector", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1",
    "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
]  # fmt: skip
_SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 288])
_SHAPES = st.lists(_SIZES, max_size=4).filter(lambda s: torch.Size(s).numel() < 10**6)


@settings(max_examples=300, deadline=None)
@given(
    tensors=st.dictionaries(
        st.one_of(
            st.tuples(st.sampled_from([LINEAR, CONV]), st.sampled_from(_ROLES)).map(
                lambda one: next(iter(kohya(one[0], **{one[1]: torch.ones(1)})))
            ),
            st.sampled_from(["<s1>", "emb_params", "unet:0:up", "unet:0:down", "clip_l", "x",
                             "bundle_emb.a.string_to_param.*", "new_concept_embedding.<c>"]),
        ),
        _SHAPES, max_size=6,
    ),
    partial=st.booleans(),
)  # fmt: skip
def test_whatever_a_file_holds_is_used_or_refused(pipe, tensors, partial):
    made = {key: torch.ones(shape) for key, shape in tensors.items()}
    try:
        adapter = load(pipe, made, allow_partial=partial)
    except LoraError:
        return
    assert partial or not adapter.dropped
    for path, update in adapter.unet.items():
        layer = plain_modules(pipe.unet)[path]
        assert update.change(layer.weight.detach()).shape == layer.weight.shape


def test_partial_files_only_on_request(pipe):
    down, up = randn(2, 32), randn(32, 2)
    whole = kohya(LINEAR, **{"lora_down.weight": down, "lora_up.weight": up})
    strange = {"optimizer.step": randn(1),
               "lora_unet_down_blocks_9_x.lora_down.weight": randn(2, 32),
               **kohya(f"{BLOCK}.attn1.to_k", **{"lora_down.weight": down})}  # fmt: skip
    for key, tensor in strange.items():
        with pytest.raises(UnsupportedLoraFormat, match=r"--allow-partial"):
            load(pipe, {**whole, key: tensor})
    adapter = load(pipe, {**whole, **strange}, allow_partial=True)
    assert set(adapter.dropped) == set(strange)
    assert (list(adapter.unet), adapter.tensors) == ([LINEAR], 5)
    wrong = kohya(LINEAR, **{"lora_down.weight": randn(2, 64), "lora_up.weight": up})
    with pytest.raises(BaseModelMismatch, match="made for"):
        load(pipe, wrong, allow_partial=True)


# ---------------------------------------------------------------- converting


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_converted_files_act_the_same_in_the_stock_loader(pipe, tmp_path, target):
    source = write("cloneofsimo, new order", values(pipe), pipe, tmp_path / "it")
    adapter = load(pipe, source)
    out = tmp_path / "out.safetensors"
    report = convert_lora(adapter, out, target)
    assert (report.approximated, report.relative_error, report.ranks) == (0, 0.0, [RANK])
    stock = tiny_pipeline()
    stock.load_lora_weights(out, adapter_name="x")
    torch.testing.assert_close(
        noise_of(stock.unet), with_adapter(pipe.unet, adapter, (1.0, 1.0)), atol=1e-4, rtol=0
    )
    ids = pipe.tokenizer(["a cat"], return_tensors="pt").input_ids
    rows = [[(adapter, 1.0)]]
    with torch.no_grad(), adapter_hooks(pipe.text_encoder, "text_encoder", [adapter]) as hooks:
        with hooks.rows(rows):
            ours = pipe.text_encoder(ids)[0]
        torch.testing.assert_close(stock.text_encoder(ids)[0], ours, atol=1e-5, rtol=0)


def test_mixed_ranks_and_alphas_survive(pipe, tmp_path):
    tensors = kohya(LINEAR, **{"lora_down.weight": randn(2, 32), "lora_up.weight": randn(32, 2),
                               "alpha": torch.tensor(3.0)})  # fmt: skip
    tensors |= kohya(CONV, **{"lora_down.weight": randn(5, 32, 3, 3), "alpha": torch.tensor(1.0),
                              "lora_up.weight": randn(32, 5, 1, 1)})  # fmt: skip
    adapter = load(pipe, tensors)
    expected = with_adapter(pipe.unet, adapter, (1.0, 1.0))
    for target, name in (("kohya", "k.safetensors"), ("diffusers", "d.safetensors"), ("peft", "p")):
        out = tmp_path / name
        convert_lora(adapter, out, target)
        again = load(pipe, out)
        assert {p: u.scale for p, u in again.unet.items()} == {LINEAR: 1.5, CONV: 0.2}
        if target == "peft":
            theirs = noise_of(PeftModel.from_pretrained(copy.deepcopy(pipe.unet), str(out)))
        else:
            stock = tiny_pipeline()
            stock.load_lora_weights(out, adapter_name="x")
            theirs = noise_of(stock.unet)
        torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=0)


def test_dora_stays_dora(pipe, tmp_path):
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "conv1"], use_dora=True)
    model = trained(pipe, config)
    model.save_pretrained(tmp_path / "adapter")
    adapter, expected = load(pipe, tmp_path / "adapter"), noise_of(model)
    for target, name in (("kohya", "k.safetensors"), ("diffusers", "d.safetensors"), ("peft", "p")):
        convert_lora(adapter, tmp_path / name, target)
        again = load(pipe, tmp_path / name)
        assert all(isinstance(update, Dora) for update in again.unet.values())
        ours = with_adapter(pipe.unet, again, (1.0, 1.0))
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
        assert "DoRA" in inspect_lora(tmp_path / name).algorithm
    theirs = PeftModel.from_pretrained(copy.deepcopy(pipe.unet), str(tmp_path / "p"))
    torch.testing.assert_close(noise_of(theirs), expected, atol=1e-4, rtol=1e-4)
    inputs = kohya(LINEAR, **{"lora_down.weight": randn(2, 32), "lora_up.weight": randn(32, 2),
                              "dora_scale": randn(1, 32)})  # fmt: skip
    with pytest.raises(LoraError, match="magnitude for each input"):
        convert_lora(load(pipe, inputs), tmp_path / "q", "peft")
    assert not (tmp_path / "q").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_other_algorithms_become_a_lora_with_a_stated_error(pipe, tmp_path, kind):
    make = {"LoHa": LoHaConfig, "LoKr": LoKrConfig}[kind]
    model = trained(pipe, make(r=2, alpha=2, target_modules=["to_q", "conv1"]))
    model.save_pretrained(tmp_path / "adapter")
    adapter = load(pipe, tmp_path / "adapter")
    whole = convert_lora(adapter, tmp_path / "whole.safetensors", "kohya")
    assert whole.approximated == len(adapter.unet)
    assert whole.largest_error < 1e-5
    again = load(pipe, tmp_path / "whole.safetensors")
    for path, update in again.unet.items():
        torch.testing.assert_close(update.weight(), adapter.unet[path].weight(), atol=1e-5, rtol=0)
    small = convert_lora(adapter, tmp_path / "small.safetensors", "kohya", rank=1)
    assert small.ranks == [1]
    off = [
        (load(pipe, small.path).unet[p].weight() - u.weight()).norm() ** 2
        for p, u in adapter.unet.items()
    ]
    norms = [update.weight().norm() ** 2 for update in adapter.unet.values()]
    assert small.relative_error == pytest.approx(float((sum(off) / sum(norms)) ** 0.5), rel=1e-3)
    assert small.relative_error > 0.1


def test_compressing_is_the_best_of_its_rank():
    update = LowRank(randn(6, 9), randn(7, 6, seed=1), -2.0)
    s = torch.linalg.svdvals(update.weight())
    small = compressed(update, 3)
    assert small.rank == 3
    error = (small.weight() - update.weight()).norm()
    torch.testing.assert_close(error, s[3:].square().sum().sqrt())
    assert compressed(LowRank(torch.zeros(2, 9), randn(7, 2)), 5).rank == 1


def test_convert_refuses(pipe, tmp_path):
    adapter = load(pipe, random_lora(pipe, tmp_path / "a.safetensors"))
    (tmp_path / "there").mkdir()
    for path, target, more, reason in [
        ("a.bin", "kohya", {}, r"\.safetensors"),
        ("there", "peft", {}, "exists already"),
        ("x.safetensors", "onnx", {}, "Unknown LoRA format"),
        ("x.safetensors", "kohya", {"rank": 0}, "at least 1"),
        ("x.safetensors", "kohya", {"tokens": {"<s>": "<t>"}}, "no token '<s>'"),
    ]:
        with pytest.raises(LoraError, match=reason):
            convert_lora(adapter, tmp_path / path, target, **more)
    alone = load(pipe, {"<s1>": randn(32)})
    with pytest.raises(LoraError, match="only embeddings"):
        convert_lora(alone, tmp_path / "x.safetensors", "kohya")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "there"]


@pytest.mark.parametrize(("target", "name"), [("kohya", "k.safetensors"), ("peft", "p"),
                                              ("diffusers", "d.safetensors")])  # fmt: skip
def test_embeddings_go_along(pipe, tmp_path, target, name):
    path = write("cloneofsimo, old order", values(pipe), pipe, tmp_path / "it")
    save_file({**load_file(path), "<s1>": randn(32), "style": randn(2, 32)}, path)
    with pytest.raises(UnsupportedLoraFormat, match="1 tensors besides"):
        load(pipe, path)  # a bare word is an embedding only where it is alone
    save_file({**{k: t for k, t in load_file(path).items() if k != "style"},
               "bundle_emb.style.string_to_param.*": randn(2, 32)}, path)  # fmt: skip
    adapter = load(pipe, path)
    assert {t: tuple(v.shape) for t, v in adapter.embeddings.items()} == {
        "<s1>": (1, 32), "style": (2, 32)
    }  # fmt: skip
    convert_lora(adapter, tmp_path / name, target, tokens={"<s1>": "<cat1>"})
    again = load(pipe, tmp_path / name)
    assert set(again.embeddings) == {"<cat1>", "style"}
    assert torch.equal(again.embeddings["style"], adapter.embeddings["style"])
    assert again.unet.keys() == adapter.unet.keys()


# ---------------------------------------------------------------- inspecting


def test_inspect_says_what_lands(tmp_path, pipe):
    made = {f"{LINEAR}.lora_A.weight": randn(2, 320), f"{LINEAR}.lora_B.weight": randn(320, 2),
            f"{BLOCK}.attn2.to_k.lora_A.weight": randn(2, 768),
            f"{BLOCK}.attn2.to_k.lora_B.weight": randn(320, 2)}  # fmt: skip
    path = tmp_path / "a.safetensors"
    save_file(made, path, {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "r": 2})})
    report = inspect_lora(path).model_dump()
    assert "Stable Diffusion 1.x" in report["landed_on"]
    assert {key: report[key] for key in ("rank", "alpha", "scale", "parts", "tensors_total",
                                         "tensors_landed", "dropped", "refused")} == {
        "rank": 2, "alpha": 8.0, "scale": 4.0, "parts": {"unet": 2}, "tensors_total": 4,
        "tensors_landed": 4, "dropped": [], "refused": None,
    }  # fmt: skip
    save_file({**made, "step": randn(1)}, path)
    report = inspect_lora(path)
    assert (report.tensors_total, report.tensors_landed, report.dropped) == (5, 4, ["step"])
    assert "nothing is known about: step" in str(report.refused)
    save_file({f"{BLOCK}.attn2.to_k.lora_A.weight": randn(2, 2048),
               f"{BLOCK}.attn2.to_k.lora_B.weight": randn(320, 2)}, path)  # fmt: skip
    report = inspect_lora(path)
    assert report.tensors_landed == 0
    assert "Stable Diffusion XL" in report.base
    assert "made for Stable Diffusion XL" in str(report.refused)


def test_sidecar_embeddings(pipe, tmp_path):
    path = random_lora(pipe, tmp_path / "cat.safetensors")
    alone = load(pipe, path)
    save_file({"clip_l": randn(2, 32)}, tmp_path / "cat_emb.safetensors")
    both = load(pipe, path)
    assert list(both.embeddings) == ["<s0>", "<s1>"]
    assert both.sha256 != alone.sha256
    folder = random_lora(pipe, tmp_path / "peft", "peft")
    torch.save({"<toy>": randn(32)}, folder / "learned_embeds.bin")
    with pytest.raises(UnsupportedLoraFormat, match="allow_pickle=True"):
        load(pipe, folder)
    assert list(load(pipe, folder, allow_pickle=True).embeddings) == ["<toy>"]
    save_file({"<s0>": randn(32), "clip_l": randn(1, 32)}, tmp_path / "cat_emb.safetensors")
    with pytest.raises(UnsupportedLoraFormat, match="two embeddings for the token <s0>"):
        load(pipe, path)
    save_file({"<s0>": randn(64)}, tmp_path / "cat_emb.safetensors")
    with pytest.raises(BaseModelMismatch, match="width 64"):
        load(pipe, path)
    with ExitStack() as stack:
        for bad in (torch.full((32,), float("nan")), randn(2, 2, 32)):
            save_file({"<s0>": bad}, tmp_path / "cat_emb.safetensors")
            stack.enter_context(pytest.raises(LoraError))
            load(pipe, path)


@pytest.mark.parametrize(
    ("state", "tokens"),
    [
        ({"<cat-toy>": randn(32)}, {"<cat-toy>": 1}),
        ({"plushie": randn(3, 32)}, {"plushie": 3}),
        ({"emb_params": randn(2, 32)}, {"toy": 2}),
        ({"string_to_param": {"*": randn(2, 32)}, "name": "old-toy", "step": 5,
          "string_to_token": {"*": 265}}, {"old-toy": 2}),
    ],
)  # fmt: skip
def test_textual_inversions_alone(pipe, tmp_path, state, tokens):
    torch.save(state, tmp_path / "toy.pt")
    adapter = load(pipe, tmp_path / "toy.pt", allow_pickle=True)
    assert {token: len(vectors) for token, vectors in adapter.embeddings.items()} == tokens
    assert not adapter.unet
    report = inspect_lora(tmp_path / "toy.pt", True)
    assert (report.format, report.triggers) == ("textual inversion", [])  # width 32: no base known


def test_the_constants_of_the_fixtures_agree():
    assert ALPHA == RANK  # else the formats without alpha would hold another LoRA
