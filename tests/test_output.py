"""Pictures that carry how they were made."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin

from loraweave.errors import SceneError
from loraweave.output import (
    ComposeOutput,
    check_output_path,
    picture_record,
    read_png_record,
    save_png,
)
from loraweave.scene import Scene, scene_from_dict

PROMPT = "a [sks cat](blackcat) and a [zwx dog](golddog:0.8) on the café terrace"


def info(**changes) -> dict:
    scene = Scene(
        prompt=PROMPT, negative_prompt="blurry, snow ☃", num_inference_steps=30,
        guidance_scale=6.5, loras={"blackcat": "cats/black.safetensors", "golddog": "dog.st"},
    ).replace(**changes)  # fmt: skip
    return {
        "scene": scene.model_dump(mode="json"),
        "method": "clora",
        "settings": {"variant": "improved", "refinement_steps": [0, 10, 20]},
        "base": {"name": "miniature", "sha256": "b" * 64},
        "loras": {"blackcat": {"sha256": "c" * 64}, "golddog": {"sha256": "d" * 64}},
        "conditions": [],
        "dtype": "float32",
        "device": "cpu",
        "versions": {"loraweave": "0.1.0", "torch": "2", "diffusers": "3", "transformers": "4"},
        "seeds": [11, 12],
        "caveats": [None, "a callback took part"],
        "losses": [[], []],
    }


def picture(size=(40, 24)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def output() -> ComposeOutput:
    return ComposeOutput([picture(), picture((24, 40))], [torch.empty(0)] * 2, [], info())


def texts(path) -> dict:
    with Image.open(path) as image:
        return dict(image.info)


class TestRoundTrip:
    def test_records_of_before_there_were_conditions(self, tmp_path):
        record = picture_record(info(), 0)
        del record["conditions"], record["scene"]["conditions"]
        path = save_png(picture(), tmp_path / "a.png", record)
        assert read_png_record(path) == {**record, "conditions": []}
        assert scene_from_dict(record["scene"]).conditions == []

    def test_the_record_comes_back(self, tmp_path):
        path = output().save(tmp_path / "a.png", 1)
        assert read_png_record(path) == picture_record(info(), 1)
        assert read_png_record(path)["caveat"] == "a callback took part"

    def test_the_scene_comes_back_with_its_own_seed(self, tmp_path):
        path = output().save(tmp_path / "a.png", 1)
        scene = scene_from_dict(read_png_record(path)["scene"])
        assert scene == scene_from_dict(info()["scene"]).replace(seed=12)

    def test_the_pixels_come_back(self, tmp_path):
        output().save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.tobytes() == picture().tobytes()

    def test_suffix_in_capitals(self, tmp_path):
        assert read_png_record(output().save(tmp_path / "A.PNG"))["method"] == "clora"


class TestParameters:
    def test_a1111_text(self, tmp_path):
        lines = texts(output().save(tmp_path / "a.png"))["parameters"].split("\n")
        assert lines[0] == PROMPT
        assert lines[1] == "Negative prompt: blurry, snow ☃"
        assert lines[2] == (
            "Steps: 30, CFG scale: 6.5, Seed: 11, Size: 40x24, Model: miniature, Method: clora, "
            'Lora hashes: "blackcat: cccccccccccc, golddog: dddddddddddd", Version: LoRAWeave 0.1.0'
        )
        assert len(lines) == 3

    def test_sampler_and_values_that_need_quotes(self, tmp_path):
        record = picture_record(info(), 0)
        record["base"] = {"name": "my, model: 2", "scheduler": "DDIMScheduler"}
        line = texts(save_png(picture(), tmp_path / "a.png", record))["parameters"].split("\n")[2]
        assert line.startswith("Steps: 30, Sampler: DDIM, CFG scale: 6.5, ")
        assert 'Model: "my, model: 2", Method: clora, ' in line

    def test_without_negative_prompt_and_loras(self, tmp_path):
        record = picture_record(info(prompt="a cat", negative_prompt="", loras={}), 0)
        path = save_png(picture(), tmp_path / "a.png", {**record, "loras": {}})
        text = texts(path)["parameters"]
        assert "Negative prompt" not in text
        assert "Lora hashes" not in text
        assert text.startswith("a cat\nSteps: 30, ")


class TestWriting:
    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    @pytest.mark.parametrize("step", ["save", "replace"])
    def test_a_failing_save_leaves_nothing(self, tmp_path, monkeypatch, error, step):
        fail_at(monkeypatch, step, error)
        with pytest.raises(type(error)):
            output().save(tmp_path / "a.png")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("step", ["save", "replace"])
    def test_a_failing_save_keeps_the_old_picture(self, tmp_path, monkeypatch, step):
        path = output().save(tmp_path / "a.png")
        before = path.read_bytes()
        fail_at(monkeypatch, step, OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            output().save(path, 1)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_an_old_picture_is_replaced(self, tmp_path):
        path = output().save(tmp_path / "a.png", 0)
        output().save(path, 1)
        assert read_png_record(path)["scene"]["seed"] == 12

    @pytest.mark.skipif(os.name == "nt", reason="no such permissions")
    def test_others_may_read_it(self, tmp_path):
        path = output().save(tmp_path / "a.png")
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    @pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.txt", "missing/a.png"])
    def test_paths_that_cannot_be_written(self, tmp_path, name):
        with pytest.raises(SceneError, match=r"PNG|does not exist"):
            check_output_path(tmp_path / name)
        with pytest.raises(SceneError):
            output().save(tmp_path / name)
        assert list(tmp_path.iterdir()) == []


class TestDamagedRecords:
    def written(self, path, text=None, **more):
        png = PngImagePlugin.PngInfo()
        if text is not None:
            png.add_text("loraweave", text)
        picture().save(path, "PNG", pnginfo=png)
        return path

    def test_no_record(self, tmp_path):
        with pytest.raises(SceneError, match="no LoRAWeave record"):
            read_png_record(self.written(tmp_path / "a.png"))

    @pytest.mark.parametrize(
        "text",
        ["{", "null", "7", "[]", '"scene method"', "{}", '{"scene": {}}', '{"method": "clora"}'],
    )
    def test_damaged(self, tmp_path, text):
        with pytest.raises(SceneError, match="damaged"):
            read_png_record(self.written(tmp_path / "a.png", text))

    @pytest.mark.parametrize(
        "change",
        [{"versions": []}, {"loras": {"cat": "c"}}, {"base": "miniature"}, {"conditions": ["a"]},
         {"cost": 7}],
    )  # fmt: skip
    def test_parts_of_another_kind(self, tmp_path, change):
        record = json.dumps({**picture_record(info(), 0), **change})
        with pytest.raises(SceneError, match="damaged"):
            read_png_record(self.written(tmp_path / "a.png", record))

    def test_cut_off(self, tmp_path):
        path = output().save(tmp_path / "a.png")
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(SceneError):
            read_png_record(path)

    @pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"])
    def test_no_picture(self, tmp_path, content):
        path = tmp_path / "a.png"
        path.write_bytes(content)
        with pytest.raises(SceneError, match="cannot read"):
            read_png_record(path)

    @pytest.mark.parametrize("name", ["nothing.png", "."])
    def test_no_file(self, tmp_path, name):
        with pytest.raises(SceneError, match="cannot read"):
            read_png_record(tmp_path / name)

    def test_a_jpeg_of_it_has_none(self, tmp_path):
        output().save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            image.save(tmp_path / "a.jpg")
        with pytest.raises(SceneError, match="no LoRAWeave record"):
            read_png_record(tmp_path / "a.jpg")

    def test_the_record_is_plain_json(self, tmp_path):
        record = json.loads(texts(output().save(tmp_path / "a.png"))["loraweave"])
        kept = {"scene", "method", "settings", "base", "dtype", "device", "loras", "conditions",
                "versions", "caveat"}  # fmt: skip
        assert set(record) == kept


def fail_at(monkeypatch, step: str, error: BaseException) -> None:
    """Break the encoder after some bytes, or the last renaming."""

    def broken(*args, **more):
        if step == "save":
            args[1].write(b"half a picture")
        raise error

    monkeypatch.setattr(Image.Image if step == "save" else Path, step, broken)
