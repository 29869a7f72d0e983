"""What speeds up the training of the base: a head that reads the layout, Muon for matrices."""

import math

import pytest
import torch
from torch import nn

from loraweave.errors import TrainingError
from loraweave.miniature.recipe.base import new_unet, train_base
from loraweave.miniature.recipe.layout import LayoutHead, Looks
from loraweave.miniature.recipe.matrices import MatrixOptimizer
from loraweave.miniature.recipe.noise import SHAPING, as_hidden, new_scheduler
from loraweave.miniature.recipe.pool import build_pool
from loraweave.miniature.recipe.run import Fit, Run
from loraweave.miniature.recipe.tokenizer import train_tokenizer
from loraweave.miniature.recipe.vae import new_vae
from loraweave.miniature.world import FIRST_WORLD, KINDS, Drawing, Subject


def _drawings():
    red, blue = (255, 0, 0), (0, 0, 255)
    cat, car = Subject("cat", red, blue), Subject("car", blue, red)
    return [Drawing((cat,), "snow"), Drawing((car, cat), "beach")]


def test_looks_are_where_their_subjects_are():
    masks = torch.zeros(2, 5, 2, 2)
    masks[0, 0, 0, 0], masks[0, 1, 1, 1], masks[1, 0, 0, 1] = 1, 0.5, 1
    shares, colours = Looks(_drawings(), 5).at(torch.tensor([1, 0]), masks)
    cat, car = KINDS.index("cat"), KINDS.index("car")
    assert shares[0, car, 0, 0] == 1
    assert shares[0, cat, 1, 1] == shares[0, -1, 1, 1] == 0.5
    assert shares[1, cat, 0, 1] == 1
    assert torch.equal(shares.sum(1), torch.ones(2, 2, 2))
    assert colours[0, :, 0, 0].tolist() == [-1, -1, 1]
    assert colours[0, :, 1, 1].tolist() == [0.5, -0.5, -0.5]
    assert not colours[0, :, 0, 1].any()


def test_cells_where_subjects_overlap_are_shared():
    masks = torch.zeros(1, 5, 1, 1)
    masks[0, :2] = torch.tensor([0.75, 0.5])[:, None, None]
    shares, _ = Looks(_drawings(), 5).at(torch.tensor([1]), masks)
    assert shares[0, KINDS.index("car"), 0, 0] == pytest.approx(0.6)
    assert shares[0, -1, 0, 0] == pytest.approx(0)


def test_larger_latents_take_shape_under_more_noise():
    """Twice the cells a side: a quarter of the signal-to-noise ratio, by power."""
    assert as_hidden(SHAPING, 16) == SHAPING
    alphas = new_scheduler().alphas_cumprod
    ratio = alphas / (1 - alphas)
    first, last = as_hidden(SHAPING, 32)
    assert ratio[first] <= ratio[SHAPING[0]] / 4 < ratio[first - 1]
    assert last == 1000  # of the thousand none has a quarter of that
    _, last = as_hidden(SHAPING, 8)
    assert ratio[last] <= ratio[SHAPING[1]] * 4 < ratio[last - 1]


def test_the_head_pays_for_what_it_does_not_know():
    """With no knowledge each half of the weight costs the entropy of evenly spread classes."""
    torch.manual_seed(0)
    unet = new_unet(16, (16, 32))
    head = LayoutHead(unet, Looks(_drawings(), 5))
    classes = torch.zeros(2, len(KINDS) + 1, 16, 16)
    classes[:, -1, 8:], classes[:, 0, :8] = 1, 1
    colours = torch.zeros(2, 3, 16, 16)
    colours[:, :, :8] = 0.5

    def look():
        unet(torch.randn(2, 16, 16, 16), torch.tensor([5, 700]), torch.randn(2, 7, 128))

    nn.init.zeros_(head.read.weight)
    nn.init.zeros_(head.read.bias)
    look()
    unknowing = head.loss(classes, colours).item()
    assert unknowing == pytest.approx(math.log(15) + 2.0 * 0.25, rel=1e-5)
    with torch.no_grad():
        head.read.bias[len(KINDS) + 1 :] = 0.5
    look()
    assert head.loss(classes, colours).item() == pytest.approx(math.log(15), rel=1e-5)


def test_matrices_move_by_muon_and_the_rest_by_adam():
    """Also those of a convolution whose memory has its channels last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 48, 3), nn.Linear(40, 32), nn.Embedding(50, 40))
    model[0].to(memory_format=torch.channels_last)
    twin = {k: v.detach().clone() for k, v in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    grads = {k: v.grad.clone() for k, v in model.named_parameters()}
    optimizer = MatrixOptimizer(model, 0.01, 0.1)
    optimizer.step()

    flat = {k: twin[k].permute(0, 2, 3, 1).flatten(1) if k == "0.weight" else twin[k] for k in twin}
    known = {k: nn.Parameter(v.clone()) for k, v in flat.items()}
    for k, weight in known.items():
        g = grads[k]
        weight.grad = g.permute(0, 2, 3, 1).flatten(1) if k == "0.weight" else g
    own = [known["0.weight"], known["1.weight"]]
    torch.optim.Muon(own, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    rest = [known["0.bias"], known["1.bias"], known["2.weight"]]
    torch.optim.AdamW(rest, 0.01, weight_decay=0.1, betas=(0.9, 0.99)).step()
    for k, weight in model.named_parameters():
        expected = known[k].detach()
        if k == "0.weight":
            expected = expected.unflatten(1, (3, 3, 32)).permute(0, 3, 1, 2)
        torch.testing.assert_close(weight.detach(), expected, msg=k)
        assert not torch.equal(weight.detach(), twin[k])
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())


def test_without_muon_it_says_what_to_do(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(TrainingError, match=r"update torch to 2\.9"):
        MatrixOptimizer(nn.Linear(40, 40), 0.01, 0.1)


def _fitted(folder, stop=6):
    """A matrix that learns from noise, interrupted after some of six steps."""
    torch.manual_seed(0)
    model = nn.Linear(40, 40)
    run = Run(folder)
    fit = Fit(
        run, "m", model, steps=6, rate=0.01, average=0.9, weight_decay=0.0, matrices=True
    )  # fmt: skip
    for step in fit.steps():
        x = torch.randn(8, 40, generator=run.generator("m", step.number))
        fit.update(step, (model(x) - x.flip(1)).square().mean())
        if step.number + 1 == stop:
            run.save("m", {
                "step": stop, "model": model.state_dict(), "average": fit.average.values,
                "optimizer": fit.optimizer.state_dict(),
            })  # fmt: skip
            break
    return model, fit


def test_what_was_interrupted_goes_on_as_if_not(tmp_path):
    whole, _ = _fitted(tmp_path / "whole")
    _fitted(tmp_path / "halves", stop=3)
    later, fit = _fitted(tmp_path / "halves")
    assert torch.equal(later.weight, whole.weight)
    assert torch.equal(later.bias, whole.bias)
    rates = {group["lr"] for group in fit.optimizer.param_groups}
    assert rates == {0.01 * 6 / 100}, "warming up, in both optimisers"


def test_smaller_pictures_teach_the_base_of_larger_ones(tmp_path):
    """The first part of the full recipe; what it leaves is a base like any other."""
    torch.manual_seed(0)
    vae, tokenizer = new_vae(64, (8, 8)).eval(), train_tokenizer(seed=0)
    how = {"batch": 4, "channels": (8, 16, 32), "side": 32, "layout": 0.1, "matrices": True}
    small = build_pool(Run(tmp_path / "0"), vae, FIRST_WORLD, 32, 8)
    first = train_base(Run(tmp_path / "0"), tokenizer, vae, small, 2, **how)
    assert small.latents.shape[-1] == 16
    assert first.unet.config["sample_size"] == 32
    assert "DownBlock2D" in first.unet.config["down_block_types"]
    assert not any("layout" in name for name in first.unet.state_dict())
    assert not first.unet.up_blocks[0]._forward_hooks
    large = build_pool(Run(tmp_path / "1"), vae, FIRST_WORLD, 64, 8)
    then = train_base(Run(tmp_path / "1"), tokenizer, vae, large, 2, start=first, **how)
    changed = [
        not torch.equal(a, b)
        for a, b in zip(first.unet.state_dict().values(), then.unet.state_dict().values())
    ]  # fmt: skip
    assert all(changed)
