"""The drawn world: deterministic, labelled, described."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraweave.miniature.concepts import CONCEPTS, draw_concepts, training_drawings
from loraweave.miniature.world import (
    BACKGROUNDS,
    COLOURS,
    FIRST_WORLD,
    FULL_WORLD,
    KINDS,
    PATTERNS,
    Drawing,
    Subject,
    caption_drawing,
    render,
    sample_drawing,
)
from loraweave.miniature.world.sample import place_subjects, sample_subject
from loraweave.miniature.world.spec import ACCESSORIES, OWN_ACCESSORIES, OWN_BACKGROUNDS
from loraweave.miniature.world.styles import STYLES, in_style
from loraweave.miniature.world.subjects import draw_subject


def subject(kind: str, **more) -> Subject:
    return Subject(kind, COLOURS["red"], COLOURS["blue"], **more)


def test_it_is_as_large_as_promised():
    assert len(KINDS) >= 12
    assert len(BACKGROUNDS) >= 8
    assert len(PATTERNS) >= 5
    counts = {len(sample_drawing(seed).subjects) for seed in range(200)}
    assert counts == {1, 2, 3, 4, 5}


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_the_same_seed_draws_the_same_pixels_and_words(seed):
    a, b = (render(sample_drawing(seed), 64) for _ in range(2))
    assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    assert np.array_equal(a.masks, b.masks)
    assert caption_drawing(a.drawing, seed) == caption_drawing(b.drawing, seed)


def test_other_seeds_draw_other_pictures():
    pictures = {render(sample_drawing(seed), 32).image.tobytes() for seed in range(30)}
    assert len(pictures) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_mask_covers_exactly_what_the_subject_changed(kind):
    empty = Drawing((), "meadow", 3)
    full = Drawing((subject(kind, size=0.7),), "meadow", 3)
    changed = np.abs(
        np.asarray(render(full, 96).image, int) - np.asarray(render(empty, 96).image, int)
    ).sum(2)
    mask = render(full, 96).masks[0]
    assert mask.mean() > 0.08
    # Only anti-aliased edges may change outside the mask.
    grown = mask | np.roll(mask, 1, 0) | np.roll(mask, -1, 0)
    grown |= np.roll(grown, 1, 1) | np.roll(grown, -1, 1)
    assert (changed[~grown] == 0).all()
    assert (changed[mask] > 0).mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_mirrored_is_the_mirror_image(kind):
    plain = subject(kind, pattern="spotted", accessory="collar")
    there = np.asarray(draw_subject(plain, 200), int)
    back = np.asarray(draw_subject(replace(plain, mirrored=True), 200), int)[:, ::-1]
    # Shapes are rasterised from rounded corners, so edges may differ by a pixel.
    assert (np.abs(there - back).max(2) > 40).mean() < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_and_accessories_change_the_picture(kind):
    looks = [subject(kind, pattern=p) for p in PATTERNS]
    looks += [subject(kind, accessory="collar"), subject(kind, accessory="hat")]
    assert len({draw_subject(s, 96).tobytes() for s in looks}) == len(looks)


def test_visible_masks_do_not_overlap_and_front_wins():
    back, front = subject("car", size=0.6, x=0.45), subject("cat", size=0.6, x=0.55)
    drawn = render(Drawing((back, front), "snow"), 96)
    assert not (drawn.masks[0] & drawn.masks[1]).any()
    alone = render(Drawing((front,), "snow"), 96)
    assert np.array_equal(drawn.masks[1], alone.masks[0])


def test_any_size_is_possible():
    drawn = render(sample_drawing(5), 96, 64)
    assert drawn.image.size == (96, 64)
    assert drawn.masks.shape[1:] == (64, 96)


@given(st.integers(0, 2**31 - 1), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_captions_name_every_subject_where_they_say(seed, detail):
    drawing = sample_drawing(seed % 5000)
    caption = caption_drawing(drawing, seed, detail)
    for one, span in zip(drawing.subjects, caption.nouns, strict=True):
        assert span is not None
        assert caption.text[span[0] : span[1]].startswith(one.kind)


def test_captions_tell_relations_truly():
    words = set()
    for seed in range(400):
        drawing = sample_drawing(seed, replace(FULL_WORLD, counts=(0, 1), same_kind=0, above=0.3))
        text = caption_drawing(drawing, seed).text
        first, second = sorted(
            drawing.subjects, key=lambda s: text.replace("left of", "#").find(s.kind)
        )
        if " left of " in text:
            words.add("left of")
            assert first.x < second.x
        elif " right of " in text:
            words.add("right of")
            assert first.x > second.x
        elif " above " in text:
            words.add("above")
            assert first.y < second.y
    assert words == {"left of", "right of", "above"}


def test_first_world_is_a_part_of_the_full_one():
    assert set(FIRST_WORLD.kinds) <= set(KINDS)
    assert set(FIRST_WORLD.backgrounds) <= set(BACKGROUNDS)
    for seed in range(100):
        drawing = sample_drawing(seed, FIRST_WORLD)
        assert {s.kind for s in drawing.subjects} <= set(FIRST_WORLD.kinds)
        assert not any(s.mirrored for s in drawing.subjects)
    full = [s for seed in range(50) for s in sample_drawing(seed, FULL_WORLD).subjects]
    assert {s.mirrored for s in full} == {True, False}


def test_subjects_stay_in_the_picture():
    rng = random.Random(0)
    for n in (1, 2, 3, 4, 5):
        subjects = [sample_subject(rng, "cat", FULL_WORLD) for _ in range(n)]
        for s in place_subjects(rng, subjects):
            assert s.size / 2 - 1e-9 <= s.x <= 1 - s.size / 2 + 1e-9
            assert s.size <= s.y <= 1
    with pytest.raises(ValueError, match="1 to 5"):
        place_subjects(rng, [])


def test_concepts_cover_classes_and_share_some():
    kinds = [c.kind for c in CONCEPTS.values()]
    assert len(kinds) >= 6
    assert len(set(kinds)) >= 4
    assert len(kinds) > len(set(kinds))
    assert len({c.trigger for c in CONCEPTS.values()}) == len(kinds)
    drawn = draw_concepts(["blackcat", "golddog"], "snow", 4, 64)
    assert [s.kind for s in drawn.drawing.subjects] == ["cat", "dog"]
    assert len({r.image.tobytes() for r in training_drawings("racecar", 6, 32)}) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_accessory_can_be_seen_on_every_class(kind):
    def drawn(accessory):
        one = subject(kind, accessory=accessory, accessory_colour=COLOURS["green"], size=0.6)
        return np.asarray(render(Drawing((one,), "snow", 1), 96).image, int)

    pictures = {a: drawn(a) for a in (None, *ACCESSORIES, *OWN_ACCESSORIES)}
    for a in pictures:
        for b in pictures:
            assert a == b or (np.abs(pictures[a] - pictures[b]).sum(2) > 60).sum() > 8, (a, b)


def test_a_tall_hat_is_not_cut_off():
    robot = subject("robot", accessory="wizard hat", size=0.6)
    mask = render(Drawing((robot,), "snow", 1), 128).masks[0]
    assert mask.any(1).argmax() < 128 * (0.85 - 0.6)  # above the unit square


def test_the_world_has_nothing_that_belongs_to_a_single_lora():
    for seed in range(300):
        drawing = sample_drawing(seed)
        assert drawing.background not in OWN_BACKGROUNDS
        assert not {s.accessory for s in drawing.subjects} & set(OWN_ACCESSORIES)
    assert {s.accessory for i in range(300) for s in sample_drawing(i).subjects} >= set(ACCESSORIES)
    for place in OWN_BACKGROUNDS:
        assert render(Drawing((subject("cat"),), place, 2), 64).masks[0].any()


def test_full_world_has_crowds_and_overlap():
    drawings = [sample_drawing(seed) for seed in range(600)]
    alike = {max(kinds.count(k) for k in kinds)
             for d in drawings if (kinds := [s.kind for s in d.subjects])}  # fmt: skip
    assert alike == {1, 2, 3}

    def crowded(d):
        gaps = zip(d.subjects, d.subjects[1:])
        return any(
            b.x - a.x < 0.8 * (a.size + b.size) / 2 and abs(a.y - b.y) < 0.3 for a, b in gaps
        )

    share = np.mean([crowded(d) for d in drawings if len(d.subjects) > 1])
    assert 0.03 < share < 0.3
    assert not any(crowded(sample_drawing(seed, FIRST_WORLD)) for seed in range(300))


class TestStyles:
    picture = render(sample_drawing(3), 128).image

    @pytest.mark.parametrize("style", STYLES)
    def test_a_style_keeps_the_size_and_changes_the_look(self, style):
        for size in ((128, 128), (96, 60), (50, 33)):
            before = self.picture.resize(size)
            after = in_style(before, style)
            assert (after.size, after.mode) == (size, "RGB")
            assert np.abs(np.asarray(after, int) - np.asarray(before, int)).mean() > 4
            assert after.tobytes() == in_style(before, style).tobytes()

    def test_each_is_what_its_name_says(self):
        looks = {s: np.asarray(in_style(self.picture, s), float) / 255 for s in STYLES}
        chroma = {s: (p.max(2) - p.min(2)).mean() for s, p in looks.items()}
        assert chroma["pencil"] < 0.1
        assert (looks["sepia"][..., 0] >= looks["sepia"][..., 2]).all()
        cells = looks["pixelart"].reshape(32, 4, 32, 4, 3)
        assert (cells == cells[:, :1, :, :1]).all()
        assert np.median(looks["neon"].max(2)) < 0.5 < looks["neon"].max()

    def test_unknown(self):
        with pytest.raises(ValueError, match="pencil"):
            in_style(self.picture, "oil")
