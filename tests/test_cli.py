"""The command line: what it writes, prints and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loraweave import METHODS, compose
from loraweave.cli import app
from loraweave.commands.options import read_loras, read_seeds, read_settings
from loraweave.errors import LoraError, MethodError, SceneError
from loraweave.miniature.world.styles import in_style
from loraweave.output import read_png_record
from loraweave.scene import ComponentWeights, LoraRef
from tiny import tiny_pipeline

PROMPT = "a [sks cat](cat) and a [zwx dog](dog:0.8) in the meadow"
IMAGE_KEYS = {"path", "method", "seed", "seconds", "calls", "found"}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *words, folder=None):
    """Exit status 2, a message on standard error and nothing else, no picture."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    for word in words:
        assert word.lower() in result.stderr.lower(), result.stderr
    if folder is not None:
        assert list(folder.iterdir()) == []


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def model(base_folder, lora_files) -> list[str]:
    """Options that name the tiny model, its LoRAs, and a quick run."""
    loras = [f"--lora={name}={path}" for name, path in lora_files.items()]
    return [*loras, "--base", str(base_folder), "--device", "cpu", "--steps", "2"]


class TestGenerate:
    def test_the_picture_is_the_one_that_compose_draws(self, out, model, lora_files):
        result = run("generate", PROMPT, *model, "-o", out / "a.png", "--seed", 3)
        assert result.exit_code == 0, result.stderr
        assert "a.png" in result.stdout
        expected = compose(
            tiny_pipeline(), PROMPT, loras=lora_files, num_inference_steps=2, progress=False,
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
        with Image.open(out / "a.png") as image:
            assert image.tobytes() == expected.images[0].tobytes()

    def test_json_is_all_there_is_on_standard_output(self, out, model):
        result = run("generate", PROMPT, *model, "-o", out / "a.png", "--json", "--count", 2)
        images = json.loads(result.stdout)["images"]
        assert [set(image) for image in images] == [IMAGE_KEYS] * 2
        assert [image["path"] for image in images] == [str(out / f"a-{n}.png") for n in (1, 2)]
        assert [image["seed"] for image in images] == [7, 8]
        assert all(image["seconds"] > 0 and image["calls"] > 0 for image in images)
        assert all(image["found"] is None and image["method"] == "weave" for image in images)
        assert sorted(p.name for p in out.iterdir()) == ["a-1.png", "a-2.png"]

    def test_quiet(self, out, model):
        result = run("generate", PROMPT, *model, "-o", out / "a.png", "--quiet")
        assert (result.stdout, result.stderr) == ("", "")
        assert (out / "a.png").is_file()

    def test_options_reach_the_record(self, out, model):
        run(
            "generate", PROMPT, *model, "-o", out / "a.png", "--method", "clora", "--negative",
            "snow", "--guidance", 3, "--width", 40, "--height", 32, "--set", "variant=faithful",
            "--set", "refinement_steps=[1]", "--set", "refinements=1",
        )  # fmt: skip
        record = read_png_record(out / "a.png")
        scene, settings = record["scene"], record["settings"]
        assert (scene["negative_prompt"], scene["guidance_scale"]) == ("snow", 3)
        assert (scene["width"], scene["height"], scene["num_inference_steps"]) == (40, 32, 2)
        assert settings["variant"] == "faithful"
        assert (settings["refinement_steps"], settings["refinements"]) == ([1], 1)

    def test_maps(self, out, model):
        run("generate", PROMPT, *model, "-o", out / "a.png", "--save-maps", out / "m.png")
        with Image.open(out / "m.png") as image:
            assert min(image.size) > 200

    def test_weights_multiply(self, out, model, lora_files):
        run("generate", PROMPT, *model[1:], f"--lora=cat={lora_files['cat']}:0.5",
            "-o", out / "a.png")  # fmt: skip
        assert read_png_record(out / "a.png")["scene"]["loras"]["cat"]["weight"] == 0.5

    def test_scene_file(self, tmp_path, out, base_folder, lora_files):
        scene = {
            "prompt": PROMPT, "seed": 5, "num_inference_steps": 2,
            "loras": {name: str(path) for name, path in lora_files.items()},
        }  # fmt: skip
        (tmp_path / "scene.json").write_text(json.dumps(scene))
        result = run(
            "generate", "--scene", tmp_path / "scene.json", "--base", base_folder, "--method",
            "merge", "-o", out / "a.png", "--json", "--device", "cpu",
        )  # fmt: skip
        assert json.loads(result.stdout)["images"][0]["seed"] == 5

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_again_from_the_picture(self, out, model, base_folder, dtype):
        run("generate", PROMPT, *model, "-o", out / "a.png", "--seed", 3, "--set", "context=0.5",
            "--dtype", dtype)  # fmt: skip
        assert read_png_record(out / "a.png")["dtype"] == dtype
        again = run("generate", "--from", out / "a.png", "--base", base_folder,
                    "--device", "cpu", "-o", out / "b.png")  # fmt: skip
        assert again.exit_code == 0, again.stderr
        assert "note:" not in again.stderr
        assert (out / "a.png").read_bytes() == (out / "b.png").read_bytes()

    def test_what_it_cost_is_kept_if_asked_for(self, out, model, base_folder):
        told = run("generate", PROMPT, *model, "-o", out / "a.png", "--cost", "--json")
        record = read_png_record(out / "a.png")
        (one,) = json.loads(told.stdout)["images"]
        assert one["cost"] == record["cost"]
        assert record["cost"]["calls"] == one["calls"]
        assert record["cost"]["tflops"] >= 0
        again = run("generate", "--from", out / "a.png", "--base", base_folder, "-o", out / "b.png")
        assert again.exit_code == 0, again.stderr
        assert {**read_png_record(out / "b.png"), "cost": record["cost"]} == record
        said = run("generate", PROMPT, *model, "-o", out / "c.png", "--cost").stdout
        assert f"{one['calls']} calls, " in said
        assert " TFLOPs" in said
        with Image.open(out / "a.png") as image, Image.open(out / "b.png") as second:
            assert image.tobytes() == second.tobytes()

    def test_again_with_something_else(self, out, model, base_folder):
        run("generate", PROMPT, *model, "-o", out / "a.png", "--set", "context=0.5")
        result = run("generate", "--from", out / "a.png", "--base", base_folder, "-o",
                     out / "b.png", "--method", "merge", "--seed", 9, "--steps", 1,
                     "--scheduler", "unipc", "--device", "cpu")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert "note:" not in result.stderr, "what was asked for is no surprise"
        record = read_png_record(out / "b.png")
        assert record["method"] == "merge"
        assert record["settings"] == METHODS["merge"]().settings.model_dump()
        assert (record["scene"]["seed"], record["scene"]["num_inference_steps"]) == (9, 1)
        assert record["scene"]["prompt"] == PROMPT

    def test_again_with_another_file_says_so(self, out, model, base_folder, lora_files):
        run("generate", PROMPT, *model, "-o", out / "a.png")
        result = run(
            "generate", "--from", out / "a.png", "--base", base_folder, "-o", out / "b.png",
            f"--lora=cat={lora_files['dog']}", "--device", "cpu",
        )  # fmt: skip
        assert "note: the LoRA 'cat' is not the file" in result.stderr

    def test_again_needs_the_base(self, out, model):
        run("generate", PROMPT, *model, "-o", out / "a.png")
        (out / "a.png").rename(out.parent / "a.png")
        result = run("generate", "--from", out.parent / "a.png", "-o", out / "b.png")
        refused(result, "tiny-base", "--base", folder=out)

    def test_an_existing_picture_stays_until_the_new_one_is_there(self, out, model):
        (out / "a.png").write_text("old")
        result = run("generate", PROMPT, *model, "-o", out / "a.png", "--set", "context=-1")
        assert result.exit_code == 2
        assert (out / "a.png").read_text() == "old"
        run("generate", PROMPT, *model, "-o", out / "a.png")
        assert read_png_record(out / "a.png")["method"] == "weave"


class TestJudged:
    """With the miniature the judge's verdict is printed; a stand-in for it keeps this quick."""

    @pytest.fixture
    def miniature(self, monkeypatch, base_folder, lora_files):
        from loraweave.miniature import judge, shipped

        class Verdict:
            success = True

            def sentence(self):
                return "sees a cat"

            def as_dict(self):
                return {"success": True}

        class Judge:
            def examine(self, image, concepts):
                assert concepts == ["blackcat", "golddog"]
                return Verdict()

        names = {"blackcat": lora_files["cat"], "golddog": lora_files["dog"]}
        monkeypatch.setattr(judge, "load_judge", Judge)
        monkeypatch.setattr(shipped, "base_folder", lambda: base_folder)
        monkeypatch.setattr(shipped, "lora_names", lambda: sorted(names))
        monkeypatch.setattr(shipped, "lora_file", names.__getitem__)

    PROMPT = "a [sks cat](blackcat) and a [zwx dog](golddog)"

    def test_shipped_loras_need_no_file(self, out, miniature):
        more = ["--steps", 2, "--device", "cpu", "-o", out / "a.png"]
        result = run("generate", self.PROMPT, *more)
        assert result.exit_code == 0, result.stderr
        assert "sees a cat" in result.stdout
        loras = read_png_record(out / "a.png")["scene"]["loras"]
        assert loras["blackcat"]["path"] == "miniature:blackcat"
        result = run("generate", self.PROMPT, *more, "--json")
        assert json.loads(result.stdout)["images"][0]["found"] == {"success": True}

    def test_a_lora_that_does_not_ship(self, out, miniature):
        result = run("generate", "a [sks cat](whitecat)", "-o", out / "a.png")
        refused(result, "whitecat", "--lora", "blackcat, golddog", folder=out)


class TestCompare:
    def test_a_grid_of_methods_and_seeds(self, out, model):
        result = run("compare", PROMPT, *model, "--seeds", "1-2", "-o", out / "g.png", "--json",
                     "--set", "clora.refinements=1", "--set", "max_update_step=1")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        images = json.loads(result.stdout)["images"]
        assert [(image["method"], image["seed"]) for image in images] == [
            (method, seed) for method in ("weave", "clora", "merge") for seed in (1, 2)
        ]
        assert [set(image) for image in images] == [IMAGE_KEYS] * 6
        with Image.open(out / "g.png") as image:
            assert min(image.size) > 2 * 256

    def test_methods_without_regions_are_drawn_without(self, out, model):
        places = ["--region=0,0,.5,1", "--region=.5,0,1,1", "--region-prompt", "cat=a [x cat](cat)"]
        result = run("compare", PROMPT, *model, *places, "--seeds", "1", "-o", out / "g.png",
                     "--methods", "merge,masked", "--steps", "1")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert (
            "note: merge takes no regions and no prompts, so it is drawn without" in result.stderr
        )
        refused(run("generate", PROMPT, *model, *places, "--method", "merge", "-o",
                    out / "a.png"), "merge takes no regions")  # fmt: skip

    @pytest.mark.parametrize(
        ("option", "words"),
        [
            ("--seeds=3-1", ["seeds", "range"]),
            ("--seeds=a", ["seeds", "0-3"]),
            ("--methods=clora,clora", ["different"]),
            ("--methods=clora,nothing", ["no method 'nothing'"]),
            ("--set=nothing=1", ["nothing"]),
            ("--set=merge.refinements=1", ["refinements"]),
            ("--set=other.refinements=1", ["other"]),
        ],
    )
    def test_refused(self, out, model, option, words):
        refused(run("compare", PROMPT, *model, "-o", out / "g.png", option), *words, folder=out)


class TestRefused:
    """Every bad input: status 2, a message that names it, no file."""

    @pytest.mark.parametrize(
        ("prompt", "words"),
        [
            ("", ["empty"]),
            ("   ", ["empty"]),
            ("a [sks cat](cat", ["character"]),
            ("a [sks cat] (cat)", ["without a blank", "^"]),
            ("a [](cat)", ["no words"]),
            ("a [sks cat](cat) and a [zwx dog](cat)", ["two places", "'cat'"]),
            ("a [sks cat](cat) and " + "red " * 1300 + "[zwx dog](dog)", ["tokens", "Shorten"]),
            (" and ".join(f"a [cat](c{n})" for n in range(9)), ["9 concepts", "8"]),
            ("a [sks cat](nocat) and a [dog](dog)", ["'nocat'", "--lora nocat="]),
            ("a [sks cat](cat)", ["'dog'", "never uses"]),
        ],
    )
    def test_prompt(self, out, model, prompt, words):
        refused(run("generate", prompt, *model, "-o", out / "a.png"), *words, folder=out)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--lora", "bird=missing.safetensors"], ["'bird'", "never uses"]),
            (["--lora", "cat"], ["name=path"]),
            (["--lora", "cat=x.safetensors"], ["'cat'", "twice"]),
            (["--width", 33], ["width", "multiple of 8"]),
            (["--height", 8200], ["height", "8192"]),
            (["--width", -8], ["width"]),
            (["--steps", 0], ["num_inference_steps"]),
            (["--guidance", "nan"], ["guidance_scale"]),
            (["--seed", -1], ["seed"]),
            (["--count", 0], ["--count"]),
            (["--method", "nothing"], ["'nothing'", "clora"]),
            (["--set", "nothing=1"], ["'nothing'", "layout_share"]),
            (["--set", "variant=better"], ["variant"]),
            (["--set", "variant"], ["key=value"]),
            (["--set", "variant=[1"], ["YAML"]),
            (["--base", "missing"], ["'missing'"]),
            (["--device", "toaster"], ["toaster"]),
            (["--dtype", "int8"], ["int8"]),
            (["--negative", "a [b](cat)"], ["negative"]),
            (["--scene", "scene.yaml"], ["exactly one"]),
            (["--nothing"], ["--nothing"]),
        ],
    )
    def test_option(self, out, model, options, words):
        result = run("generate", PROMPT, *model, "-o", out / "a.png", *options)
        refused(result, *words, folder=out)

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("missing/a.png", ["missing", "does not exist"]),
            ("a.jpg", ["png"]),
            (".", ["png"]),
        ],
    )
    def test_output(self, out, path, words):
        # Without a model: the path is checked before anything else.
        refused(run("generate", PROMPT, "-o", out / path), *words, folder=out)
        refused(run("compare", PROMPT, "-o", out / path), *words, folder=out)
        result = run("generate", PROMPT, "-o", out / "a.png", "--save-maps", out / path)
        refused(result, *words, folder=out)

    def test_output_that_is_a_folder(self, out):
        (out / "a.png").mkdir()
        refused(run("generate", PROMPT, "-o", out / "a.png"), "folder")

    def test_one_path_for_two_files(self, out):
        result = run("generate", PROMPT, "-o", out / "a.png", "--save-maps", out / "a.png")
        refused(result, "two names", folder=out)

    def lora(self, out, model, path):
        return run("generate", PROMPT, f"--lora=cat={path}", *model[1:], "-o", out / "a.png")

    def test_lora_files(self, tmp_path, out, model, lora_files):
        missing, text = tmp_path / "missing.safetensors", tmp_path / "text.safetensors"
        text.write_text("this is not a LoRA")
        refused(self.lora(out, model, missing), "missing.safetensors", folder=out)
        refused(self.lora(out, model, text), "not a safetensors", folder=out)
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(lora_files["cat"].read_bytes()[:-100])
        refused(self.lora(out, model, cut), "truncated", folder=out)

    def test_lora_of_another_base(self, tmp_path, out, model, lora_files):
        tensors = load_file(lora_files["cat"])
        wider = {
            name: t.repeat(1, 2) if "attn2_to_k.lora_down" in name else t
            for name, t in tensors.items()
        }
        save_file(wider, tmp_path / "other.safetensors")
        refused(self.lora(out, model, tmp_path / "other.safetensors"), "other.s", folder=out)

    def test_pictures_without_a_sound_record(self, tmp_path, out):
        def again(path):
            return run("generate", "--from", path, "-o", out / "a.png")

        Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
        refused(again(tmp_path / "plain.png"), "no LoRAWeave record", folder=out)
        refused(again(tmp_path / "missing.png"), "missing.png", folder=out)
        for n, record in enumerate(
            [
                {"scene": {}, "method": "clora"},
                {"scene": [], "method": "clora"},
                {"scene": {"prompt": "a cat"}, "method": ["clora"]},
                {"scene": {"prompt": "a cat"}, "method": "clora", "settings": 3},
                {"scene": {"prompt": "a cat"}, "method": "clora", "base": "miniature"},
                {"scene": {"prompt": "a cat", "mood": 1}, "method": "clora"},
            ]
        ):
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            info.add_text("loraweave", json.dumps(record))
            Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.png", pnginfo=info)
            refused(again(tmp_path / f"{n}.png"), folder=out)


class TestReports:
    def test_methods(self):
        text = run("methods").stdout
        assert all(name in text and method.summary in text for name, method in METHODS.items())
        for name, method in METHODS.items():
            own = run("methods", name).stdout
            assert all(f"{key}=" in own for key in method.Settings.model_fields), name
            assert method.source in " ".join(own.split())
        text = run("methods", "clora").stdout
        assert "refinement_steps=[0, 10, 20]" in text
        assert "a number above 0 below 1" in text
        refused(run("methods", "wave"), "no method 'wave'")

    def test_methods_as_json(self):
        listed = {one["name"]: one for one in json.loads(run("methods", "--json").stdout)}
        assert set(listed) == set(METHODS)
        assert listed["clora"]["settings"]["refinement_steps"] == [0, 10, 20]
        keys = {"name", "training", "regions", "extra_models", "any_lora", "calls_per_step"}
        assert all(one.keys() >= keys | {"max_concepts", "refuses"} for one in listed.values())
        assert listed["merge"]["settings"]["rule"] == "sum"
        assert json.loads(run("methods", "merge", "--json").stdout) == listed["merge"]
        assert listed["merge"]["described"]["rank"] == {
            "default": None, "takes": "a whole number from 1 | null",
            "means": "the result is reduced to this rank by SVD; not reduced if None.",
        }  # fmt: skip
        assert any("DoRA" in words for words in listed["merge"]["refuses"])

    def test_inspect_a_lora(self, lora_files):
        text = run("inspect", lora_files["cat"]).stdout
        assert all(words in text for words in ("kohya", "ranks", "unet"))
        report = json.loads(run("inspect", lora_files["cat"], "--json").stdout)
        assert (report["kind"], report["ranks"], report["alphas"]) == ("kohya", [4], [2.0])

    def test_inspect_for_a_base(self, lora_files, base_folder):
        told = json.loads(run("inspect", lora_files["cat"], "--json").stdout)
        assert (told["tensors_landed"], told["landed_on"]) == (None, None)  # no such public base
        report = json.loads(
            run("inspect", lora_files["cat"], "--base", base_folder, "--json").stdout
        )
        assert report["tensors_landed"] == report["tensors_total"] > 0
        assert (report["format"], report["rank"], report["alpha"], report["scale"]) == (
            "kohya", 4, 2.0, 0.5
        )  # fmt: skip
        assert {"base", "parts", "dropped", "triggers", "refused"} <= set(report)
        refused(run("inspect", lora_files["cat"], "--base", "nowhere"), "nowhere", "config.json")

    def test_convert(self, lora_files, base_folder, out):
        for target, name in (
            ("diffusers", "d.safetensors"),
            ("peft", "p"),
            ("kohya", "k.safetensors"),
        ):
            result = run("convert", lora_files["cat"], "--to", target, "-o", out / name,
                         "--base", base_folder, "--json")  # fmt: skip
            assert result.exit_code == 0, result.stderr
            report = json.loads(result.stdout)
            assert (report["format"], report["approximated"]) == (target, 0)
            assert all(Path(file).is_file() for file in report["files"])
        text = run("convert", lora_files["cat"], "--to", "kohya", "--rank", 1, "-o",
                   out / "small.safetensors", "--base", base_folder).stdout  # fmt: skip
        assert "of rank 1" in text
        assert "relative error of 0." in text

    def test_convert_refuses(self, lora_files, base_folder, out, tmp_path):
        cat = lora_files["cat"]
        refused(run("convert", cat, "--to", "kohya", "-o", out / "x.safetensors"), "--base FOLDER")
        base = ["--base", base_folder, "-o"]
        refused(run("convert", cat, "--to", "kohya", *base, out / "x.bin"), ".safetensors")
        refused(run("convert", cat, "--to", "kohya", *base, out / "x.safetensors",
                    "--token", "s1"), "OLD=NEW")  # fmt: skip
        for command in (["convert", cat, "--to", "kohya"], ["merge", cat]):
            for place in ("x.safetensors", "below/x.safetensors"):
                refused(run(*command, *base, cat / place), "cannot be written", "is no folder")
        torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
        refused(run("convert", tmp_path / "a.bin", "--to", "kohya", *base, out / "x.safetensors"),
                "--allow-pickle", folder=out)  # fmt: skip

    def test_inspect_a_picture(self, out, model):
        run("generate", PROMPT, *model, "-o", out / "a.png", "--method", "merge")
        record = json.loads(run("inspect", out / "a.png", "--json").stdout)
        assert record == read_png_record(out / "a.png")
        assert PROMPT in run("inspect", out / "a.png").stdout

    def test_inspect_refuses(self, tmp_path):
        refused(run("inspect", tmp_path / "missing.safetensors"), "missing.safetensors")
        refused(run("inspect", tmp_path / "missing.png"), "missing.png")
        (tmp_path / "text.safetensors").write_text("words")
        refused(run("inspect", tmp_path / "text.safetensors"), "not a safetensors")

    def test_version(self):
        assert run("--version").stdout == f"loraweave {version('loraweave')}\n"

    @pytest.mark.parametrize(
        "command",
        ["generate", "compare", "methods", "inspect", "convert", "train", "miniature draw",
         "miniature train", "miniature check", "miniature compare"],
    )  # fmt: skip
    def test_help(self, command):
        result = run(*command.split(), "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout


class TestTrain:
    def options(self, base_folder, path, *more):
        return ["--trigger", "sks", "--class", "cat", "--out", path, "--base", base_folder,
                "--steps", 2, "--rank", 2, "--device", "cpu", *more]  # fmt: skip

    def test_from_drawings_to_a_lora(self, tmp_path, out, base_folder):
        drawn = run("miniature", "draw", "-o", tmp_path / "cats", "--concept", "blackcat",
                    "--count", 2, "--size", 32)  # fmt: skip
        assert drawn.exit_code == 0, drawn.stderr
        path = out / "cat.safetensors"
        result = run("train", tmp_path / "cats", *self.options(base_folder, path, "--json"))
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        assert (report["path"], report["steps"], len(report["losses"])) == (str(path), 2, 2)
        inspected = json.loads(run("inspect", path, "--json").stdout)
        assert (inspected["ranks"], inspected["trigger_words"][0]) == ([2], "sks cat")

    def test_refused(self, tmp_path, out, base_folder):
        (tmp_path / "empty").mkdir()
        good = self.options(base_folder, out / "cat.safetensors")
        refused(run("train", tmp_path / "empty", *good), "No pictures", folder=out)
        refused(run("train", tmp_path / "missing", *good), "No folder", folder=out)
        refused(run("train", tmp_path / "empty", *good, "--rank", 0), "rank", folder=out)
        refused(run("train", tmp_path / "empty", *good[2:]), "trigger", "together", folder=out)
        run("miniature", "draw", "-o", tmp_path / "cats", "--count", 2, "--size", 32)
        for caption in (tmp_path / "cats").glob("*.txt"):
            caption.unlink()
        refused(run("train", tmp_path / "cats", *good[4:]), "caption", "00000.png", folder=out)
        for path in ("cat.bin", "missing/cat.safetensors", "."):
            result = run("train", tmp_path / "empty", *self.options(base_folder, out / path))
            refused(result, "out", folder=out)


class TestMiniatureDraw:
    def test_grid(self, out):
        result = run("miniature", "draw", "-o", out / "grid.png", "--count", 5, "--size", 32)
        assert result.exit_code == 0, result.stderr
        with Image.open(out / "grid.png") as image:
            assert min(image.size) > 2 * 128

    def test_folder(self, out):
        result = run("miniature", "draw", "-o", out / "world", "--count", 3, "--size", 32,
                     "--seed", 4, "--json")  # fmt: skip
        names = [f"{n:05d}.{kind}" for n in range(3) for kind in ("png", "txt")]
        assert sorted(p.name for p in (out / "world").iterdir()) == names
        assert len(json.loads(result.stdout)["captions"]) == 3
        before = (out / "world" / "00001.png").read_bytes()
        run("miniature", "draw", "-o", out / "again", "--count", 2, "--size", 32, "--seed", 4)
        assert (out / "again" / "00001.png").read_bytes() == before

    def test_refused(self, out):
        result = run("miniature", "draw", "-o", out / "a.png", "--concept", "whitecat")
        refused(result, "whitecat", "blackcat", folder=out)
        result = run("miniature", "draw", "-o", out / "a.png", "--style", "oil")
        refused(result, "oil", "pencil", folder=out)
        refused(run("miniature", "draw", "-o", out / "no" / "a"), "does not exist", folder=out)
        refused(run("miniature", "draw", "-o", out / "no" / "a.png"), "not exist", folder=out)
        refused(run("miniature", "draw", "-o", out / "a.png", "--count", 0), "count", folder=out)

    def test_style(self, out):
        options = ["--count", 1, "--size", 32, "--seed", 4]
        for folder, more in (("plain", []), ("sepia", ["--style", "sepia"])):
            result = run("miniature", "draw", "-o", out / folder, *options, *more)
            assert result.exit_code == 0, result.stderr
        with Image.open(out / "plain" / "00000.png") as plain:
            expected = in_style(plain, "sepia")
        with Image.open(out / "sepia" / "00000.png") as drawn:
            assert drawn.tobytes() == expected.tobytes()


class TestReading:
    @pytest.mark.parametrize(
        ("text", "path", "weight"),
        [
            ("a=x.safetensors", "x.safetensors", 1.0),
            ("a=x.safetensors:0.8", "x.safetensors", 0.8),
            ("a=x.safetensors:-1e-1", "x.safetensors", -0.1),
            (" a = dir/x.safetensors:2", "dir/x.safetensors", 2.0),
            (r"a=C:\x.safetensors", r"C:\x.safetensors", 1.0),
            (r"a=C:\x.safetensors:0.8", r"C:\x.safetensors", 0.8),
            ("a=C:/y/x.safetensors", "C:/y/x.safetensors", 1.0),
            ("a=miniature:blackcat", "miniature:blackcat", 1.0),
            ("a=miniature:blackcat:.5", "miniature:blackcat", 0.5),
            ("a=folder=1/x.safetensors", "folder=1/x.safetensors", 1.0),
            (
                "a=x.safetensors:0.8:.5",
                "x.safetensors",
                ComponentWeights(unet=0.8, text_encoder=0.5),
            ),
        ],
    )
    def test_loras(self, text, path, weight):
        assert read_loras([text]) == {"a": LoraRef(path=Path(path), weight=weight)}

    @pytest.mark.parametrize(
        "texts", [["a"], ["a="], ["=x"], ["a=x.safetensors:much"], ["a=x", "a=y"]]
    )
    def test_no_loras(self, texts):
        with pytest.raises(LoraError, match="--lora"):
            read_loras(texts)

    def test_weight_out_of_range(self):
        with pytest.raises(SceneError, match="weight"):
            read_loras(["a=x.safetensors:5"])

    def test_settings(self):
        texts = ["a=1", "b=0.5", "c=yes", "d=[0, 10]", "e=word", "f=null", "g=a=b", "h=1e-3"]
        assert read_settings(texts) == {
            "a": 1, "b": 0.5, "c": True, "d": [0, 10], "e": "word", "f": None, "g": "a=b",
            "h": 0.001,
        }  # fmt: skip

    @pytest.mark.parametrize("texts", [["a"], ["=1"], ["a=["], ["a=1", "a=2"], ["a=2020-99-99"]])
    def test_no_settings(self, texts):
        with pytest.raises(MethodError, match="--set"):
            read_settings(texts)

    def test_seeds(self):
        assert read_seeds("0,1,2") == read_seeds("0-2") == read_seeds(" 0 - 1 , 2") == [0, 1, 2]
        assert read_seeds("9,3-4") == [9, 3, 4]

    @pytest.mark.parametrize("text", ["", "a", "1,", "-1", "3-1", "1,1", "0-3,2", "0-999999999"])
    def test_no_seeds(self, text):
        with pytest.raises(SceneError, match="seed"):
            read_seeds(text)


class TestProgram:
    """The program itself, as a process of its own."""

    def start(self, *arguments, **more):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "loraweave", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more,
        )  # fmt: skip

    def test_an_error_is_a_message_and_status_2(self, out):
        process = self.start("generate", "a [sks cat", "-o", out / "a.png")
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 2
        assert stdout == ""
        assert "error: this bracket is never closed" in stderr
        assert "Traceback" not in stderr
        assert list(out.iterdir()) == []

    def test_what_the_system_refuses_is_a_message_too(self, out):
        process = self.start("generate", "a [sks cat](blackcat)", "-o", out / f"{'a' * 300}.png")
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stdout) == (2, "")
        assert "error: File name too long: " in stderr
        assert "Traceback" not in stderr

    @pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
    def test_ctrl_c_leaves_no_file(self, out, model):
        heard = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in the background are deaf
        try:
            process = self.start("generate", PROMPT, *model, "--steps", 999, "-o", out / "a.png")
        finally:
            signal.signal(signal.SIGINT, heard)
        assert process.stderr is not None
        while "seed 7" not in (line := process.stderr.readline()):
            assert line or process.poll() is None
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert (stdout, stderr.splitlines()[-1]) == ("", "interrupted")
        assert "Traceback" not in stderr
        assert list(out.iterdir()) == []
