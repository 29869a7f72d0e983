"""Grids and figures of maps: what is in them, and that files appear whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image

from loraweave.evaluate import figures
from loraweave.evaluate.figures import GREEN, RED, labelled_grid, maps_figure
from loraweave.output import ComposeOutput


def picture(colour, size=(24, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


def pixels(image: Image.Image, colour) -> int:
    return int((np.asarray(image) == np.array(colour)).all(-1).sum())


def output(steps=5, concepts=2, masks=True, count=1, **info) -> ComposeOutput:
    maps = [torch.rand(steps, concepts, 8, 6) if concepts else torch.empty(0)] * count
    names = [f"concept{n}" for n in range(concepts)]
    return ComposeOutput(
        [picture("navy", (32, 40))] * count,
        [m.round() for m in maps] if masks else [torch.empty(0)] * count,
        maps,
        {"concepts": names, **info},
    )


class TestGrid:
    @pytest.mark.parametrize("scale", [1, 3])
    def test_every_picture_is_there_whole_and_unblurred(self, scale):
        colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (90, 90, 10)]
        first, second = [picture(c) for c in colours[:2]], [picture(c) for c in colours[2:]]
        grid = labelled_grid([("one", first), ("two", second)], ["a", "b"], scale=scale)
        assert [pixels(grid, c) for c in colours] == [24 * 16 * scale**2] * 4

    def test_margins_are_white(self):
        grid = np.asarray(labelled_grid([("", [picture("black")])], []))
        for edge in (grid[:8], grid[-8:], grid[:, :8], grid[:, -8:]):
            assert (edge == 255).all()

    def test_marks_frame_the_pictures(self):
        row = [picture("navy") for _ in range(3)]
        grid = labelled_grid([("r", row)], ["a", "b", "c"], marks=[[True, False, None]])
        assert pixels(grid, GREEN) > 0
        assert pixels(grid, RED) > 0
        plain = labelled_grid([("r", row)], ["a", "b", "c"], marks=[[None] * 3])
        assert pixels(plain, GREEN) == pixels(plain, RED) == 0

    def test_long_labels_wrap_instead_of_widening_the_grid(self):
        def width(label, column, title):
            return labelled_grid([(label, [picture("navy")])], [column], title=title).width

        words = "word " * 30
        assert width(words, words, words) <= width("label " * 4, "", "") + 20

    def test_a_word_wider_than_its_column_is_cut(self):
        grid = labelled_grid([("x" * 200, [picture("navy")])], ["y" * 200], title="z" * 300)
        assert grid.width < 400

    def test_rows_and_pictures_of_different_size(self):
        rows = [("a", [picture("red", (10, 90))]), ("b", [picture("lime"), picture("blue")])]
        grid = labelled_grid(rows, ["one"])
        assert pixels(grid, (255, 0, 0)) == 900

    @pytest.mark.parametrize(
        ("rows", "more"),
        [
            ([], {}),
            ([("a", [])], {}),
            ([("a", [picture("red")])], {"scale": 0}),
            ([("a", [picture("red")])], {"marks": [[True, False]]}),
            ([("a", [picture("red")])], {"marks": []}),
        ],
    )
    def test_what_cannot_be_drawn(self, rows, more):
        with pytest.raises(ValueError, match=r"must have|needs at least"):
            labelled_grid(rows, [], **more)

    def test_written_as_the_name_says(self, tmp_path):
        grid = labelled_grid([("a", [picture("red")])], [], tmp_path / "grid.png")
        with Image.open(tmp_path / "grid.png") as read:
            assert np.array_equal(np.asarray(read), np.asarray(grid))
        labelled_grid([("a", [picture("red")])], [], tmp_path / "grid.jpg")
        with Image.open(tmp_path / "grid.jpg") as read:
            assert read.format == "JPEG"


class TestMaps:
    @pytest.mark.parametrize("masks", [True, False])
    @pytest.mark.parametrize("concepts", [0, 1, 2, 8])
    @pytest.mark.parametrize("steps", [1, 7])
    def test_any_number_of_concepts_and_steps(self, tmp_path, steps, concepts, masks):
        path = tmp_path / "maps.png"
        assert maps_figure(output(steps, concepts, masks), 0, path, title="a $2 _x_ cat") == path
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200
        assert [p.name for p in tmp_path.iterdir()] == ["maps.png"]

    def test_more_concepts_make_it_higher(self, tmp_path):
        heights = []
        for concepts in (2, 4, 8):
            with Image.open(maps_figure(output(3, concepts), 0, tmp_path / "m.png")) as image:
                heights.append(image.height)
        assert heights == sorted(set(heights))

    def test_the_chosen_picture_is_shown(self, tmp_path):
        both = output(count=2)
        both.images[1] = picture((255, 0, 255), (32, 40))
        maps_figure(both, 1, tmp_path / "m.png")
        with Image.open(tmp_path / "m.png") as image:
            assert pixels(image.convert("RGB"), (255, 0, 255)) > 1000
            assert pixels(image.convert("RGB"), (0, 0, 128)) == 0

    def test_columns_name_step_and_time(self):
        assert figures._step(output(), 3) == "step 3"
        assert figures._step(output(timesteps=[981, 721, 461, 201, 1]), 3) == "step 3 (t=201)"

    def test_no_global_state_of_pyplot(self, tmp_path):
        import sys

        maps_figure(output(), 0, tmp_path / "m.png")
        pyplot = sys.modules.get("matplotlib.pyplot")
        assert pyplot is None or not pyplot.get_fignums()


def write_grid(path):
    labelled_grid([("a", [picture("red")])], [], path)


def write_maps(path):
    maps_figure(output(), 0, path)


@pytest.mark.parametrize("write", [write_grid, write_maps])
def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "figure.png"
    path.write_text("old")

    def broken(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_text() == "old"


def test_boxes_are_drawn_into_a_copy():
    plain = Image.new("RGB", (8, 4))
    drawn = figures.with_boxes(plain, [(0.25, 0, 0.75, 1)], scale=4)
    assert drawn.size == (32, 16)
    assert drawn.getpixel((8, 8)) == figures.RED
    assert drawn.getpixel((16, 8)) == (0, 0, 0)
    assert plain.getextrema() == ((0, 0),) * 3
