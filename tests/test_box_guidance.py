"""Box guidance of earlier methods, against values computed by hand."""

import pytest
import torch

import loraweave
from loraweave.methods import get_method
from loraweave.methods.box_losses import boxdiff, looking_out, refocused
from loraweave.methods.regional import strength, updates
from prepared import PROMPT, stage_of

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def test_boxdiff_by_hand():
    region = torch.zeros(4, 5, dtype=torch.bool)
    region[1:3, 0:5] = True  # 10 places: 2 are asked; outside 10, 2 too
    maps = torch.zeros(1, 4, 5)
    maps[0, 1, 0], maps[0, 2, 3], maps[0, 1, 2] = 0.9, 0.5, 0.2
    maps[0, 0, 4], maps[0, 3, 1] = 0.4, 0.1
    inner, outer = 1 - (0.9 + 0.5) / 2, (0.4 + 0.1) / 2
    # From above: columns peak at .9 .1 .2 .5 .4, the box is 1 everywhere; its edges are 0 and 5,
    # so columns 0, 1 and 4 are near. From the side: rows peak at .4 .9 .5 .1, the box is 0 1 1 0;
    # its edges are 1 and 3, so all rows are near.
    above = (0.1 + 0.9 + 0.6) / 5
    side = (0.4 + 0.1 + 0.5 + 0.1) / 4
    assert boxdiff(maps, region).item() == pytest.approx(inner + outer + above + side)
    assert boxdiff(maps.repeat(3, 1, 1), region).item() == pytest.approx(
        3 * (inner + outer + above + side)
    )
    whole = torch.ones(4, 5, dtype=torch.bool)
    assert boxdiff(torch.ones(1, 4, 5), whole).item() == 0


def test_refocused_by_hand():
    regions = torch.zeros(2, 1, 4, dtype=torch.bool)
    regions[0, 0, 0] = regions[1, 0, 1] = True
    first, second = torch.tensor([[[0.05, 0.12, 0.3, 0.0]]]), torch.tensor([[[0.2, 0.5, 0.0, 0.1]]])
    own = 6 * 0.95 + 1 * 0.12 + 0.3 / 2  # far too weak inside; .1 to .15 in the other; background
    other = 1 * 0.5 + 4 * 0.2 + 0.1 / 2
    assert refocused([first, second], regions, True).item() == pytest.approx((own + other) / 2)
    later = own + 4 * 0.2 + 0.1 / 2  # a peak of .5 is good enough then
    assert refocused([first, second], regions, False).item() == pytest.approx(later / 2)
    everything = torch.ones(1, 1, 4, dtype=torch.bool)
    assert refocused([torch.ones(1, 1, 4)], everything, True).item() == 0


def test_looking_out_by_hand():
    looks = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.0, 0.4, 0.6]])
    regions = torch.tensor([[[True, False, True]], [[False, True, False]]])
    assert looking_out(looks, regions).item() == pytest.approx(((0.2 + 0.4) / 2 + 0.2) / 2)


def test_the_schedule_of_attention_refocusing():
    assert [updates(i) for i in (0, 1, 2, 4, 5, 9)] == [2, 2, 6, 6, 3, 3]
    assert [i for i in range(10, 50) if updates(i)] == [10, 15, 20, 25, 30, 35]
    assert [strength(i) for i in (0, 4, 5, 19, 20)] == [4, 4, 3, 3, 1]


@pytest.mark.parametrize("guidance", ["boxdiff", "refocusing"])
def test_the_gradient_is_that_of_the_loss(double, loras, guidance):
    method = get_method("regional", {"layout": "strips", "guidance": guidance})
    with stage_of(double, loras, method) as stage:
        stage._least = []
        generator = torch.Generator().manual_seed(3)
        z, along = (torch.randn((1, 4, 16, 16), generator=generator).double() for _ in "ab")
        t, step = stage.scheduler.timesteps[0], 1e-6
        losses, gradient = stage.gradient(z, t, 0)
        ahead, behind = (stage.gradient(z + s * step * along, t, 0)[0] for s in (1, -1))
    slope = (ahead - behind) / (2 * step)
    assert losses.item() > 0
    assert (gradient * along).sum().item() == pytest.approx(slope.item(), rel=1e-3)


@pytest.mark.parametrize("guidance", ["boxdiff", "refocusing"])
def test_guided_pictures(double, loras, guidance):
    def draw(seeds, **settings):
        return loraweave.compose(
            double, PROMPT, loras=loras, method="regional", settings=settings,
            regions={"a": LEFT, "b": RIGHT}, num_inference_steps=3, output_type="latent",
            num_images_per_prompt=len(seeds), batch_size=len(seeds), progress=False,
            generator=[torch.Generator().manual_seed(n) for n in seeds],
        )  # fmt: skip

    both, plain = draw((1, 2), guidance=guidance), draw((2,))
    single = draw((2,), guidance=guidance)
    torch.testing.assert_close(both.images[1:], single.images, atol=1e-8, rtol=0)
    assert not torch.allclose(single.images, plain.images)
    assert single.info["losses"][0]
    still = draw((2,), guidance=guidance, step_size=0)
    torch.testing.assert_close(still.images, plain.images, atol=1e-9, rtol=0)
