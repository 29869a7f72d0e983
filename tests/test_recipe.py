"""The recipe's parts: what is trained on, and what the losses reward."""

import copy
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from loraweave.backbone.conditions import check_fits
from loraweave.backbone.sites import reading_sites
from loraweave.denoise.recorder import RecordingProcessor, recording
from loraweave.evaluate.encoders import Clip, Dino
from loraweave.lora import inspect_lora
from loraweave.miniature.codec import decoded, pixels_of, posterior_of
from loraweave.miniature.concepts import CONCEPTS
from loraweave.miniature.judge import load_judge
from loraweave.miniature.judge.identity import CROP, IdentityEncoder, crop_of
from loraweave.miniature.recipe.base import new_unet, train_base
from loraweave.miniature.recipe.calibrate import SLACK, with_own
from loraweave.miniature.recipe.clip import numbered, one_of, train_clip
from loraweave.miniature.recipe.decoder import make_sure, train_decoder
from loraweave.miniature.recipe.dino import crops_of, train_dino
from loraweave.miniature.recipe.encoder import contrastive, family, frayed, nearest_is_same, view
from loraweave.miniature.recipe.grounding import PlainRecordingProcessor, grounding_loss
from loraweave.miniature.recipe.judge import coded, scene_pool, training_scene, worn
from loraweave.miniature.recipe.loras import ED_CONCEPTS, PICTURES, RANK, plans, write_examples
from loraweave.miniature.recipe.pool import MAX_SUBJECTS, Pool, build_pool, drawn_from
from loraweave.miniature.recipe.run import Fit, Run
from loraweave.miniature.recipe.sketch import train_adapter
from loraweave.miniature.recipe.style import styled_scene, train_style_reader
from loraweave.miniature.recipe.tokenizer import train_tokenizer
from loraweave.miniature.recipe.vae import new_vae, train_vae
from loraweave.miniature.style_reader import NAMES
from loraweave.miniature.world import BUSY_WORLD, FIRST_WORLD, FULL_WORLD, KINDS, sample_drawing
from loraweave.miniature.world.sample import half_blended, sample_subject
from tiny import tiny_pipeline, tiny_tokenizer


def test_the_training_processor_records_and_computes_what_the_other_does():
    torch.manual_seed(0)
    unet = new_unet(8, (16, 32))
    x, t, text = torch.randn(2, 16, 8, 8), torch.tensor([5, 700]), torch.randn(2, 7, 128)
    outputs, maps = [], []
    for kind in (RecordingProcessor, PlainRecordingProcessor):
        with recording(reading_sites(unet), kind) as recorder, torch.no_grad():
            outputs.append(unet(x, t, text).sample)
            maps.append(recorder.take())
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[0], maps[1])


def test_grounding_rewards_attention_on_the_subject():
    places = torch.zeros(1, 16)
    places[0, :4] = 1
    inside, outside, spread = torch.full((3, 1, 16, 2), 1e-3)
    inside[0, :4, 0], outside[0, 4:, 0], spread[0, :, 0] = 0.5, 0.5, 0.5
    index, tokens = torch.tensor([0]), torch.tensor([[1.0, 0.0]])
    presence = torch.tensor([0.25])
    losses = [grounding_loss(m, index, tokens, places, presence) for m in (inside, spread, outside)]
    assert losses[0][0] < losses[1][0] < losses[2][0]
    assert losses[1][1] == pytest.approx(4 / 16)  # evenly spread: the subject's share of the area


def test_an_autoencoder_that_goes_on_keeps_its_latents(tmp_path):
    torch.manual_seed(0)
    start = new_vae(32, (8, 8)).eval()
    before = {k: v.clone() for k, v in start.state_dict().items()}
    made = train_vae(Run(tmp_path), FIRST_WORLD, 32, 2, start=start, batch=2)
    assert all(torch.equal(before[k], v) for k, v in start.state_dict().items())
    assert any(not torch.equal(before[k], v) for k, v in made.state_dict().items())
    lines = (tmp_path / "log.jsonl").exists()
    assert not lines  # a line each 50 steps


def test_plans_differ_as_peoples_files_do():
    every = plans()
    made = {name: plan for name, plan in every.items() if plan.kind == "lora"}
    assert len(made) >= 20 + 4 + 2 + 2 + 6
    assert sum(p.text_encoder for p in made.values()) == pytest.approx(len(made) / 2, abs=1)
    kohya = [p for p in made.values() if p.format == "kohya"]
    assert len(kohya) == pytest.approx(len(made) / 4, abs=1)
    assert all(p.alpha != RANK for p in kohya)
    for plan in every.values():
        settings = plan.settings(100)
        assert settings.learning_rate * settings.scale_alpha == pytest.approx(1e-3 * plan.rank)
        assert settings.kind == plan.kind


def test_ordinary_loras_of_another_rank():
    for name, plan in plans(6).items():
        ordinary = plan.kind == "lora"
        assert plan.rank == (6 if ordinary else plans()[name].rank)
        assert plan.alpha == plans()[name].alpha * (6 / RANK if ordinary else 1)
        assert plan.settings(10).rank == plan.rank


def test_ed_loras_are_of_concepts_with_a_lora_of_their_own():
    made = plans()
    for name in ED_CONCEPTS:
        ordinary, own = made[name], made[f"{name}_ed"]
        assert (own.kind, own.trigger, own.noun) == ("ed-lora", name, ordinary.noun)
        assert own.text_encoder
    assert len({made[name].noun for name in ED_CONCEPTS}) == len(ED_CONCEPTS)


@pytest.mark.parametrize("name", [
    "blackcat", "pencil", "candyland", "wizardhat", "roseboat", "golddog_ed",
])  # fmt: skip
def test_examples_are_a_folder_as_users_make_it(tmp_path, name):
    plan = plans()[name]
    write_examples(plan, tmp_path, size=32)
    assert len(list(tmp_path.glob("*.png"))) == PICTURES
    for caption in tmp_path.glob("*.txt"):
        words = caption.read_text().split()
        assert (plan.trigger in words) == bool(plan.trigger)


def test_a_family_is_one_individual_and_others_of_its_class():
    rng = random.Random(3)
    for _ in range(20):
        first, *relatives = family(rng, FULL_WORLD)
        assert all(r.kind == first.kind and r != first for r in relatives)
        for relative in relatives:
            same = [
                relative.body == first.body, relative.second == first.second,
                relative.pattern == first.pattern, relative.eye == first.eye,
                relative.accessory == first.accessory,
            ]  # fmt: skip
            assert any(same)


def test_half_of_two():
    rng = random.Random(1)
    one, other = (sample_subject(rng, kind, FULL_WORLD) for kind in ("cat", "dog"))
    blend = half_blended(one, other)
    assert blend.kind == "cat"
    for colour, a, b in zip(blend.body, one.body, other.body):
        assert min(a, b) <= colour <= max(a, b)
    assert half_blended(one, replace(one)).body == one.body


def test_views_show_the_individual():
    rng = random.Random(5)
    person = CONCEPTS["honeybear"].subject
    for _ in range(4):
        image, mask, caption = view(rng, person, FULL_WORLD)
        assert mask.shape == (image.height, image.width)
        assert "bear" in caption
        assert mask.sum() >= 40
        ragged = frayed(mask, rng)
        assert ragged.any()


def test_crops_forget_place_size_and_background():
    pixels = np.full((128, 128, 3), 30, np.uint8)
    mask = np.zeros((128, 128), bool)
    pixels[20:60, 30:50], mask[20:60, 30:50] = (200, 40, 40), True
    small = crop_of(Image.fromarray(pixels), mask)
    pixels[:], mask[:] = 250, False
    pixels[8:88, 60:100], mask[8:88, 60:100] = (200, 40, 40), True
    large = crop_of(Image.fromarray(pixels), mask)
    assert small.size == large.size == (CROP, CROP)
    difference = np.abs(np.asarray(small, float) - np.asarray(large, float))
    assert difference.mean() < 4
    with pytest.raises(ValueError, match="empty mask"):
        crop_of(small, np.zeros((CROP, CROP), bool))


def test_contrastive_loss_by_hand():
    individuals = torch.tensor([0, 0, 1, 1])
    apart = F.normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), dim=1)
    # of three candidates one has score 1/0.1, two have 0
    expected = np.log(np.exp(10) + 2) - 10
    assert contrastive(apart, individuals).item() == pytest.approx(expected, rel=1e-3)
    assert nearest_is_same(apart, individuals) == 1
    mixed = apart[[0, 2, 1, 3]]
    assert contrastive(mixed, individuals) > 5


def test_the_encoder_gives_unit_vectors():
    torch.manual_seed(0)
    encoder = IdentityEncoder(width=16, layers=1, outputs=8)
    crops = [Image.new("RGB", (CROP, CROP), colour) for colour in ("red", "blue")]
    vectors = encoder(pixels_of(crops))
    assert vectors.shape == (2, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return new_vae(128, (8, 8, 8, 8)).eval()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_is_made_ahead_is_the_same(tmp_path):
    """By other processes as by the step itself, and in order; a step's noise is its own."""
    runs = [Run(tmp_path / str(n), seed=3, workers=n) for n in (0, 2)]
    numbers = range(5, 40, 7)
    made = [
        list(
            run.made(
                lambda i, run=run: (i, torch.rand(2, generator=run.generator("x", i))), numbers
            )
        )
        for run in runs
    ]
    assert [i for i, _ in made[1]] == list(numbers)
    for (_, here), (_, there) in zip(*made):
        assert torch.equal(here, there)
    before = torch.get_rng_state()
    next(iter(runs[0].made(lambda i: i, numbers)))
    assert torch.equal(before, torch.get_rng_state())
    one, other = (runs[0].noise("x", i, made[0][0][1]) for i in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(one, runs[1].noise("x", 1, one))


def test_larger_pictures_are_looked_at_as_the_judge_does(tmp_path, vae):
    """At 256 pixels the classes lie where they lie at 128, and the segmenter sees as many."""
    _, small = training_scene(11, FULL_WORLD)
    image, large = training_scene(11, FULL_WORLD, side=256)
    assert image.size == (256, 256)
    assert large.shape == small.shape
    assert (large == small).mean() > 0.97
    pixels, classes = scene_pool(Run(tmp_path), "large", vae, FULL_WORLD, 2, side=256)
    assert pixels.shape == (2, 3, 128, 128)
    assert classes.shape == (2, 64, 64)
    assert styled_scene(3, 256)[0].size == (256, 256)
    person = CONCEPTS["honeybear"].subject
    assert view(random.Random(5), person, FULL_WORLD, 256).mask.shape == (256, 256)


def test_a_base_for_large_latents_learns(tmp_path, monkeypatch):
    """Where the maps are coarser than the latents, and with captions in other processes."""
    torch.manual_seed(0)
    vae, run, tokenizer = new_vae(64, (8, 8)).eval(), Run(tmp_path), train_tokenizer(seed=0)
    pool = build_pool(run, vae, FIRST_WORLD, 64, 8)
    assert pool.latents.shape == (8, 16, 32, 32)
    few = build_pool(run, vae, FIRST_WORLD, 64, 3)  # of those that are there
    assert torch.equal(few.latents, pool.latents[:3])
    assert torch.equal(few.masks, pool.masks[:3])
    assert few.drawings == pool.drawings[:3]
    monkeypatch.setattr("loraweave.miniature.recipe.pool.CHUNK", 3)
    more = build_pool(run, vae, FIRST_WORLD, 64, 11)  # the first file has more than is needed
    assert len(list(tmp_path.glob("pool*.safetensors"))) == 4
    assert torch.equal(more.masks[:3], pool.masks[:3])
    torch.testing.assert_close(more.latents[:8], pool.latents, atol=0.05, rtol=0.05)
    (tmp_path / "pool001.safetensors").unlink()  # as of a start that was interrupted
    again = build_pool(run, vae, FIRST_WORLD, 64, 11)
    assert torch.equal(again.latents, more.latents)
    assert torch.equal(again.masks, more.masks)
    made = train_base(run, tokenizer, vae, pool, 2, batch=4, channels=(8, 16, 16), crowds=True)
    assert made.unet.config["sample_size"] == 32
    assert made.unet.config["down_block_types"] == ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2)
    adapter = train_adapter(run, made, pool, 64, 2, scenes=8, batch=2)
    check_fits("it", adapter.config, made.unet.config, made.vae_scale_factor)
    features = adapter(torch.rand(1, 1, 64, 64))
    assert [tuple(f.shape[1:]) for f in features] == [(8, 16, 16), (16, 16, 16), (16, 8, 8)]


def test_scenes_are_seen_as_often_as_their_weights_say():
    tokenizer, drawings = train_tokenizer(seed=0), [sample_drawing(i, BUSY_WORLD) for i in range(9)]
    pool = Pool(torch.zeros(9, 1, 4, 4), torch.zeros(9, MAX_SUBJECTS, 4, 4), drawings)
    subjects = pool.subjects()
    assert subjects.tolist() == [len(drawing.subjects) for drawing in drawings]
    assert len(subjects.unique()) > 2
    g = torch.Generator().manual_seed(0)
    drawn = drawn_from(pool, subjects, tokenizer, 3000, g)
    seen = drawn.chosen.bincount(minlength=9) / 3000
    torch.testing.assert_close(seen, subjects / subjects.sum(), atol=0.03, rtol=0)
    first = drawn_from(pool, torch.ones(2), tokenizer, 50, g)
    assert first.chosen.unique().tolist() == [0, 1]


def test_large_latents_have_no_attention_at_their_own_size():
    unet = new_unet(32, (8, 16, 16))
    assert unet.config["down_block_types"][0] == "DownBlock2D"
    assert unet.config["up_block_types"][-1] == "UpBlock2D"
    assert new_unet(16, (8, 16)).config["down_block_types"] == ("CrossAttnDownBlock2D",) * 2


def test_scenes_for_the_segmenter_are_kept(tmp_path, vae):
    run = Run(tmp_path)
    pixels, classes = scene_pool(run, "some", vae, FULL_WORLD, 40)
    again = scene_pool(run, "some", vae, FULL_WORLD, 40)
    assert torch.equal(pixels, again[0])
    assert torch.equal(classes, again[1])
    others, _ = scene_pool(run, "others", vae, FULL_WORLD, 2)
    assert not torch.equal(pixels[:2], others)
    image, where = training_scene(11, FULL_WORLD)
    assert where.shape == (image.height // 2, image.width // 2)
    assert 0 < where.max() <= len(KINDS)


def test_wear_changes_pictures_but_not_their_range(vae):
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 3, 128, 128, generator=g) * 2 - 1
    for out in (worn(pixels, g), coded(pixels, vae, g)):
        assert out.shape == pixels.shape
        assert out.abs().max() <= 1
        assert not torch.equal(out, pixels)


def test_a_planned_lora_is_written_as_planned(tmp_path):
    from loraweave.train import TrainSettings, train_lora

    plan = plans()["inkcat"]
    assert plan.format == "kohya"
    write_examples(plan, tmp_path / "pictures", count=2, size=32)
    out = tmp_path / "inkcat.safetensors"
    settings = TrainSettings(rank=2, alpha=1.0, steps=1, text_encoder=True)
    train_lora(
        tiny_pipeline(), tmp_path / "pictures", trigger=plan.trigger, class_noun=plan.noun,
        out=out, settings=settings, format=plan.format, progress=False,
    )  # fmt: skip
    report = inspect_lora(out)
    assert (report.kind, report.alphas, report.ranks) == ("kohya", [1.0], [2])
    assert report.components.keys() == {"unet", "text_encoder"}


def test_the_style_reader_learns_styles(tmp_path, vae):
    run = Run(tmp_path)
    image, number = styled_scene(3)
    assert image.size == (128, 128)
    assert 0 <= number < len(NAMES)
    first = train_style_reader(run, vae, 2, 32)
    again = train_style_reader(run, vae, 2, 32)  # finished: nothing is drawn again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert set(first.read([image, image])) <= set(NAMES)


def test_the_decoder_alone_is_sharpened(tmp_path, vae):
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 128, 128, generator=g) * 2 - 1
    made = train_decoder(Run(tmp_path), vae, FIRST_WORLD, 32, 2, batch=2)
    before, after = (posterior_of(one, pixels).mean for one in (vae, made))
    assert torch.equal(before, after), "the latents are what they were"
    assert not torch.allclose(decoded(vae, before), decoded(made, before))


def test_a_sure_posterior_is_its_mean(vae):
    own = copy.deepcopy(vae)
    pixels = torch.rand(1, 3, 128, 128) * 2 - 1
    before = posterior_of(own, pixels).mean
    found = posterior_of(make_sure(own), pixels)
    torch.testing.assert_close(found.mean, before)
    assert found.std.max() < 0.01


def test_a_concept_is_known_by_what_its_lora_draws_too():
    judge = load_judge()
    row, other = judge.concepts.index("dotcup"), judge.concepts.index("tealcup")
    drawn = judge.looks["cup"][other].repeat(4, 1)  # a LoRA that draws the other cup
    before = judge.own.clone()
    made = with_own(judge, "dotcup", drawn, drawn)
    likeness = made.likeness("cup", drawn[0])["dotcup"]
    assert float(judge.looks["cup"][row] @ drawn[0]) < likeness < 1
    assert made.likeness("cup", judge.looks["cup"][row])["dotcup"] == pytest.approx(1, abs=1e-3)
    assert made.likeness("cat", drawn[0]) == judge.likeness("cat", drawn[0])
    least = made.thresholds.least_similarity
    assert least["dotcup"] == pytest.approx(likeness - SLACK, abs=1e-5)
    assert least["tealcup"] == judge.thresholds.least_similarity["tealcup"]
    unchanged = [i for i in range(len(before)) if i != row]
    assert torch.equal(made.own[unchanged], before[unchanged])
    assert torch.equal(judge.own, before)


def test_a_lora_that_never_draws_its_subject_is_never_right():
    nothing = torch.empty(0, 0)
    made = with_own(load_judge(), "dotcup", nothing, nothing)
    assert made.thresholds.least_similarity["dotcup"] == 1
    assert torch.equal(made.own, load_judge().own)


def test_a_caption_that_came_twice_is_no_wrong_answer():
    number = numbered(["a cat", "a dog", "a cat"])
    assert number.tolist() == [0, 1, 0]
    scores = torch.tensor([[2.0, 1.0, 9.0], [0.0, 0.0, 0.0], [9.0, 1.0, 2.0]])
    rows = [torch.tensor([2.0, 1.0]), torch.zeros(3), torch.tensor([2.0, 1.0])]
    expected = sum(-row.log_softmax(0)[0] for row in rows) / 3
    assert one_of(scores, number).item() == pytest.approx(expected.item())


def test_crops_are_squares_of_the_picture():
    pixels = torch.rand(4, 3, 16, 16) * 0.2
    whole = crops_of(pixels, (1.0, 1.0), 16, torch.Generator().manual_seed(0))
    for crop, one in zip(whole, pixels):
        # the same up to brightness and contrast, perhaps mirrored
        found = [abs(np.corrcoef(crop.flatten(), x.flatten())[0, 1]) for x in (one, one.flip(2))]
        assert max(found) > 0.999
    steps = torch.linspace(-0.5, 0.5, 32).expand(64, 3, 32, 32)
    spans = crops_of(steps, (0.1, 0.4), 8, torch.Generator().manual_seed(0)).amax((1, 2, 3))
    spans -= crops_of(steps, (0.1, 0.4), 8, torch.Generator().manual_seed(0)).amin((1, 2, 3))
    assert spans.max() < 0.4**0.5 * 1.2
    assert spans.min() > 0.1**0.5 * 0.8 * 7 / 8 - 0.02


def test_encoders_for_scores_are_read_like_the_large_ones(tmp_path):
    run, tokenizer = Run(tmp_path), tiny_tokenizer()
    clip = train_clip(run, tokenizer, FIRST_WORLD, 2, side=32, batch=4)
    clip.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    dino = train_dino(run, FIRST_WORLD, 2, side=32, batch=4)
    dino.save_pretrained(tmp_path / "dino")
    image = Image.new("RGB", (64, 32), "red")
    read = Clip(tmp_path / "clip"), Dino(tmp_path / "dino")
    assert read[0].images([image]).shape == read[0].texts(["a cat"]).shape == (1, 64)
    (feature,) = read[1].images([image])
    assert feature.norm().item() == pytest.approx(1)
    again = train_dino(run, FIRST_WORLD, 2, side=32, batch=4)  # finished: read from its checkpoint
    for name, value in dino.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_training_goes_on_from_its_weights_alone(tmp_path, capsys):
    run, model = Run(tmp_path), nn.Linear(2, 2)
    how = {"rate": 0.1, "average": 0.5, "weight_decay": 0.0}
    fit = Fit(run, "m", model, steps=50, **how)
    for step in fit.steps():
        fit.update(step, model(torch.ones(1, 2)).square().sum())
    assert json.loads(capsys.readouterr().err)["step"] == 50, "said where there is no bar"
    (tmp_path / "m.pt").unlink()
    again = Fit(run, "m", nn.Linear(2, 2), steps=60, **how)
    assert again.first == 50
    for found, expected in zip(again.model.state_dict().values(), fit.average.values.values()):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert [step.number for step in again.steps()] == list(range(50, 60))


def test_a_log_begun_between_two_lines_still_has_means(tmp_path):
    run = Run(tmp_path)
    for step in run.steps("some", 3, 10, every=5):
        step.figures["loss"] = 2.0
        step.figures["psnr"] = torch.tensor(float(step.number))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [2, 2]
    assert [line["psnr"] for line in lines] == [3.5, 7]
