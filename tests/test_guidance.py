"""Attend-and-Excite and CONFORM on top of merge, against plain re-implementations."""

import math

import pytest
import torch
import torch.nn.functional as F

import loraweave
from loraweave.methods import AttendAndExcite, Conform
from loraweave.methods.attend_and_excite import jensen_shannon, total_variation
from prepared import PROMPT, stage_of

CAT, DOG, END = 3, 7, 11  # start 0, a 1, sks 2, cat 3, and 4, a 5, zwx 6, dog 7, in the meadow


def start(seed=6, count=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 4, 16, 16), generator=generator, dtype=torch.float64)


def authors_peaks(maps):
    """Smoothed peaks of cat and dog, as the authors' code has them, from maps (256, 77)."""
    words = torch.softmax(maps[:, 1:-1] * 100, -1)
    kernel = torch.tensor([math.exp(-((x / (2 * 0.5)) ** 2)) for x in (-1, 0, 1)]).double()
    kernel = torch.outer(kernel, kernel) / torch.outer(kernel, kernel).sum()
    peaks = []
    for token in (CAT, DOG):
        image = words[:, token - 1].view(1, 1, 16, 16)
        padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
        peaks.append(F.conv2d(padded, kernel.view(1, 1, 3, 3)).max())
    return torch.stack(peaks)


def authors_loss(stage, z, t):
    out = stage.executor.evaluate(stage.passes, z, t, halves="conditional")
    return (1 - authors_peaks(out.maps[0, 0, 0])).max()


def test_token_positions_of_this_file(double, loras):
    with stage_of(double, loras, AttendAndExcite()) as stage:
        assert stage.nouns == [[CAT], [DOG]]
        assert stage.end == END
        assert END < 76


@pytest.mark.parametrize("goals", [{0: 0.05, 1: 0.5}, {0: 0.9}, {}])
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_attend_and_excite_is_diffusers_own(double, loras, goals):
    """Every latent of a run with LoRAs of weight 0 (its smoothing kernel is float32)."""
    from diffusers import StableDiffusionAttendAndExcitePipeline

    parts = {k: v for k, v in double.components.items() if k != "image_encoder"}
    peer = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    peer.set_progress_bar_config(disable=True)
    steps = {"num_inference_steps": 3, "output_type": "latent"}
    expected, found = [], []
    peer(
        "a cat and a dog in the meadow", token_indices=[2, 5], attn_res=(16, 16),
        max_iter_to_alter=2, thresholds=goals, generator=torch.Generator().manual_seed(4),
        callback=lambda i, t, z: expected.append(z.clone()), callback_steps=1, **steps,
    )  # fmt: skip

    def keep(pipe, i, t, values):
        found.append(values["latents"].clone())
        return values

    settings = {"step_rule": "literal", "max_update_step": 2, "thresholds": goals}
    loraweave.compose(
        double, "a [cat](a:0) and a [dog](b:0) in the meadow", loras=loras, settings=settings,
        method="attend_and_excite", generator=torch.Generator().manual_seed(4), progress=False,
        callback_on_step_end=keep, **steps,
    )  # fmt: skip
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("threshold", [0.9, 0.05])
def test_refinement_goes_on_until_it_has_seen_the_goal(double, loras, threshold):
    method = AttendAndExcite(
        {"step_rule": "literal", "refinements": 3, "thresholds": {0: threshold}}
    )
    with stage_of(double, loras, method) as stage:
        t, z, losses = stage.scheduler.timesteps[0], start(), []
        for n in range(5):
            leaf = z.clone().requires_grad_()
            loss = authors_loss(stage, leaf, t)
            losses.append(loss.item())
            z = z - 20 * torch.autograd.grad(loss, leaf)[0]
            if n == 3 or losses[max(0, n - 1)] <= 1 - threshold:
                break
        found = stage.refine(start(), 0, t)
    torch.testing.assert_close(found, z, atol=1e-9, rtol=0)
    assert [value.item() for _, value in stage.trace.losses] == pytest.approx(losses, abs=1e-9)


def test_steps_and_sizes(double, loras):
    """Updates at the first 25 of 50 steps; the size falls with a square root to .7 of it."""
    method = AttendAndExcite({"step_rule": "literal", "thresholds": {}})
    with stage_of(double, loras, method) as stage:
        z = start()
        assert stage.refine(z, 25, stage.scheduler.timesteps[25]) is z
        for i in (1, 24):
            t = stage.scheduler.timesteps[i]
            leaf = z.clone().requires_grad_()
            gradient = torch.autograd.grad(authors_loss(stage, leaf, t), leaf)[0]
            size = 20 * math.sqrt(1 - 0.5 * i / 49)
            torch.testing.assert_close(
                stage.refine(z, i, t), z - size * gradient, atol=1e-9, rtol=0
            )


def test_pictures_stop_refining_each_at_its_own_time(double, loras):
    """The one that has reached its goal waits while the other goes on."""
    with stage_of(double, loras, AttendAndExcite({"thresholds": {}})) as stage:
        t = stage.scheduler.timesteps[0]
        first = [authors_loss(stage, z, t).item() for z in start(count=4).split(1)]
    low, high = sorted(range(4), key=first.__getitem__)[::3]
    z = start(count=4)[[low, high]]
    goal = 1 - (first[low] + first[high]) / 2
    given = {"step_rule": "literal", "step_size": 2.0, "refinements": 4, "thresholds": {0: goal}}
    with stage_of(double, loras, AttendAndExcite(given)) as stage:
        both = stage.refine(z, 0, t)
        alone = torch.cat([stage.refine(one, 0, t) for one in z.split(1)])
    torch.testing.assert_close(both, alone, atol=1e-9, rtol=0)


def test_conform_is_a_contrast_with_the_step_before(double, loras):
    given = {"step_rule": "literal", "refinement_steps": [1], "refinements": 2, "smoothing": 0}
    with stage_of(double, loras, Conform(given)) as stage:
        assert stage.labels == [0, 0, 1, 1]
        assert stage.tokens == [2, CAT, 6, DOG]

        def maps(z, t):
            out = stage.executor.evaluate(stage.passes, z, t, halves="conditional")
            return out.maps[0, 0, 0][:, stage.tokens].T

        def contrast(embeddings, labels):
            unit, terms = F.normalize(embeddings, dim=1), []
            for a in range(len(labels)):
                others = sum(
                    torch.exp(unit[a] @ unit[n] / 0.5)
                    for n in range(len(labels)) if labels[n] != labels[a]
                )  # fmt: skip
                for p in range(len(labels)):
                    if p != a and labels[p] == labels[a]:
                        own = torch.exp(unit[a] @ unit[p] / 0.5)
                        terms.append(-torch.log(own / (own + others)))
            return torch.stack(terms).mean()

        z, before, labels = start(), None, [0, 0, 1, 1]
        for i, updates in ((0, 1), (1, 3)):
            t = stage.scheduler.timesteps[i]
            size = 20 * math.sqrt(1 - 0.5 * i / 49)
            for _ in range(updates):
                leaf = z.clone().requires_grad_()
                now = maps(leaf, t)
                every = now if before is None else torch.cat([now, before])
                loss = contrast(every, labels if before is None else labels * 2)
                z = z - size * torch.autograd.grad(loss, leaf)[0]
            before = now.detach()
        found = start()
        for i in (0, 1):
            found = stage.refine(found, i, stage.scheduler.timesteps[i])
    torch.testing.assert_close(found, z, atol=1e-8, rtol=0)


def test_one_concept_has_nothing_to_differ_from(double, loras):
    prompt = "a [sks cat](a) in the meadow"
    with stage_of(double, {"a": loras["a"]}, Conform(), prompt=prompt) as stage:
        z = start()
        assert stage.refine(z, 0, stage.scheduler.timesteps[0]) is z


def test_total_variation_and_divergence_by_hand():
    maps = torch.tensor([[[0.0], [1.0], [3.0], [3.0]]])  # (1, 4, 1): rows (0, 1), (3, 3)
    assert total_variation(maps, (2, 2)).tolist() == [[(3 + 2) / 2 + (1 + 0) / 2]]
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert jensen_shannon(a, b).item() == pytest.approx(math.log(2))
    assert jensen_shannon(a, 3 * a).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("settings", [{"objective": "divide"}, {"bind": 1.0}])
def test_other_objectives_go_down(double, loras, settings):
    method = AttendAndExcite({**settings, "refinements": 4, "thresholds": {0: 0.99}})
    with stage_of(double, loras, method) as stage:
        stage.refine(start(), 0, stage.scheduler.timesteps[0])
    losses = [loss.item() for _, loss in stage.trace.losses]
    assert losses[-1] < losses[0]


def test_divide_has_goals_of_its_own(double, loras):
    with stage_of(double, loras, AttendAndExcite({"objective": "divide"})) as stage:
        reached, missed = -torch.tensor([0.21, 0.19])
        assert stage.unfinished(10, 49, torch.stack([reached, missed])).tolist() == [False, True]
        assert stage.unfinished(10, 50, missed[None]) is None
        assert stage.unfinished(11, 0, missed[None]) is None


def test_without_updates_both_are_merge(double, loras):
    def draw(method, settings=None):
        return loraweave.compose(
            double, PROMPT, loras=loras, method=method, settings=settings, num_inference_steps=2,
            generator=torch.Generator().manual_seed(4), output_type="latent", progress=False,
        ).images  # fmt: skip

    for name in ("attend_and_excite", "conform"):
        assert torch.equal(draw(name, {"max_update_step": 0}), draw("merge"))
