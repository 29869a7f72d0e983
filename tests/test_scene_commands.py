"""`generate` with scene files, records and folders of LoRAs, and `schema`."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from loraweave import compose
from loraweave.cli import app
from loraweave.commands.fields import changed
from loraweave.commands.options import read_scene_fields
from loraweave.errors import SceneError
from loraweave.output import read_png_record
from loraweave.scene import LoraRef, Region, Scene, scene_schema
from tiny import random_lora, tiny_pipeline

PROMPT = "a [sks cat](cat) and a [zwx dog](dog:0.8) in the meadow"


def run(*arguments, **environment):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def refused(result, *words, folder=None):
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    assert [word for word in words if word.lower() not in result.stderr.lower()] == [], (
        result.stderr
    )
    if folder is not None:
        assert list(folder.iterdir()) == []


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def scene_file(tmp_path, lora_files) -> Path:
    scene = {
        "prompt": PROMPT, "seed": 5, "num_inference_steps": 1, "guidance_scale": 3,
        "negative_prompt": "snow", "negative_prompts": {"cat": "white fur"},
        "loras": {"cat": str(lora_files["cat"]), "dog": {"path": str(lora_files["dog"])}},
    }  # fmt: skip
    path = tmp_path / "scene.yaml"
    path.write_text(yaml.safe_dump(scene))
    return path


@pytest.fixture
def quick(base_folder) -> list:
    return ["--base", base_folder, "--device", "cpu", "--method", "merge", "-q"]


def scene_of(path: Path) -> dict:
    return read_png_record(path)["scene"]


class TestSceneFile:
    def test_as_it_stands(self, out, quick, scene_file):
        result = run("generate", scene_file, *quick, "-o", out / "a.png")
        assert result.exit_code == 0, result.stderr
        expected = compose(tiny_pipeline(), Scene.from_file(scene_file), method="merge")
        with Image.open(out / "a.png") as image:
            assert image.tobytes() == expected.images[0].tobytes()
        run("generate", "--scene", scene_file, *quick, "-o", out / "b.png")
        assert (out / "a.png").read_bytes() == (out / "b.png").read_bytes()

    def test_regions_from_options(self, out, base_folder, scene_file, tmp_path):
        Image.new("L", (4, 4), 255).save(tmp_path / "all.png")
        masked = ["generate", scene_file, "--base", base_folder, "--device", "cpu", "-q",
                  "--method", "masked", "--region", "cat=0, 0, .5, 1"]  # fmt: skip
        boxes = {"cat": Region(box=(0, 0, 0.5, 1)), "dog": Region(box=(0.5, 0, 1, 1))}
        right = ["--region", "dog=0.5,0,1,1"]
        result = run(*masked, *right, "--pass-batch", "1", "-o", out / "a.png")
        assert result.exit_code == 0, result.stderr
        scene = Scene.from_file(scene_file).replace(regions=boxes)
        expected = np.asarray(compose(tiny_pipeline(), scene, method="masked").images[0], int)
        with Image.open(out / "a.png") as image:
            assert np.abs(np.asarray(image, int) - expected).max() <= 1
        assert run(*masked, "--region", f"dog={tmp_path / 'all.png'}", "-o", out / "b.png")
        assert scene_of(out / "b.png")["regions"]["dog"]["image"].endswith("all.png")
        beyond = run(*masked, "--region", "dog=0,0,1.5,1", "-o", out / "c.png")
        refused(beyond, "outside the picture")
        refused(run(*masked, "-o", out / "c.png"), "no region for dog", "--region dog=")

    def test_a_file_that_is_given_leaves_where_and_when_it_acts(self, out, quick, lora_files):
        scene = out.parent / "worn.yaml"
        scene.write_text(
            "prompt: a [sks cat](cat) with a [zwx hat](hat)\n"
            f"loras: {{hat: {{path: {lora_files['dog']}, on: cat, start: 0.2, weight: 0.5}}}}\n"
        )
        files = [f"--lora={name}={lora_files['cat']}" for name in ("cat", "hat")]
        more = ["--scene-set", "loras.cat.weight=0.4", "--steps", 1]
        result = run("generate", scene, *quick, *files, *more, "-o", out / "a.png")
        assert result.exit_code == 0, result.stderr
        loras = scene_of(out / "a.png")["loras"]
        assert (loras["hat"]["on"], loras["hat"]["start"], loras["hat"]["weight"]) == (
            "cat",
            0.2,
            0.5,
        )
        assert loras["hat"]["path"] == loras["cat"]["path"] == str(lora_files["cat"])
        assert loras["cat"]["weight"] == 0.4
        run("generate", scene, *quick, f"{files[1]}:0.9", files[0], "-o", out / "b.png", *more)
        assert scene_of(out / "b.png")["loras"]["hat"]["weight"] == 0.9

    def test_every_field_can_be_overridden(self, out, quick, scene_file, lora_files):
        result = run(
            "generate", scene_file, *quick, "-o", out / "a.png", "--seed", 9, "--steps", 2,
            "--guidance", 4, "--width", 40, "--height", 48, "--negative", "rain",
            "--scheduler", "Euler a", "--negative-for", "cat=grey, old fur",
            "--scene-set", "loras.dog.weight=0.5",
            "--prompt", "a [sks cat](cat) meets a [zwx dog](dog)",
            f"--lora=cat={lora_files['dog']}:0.7:0.2",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        always = {"on": None, "start": 0.0, "stop": 1.0, "schedule": None}
        assert scene_of(out / "a.png") == {
            "prompt": "a [sks cat](cat) meets a [zwx dog](dog)", "seed": 9,
            "num_inference_steps": 2, "guidance_scale": 4, "width": 40, "height": 48,
            "scheduler": "euler_a",
            "negative_prompt": "rain", "negative_prompts": {"cat": "grey, old fur"},
            "regions": {}, "prompts": {}, "conditions": [],
            "loras": {
                "cat": {"path": str(lora_files["dog"]),
                        "weight": {"unet": 0.7, "text_encoder": 0.2}, **always},
                "dog": {"path": str(lora_files["dog"]), "weight": 0.5, **always},
            },
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--scene", "other.yaml"], ["two scene files"]),
            (["--from", "a.png"], ["exactly one"]),
            (["--prompt", "a (cat"], ["never closed", "^"]),
            (["--prompt", "a cat"], ["negative prompt for 'cat'"]),
            (["--scene-set", "seed=-1"], ["seed"]),
            (["--scene-set", "seed=3", "--seed", "4"], ["seed", "both"]),
            (["--scene-set", "sede=3"], ["'sede'", "did you mean 'seed'"]),
            (["--scene-set", "loras.cat.weight.unet=3"], ["loras.cat.weight", "as a whole"]),
            (["--scene-set", "seed"], ["key=value"]),
            (["--scene-set", "seed=[1"], ["YAML"]),
            (["--scene-set", "regions.dog.box=[0, 0, 1.5, 1]"], ["regions.dog", "outside"]),
            (["--negative-for", "bird=x"], ["'bird'", "no concept"]),
            (["--negative-for", "cat"], ["name=words".replace("name=words", "key=value")]),
            (["--negative-for", "cat=x", "--scene-set", "negative_prompts.cat=y"], ["both"]),
        ],
    )
    def test_refused(self, out, quick, scene_file, options, words):
        result = run("generate", scene_file, *quick, "-o", out / "a.png", *options)
        refused(result, *words, folder=out)

    def test_files_that_are_none(self, tmp_path, out, quick):
        refused(run("generate", "gone.yaml", *quick, "-o", out / "a.png"), "gone.yaml", folder=out)
        (tmp_path / "bad.JSON").write_text("{")
        result = run("generate", tmp_path / "bad.JSON", *quick, "-o", out / "a.png")
        refused(result, "bad.JSON", "not valid", folder=out)

    def test_compare_takes_one_too(self, out, quick, scene_file):
        given = [*quick[:4], "--seeds", 1, "--methods", "merge", "-o", out / "g.png", "--json"]
        result = run("compare", scene_file, *given, "--scene-set", "num_inference_steps=2")
        assert result.exit_code == 0, result.stderr
        (image,) = json.loads(result.stdout)["images"]
        assert (image["seed"], image["calls"]) == (1, 2)

    def test_prompt_by_option_alone(self, out, quick):
        result = run("generate", "--prompt", "a cat.json", *quick, "--steps", 1,
                     "-o", out / "a.png")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert scene_of(out / "a.png")["prompt"] == "a cat.json"
        refused(run("generate", "a", "--prompt", "b", *quick, "-o", out / "b.png"), "exactly one")


class TestFields:
    SCENE = Scene(
        prompt="a [cat](my.cat) <lora:ink:1>", loras={"my.cat": LoraRef(path=Path("a.st"))}
    )

    def test_dots_within_names(self):
        found = changed(self.SCENE, {"loras.my.cat.weight": 0.5, "loras.ink": "b.st"}, {})
        assert found.loras == {
            "my.cat": LoraRef(path=Path("a.st"), weight=0.5), "ink": LoraRef(path=Path("b.st")),
        }  # fmt: skip
        found = changed(self.SCENE, {"negative_prompts.my.cat": "x"}, {"seed": 4})
        assert (found.negative_prompts, found.seed) == ({"my.cat": "x"}, 4)

    def test_what_is_missing_is_made(self):
        place, prompt = {"regions.v1.5": {"box": [0, 0, 0.5, 1]}}, {"prompt": "a [cat](v1.5)"}
        assert changed(self.SCENE, place, prompt).regions["v1.5"].box == (0, 0, 0.5, 1)
        found = changed(self.SCENE, {"regions.my.cat.box": [0, 0, 0.5, 1]}, {})
        assert found.regions["my.cat"].box == (0, 0, 0.5, 1)
        assert changed(self.SCENE, {}, {}) is self.SCENE

    def test_checked_once_all_is_there(self):
        fields = {"negative_prompts.new": "x", "loras.my.cat": None}
        with pytest.raises(SceneError, match="loras"):
            changed(self.SCENE, fields, {"prompt": "a [cat](new)"})
        found = changed(self.SCENE, {"negative_prompts.new": "x"}, {"prompt": "a [cat](new)"})
        assert found.negative_prompts == {"new": "x"}

    def test_words_of_negative_prompts_are_no_yaml(self):
        assert read_scene_fields(["seed=3"], ["cat= yes, [x]"]) == {
            "seed": 3, "negative_prompts.cat": "yes, [x]",
        }  # fmt: skip


class TestLoraFolder:
    def test_names_suffice(self, out, quick, lora_files):
        folder = lora_files["cat"].parent
        result = run("generate", PROMPT, *quick, "--steps", 1, "--lora-dir", folder,
                     "-o", out / "a.png")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert scene_of(out / "a.png")["loras"]["cat"]["path"] == str(lora_files["cat"])
        run("generate", PROMPT, *quick, "--steps", 1, "-o", out / "b.png",
            LORAWEAVE_LORA_DIR=str(folder))  # fmt: skip
        assert (out / "a.png").read_bytes() == (out / "b.png").read_bytes()

    def test_refused(self, tmp_path, out, quick, lora_files):
        folder = lora_files["cat"].parent

        def drawn(prompt, place=folder):
            return run("generate", prompt, *quick, "--lora-dir", place, "-o", out / "a.png")

        refused(drawn("a [x](cta)"), "no LoRA 'cta'", "did you mean 'cat'", folder=out)
        refused(drawn("a [x](../loras/cat)"), "no LoRA '../loras/cat'", folder=out)
        refused(drawn(PROMPT, tmp_path / "gone"), "gone", "does not exist", folder=out)
        refused(run("generate", PROMPT, *quick, "-o", out / "a.png"), "--lora-dir", folder=out)

    def test_a_name_that_ships_too(self, tmp_path, out, monkeypatch):
        from loraweave.miniature import shipped

        monkeypatch.setattr(shipped, "lora_names", lambda: ["blackcat"])
        (tmp_path / "blackcat.safetensors").touch()
        result = run("generate", "a [x cat](blackcat)", "--lora-dir", tmp_path, "-o", out / "a.png")
        refused(result, "ships", "--lora blackcat=miniature:blackcat", folder=out)

    def test_a_trigger_from_the_file_is_said(self, tmp_path, out, base_folder):
        import torch

        from loraweave.lora.save import save_lora
        from tiny import random_state

        state = random_state(tiny_pipeline().unet, 4, torch.Generator().manual_seed(1))
        metadata = {"modelspec.trigger_phrase": "sks cat"}
        save_lora(tmp_path / "pet.safetensors", state, {}, rank=4, alpha=4.0, metadata=metadata)
        more = ["--base", base_folder, "--device", "cpu", "--steps", 1, "--method", "merge"]
        result = run("generate", "a [cat](pet)", *more, "--lora-dir", tmp_path, "-o", out / "a.png")
        notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
        assert len(notes) == 1
        assert "'pet' got the trigger 'sks'" in notes[0]
        again = run("generate", "--from", out / "a.png", *more[:4], "-o", out / "b.png")
        assert "note:" not in again.stderr
        assert (out / "a.png").read_bytes() == (out / "b.png").read_bytes()


class TestFrom:
    def test_everything_that_a_scene_has(self, out, quick, scene_file):
        more = ["--prompt", "a ([sks cat](cat:0.9:0.1):1) and a [zwx dog](dog) " + "red " * 80]
        result = run("generate", scene_file, *quick, *more, "-o", out / "a.png")
        assert result.exit_code == 0, result.stderr
        again = run("generate", "--from", out / "a.png", *quick[:4], "-o", out / "b.png")
        assert again.exit_code == 0, again.stderr
        assert "made with" not in again.stderr
        assert (out / "a.png").read_bytes() == (out / "b.png").read_bytes()

    def test_a_file_that_moved_is_found_by_its_name(self, tmp_path, out, quick):
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        random_lora(tiny_pipeline(), here / "cat.safetensors")
        run("generate", "a [x cat](cat)", *quick, "--steps", 1, "--lora-dir", here,
            "-o", out / "a.png")  # fmt: skip
        here.rename(there)
        lost = run("generate", "--from", out / "a.png", *quick[:4], "-o", out / "b.png")
        refused(lost, "cat.safetensors")
        found = run("generate", "--from", out / "a.png", *quick[:4], "--lora-dir", there,
                    "-o", out / "b.png")  # fmt: skip
        assert "note:" not in found.stderr
        with Image.open(out / "a.png") as a, Image.open(out / "b.png") as b:
            assert a.tobytes() == b.tobytes()

    def test_what_the_record_cannot_make_again_is_said(self, out, base_folder):
        import torch

        generator = torch.Generator().manual_seed(3)
        drawn = compose(
            tiny_pipeline(), "a cat", method="merge", num_inference_steps=1, generator=generator,
            num_images_per_prompt=2, progress=False,
        )  # fmt: skip
        assert drawn.info["caveats"] == [None, "its generator had been used before"]
        first, second = (drawn.save(out / f"{n}.png", n) for n in range(2))
        model = ["--base", base_folder, "--device", "cpu", "-o", out / "b.png"]
        assert "exactly" not in run("generate", "--from", first, *model).stderr
        assert "again exactly: its generator" in run("generate", "--from", second, *model).stderr

    def test_another_scheduler_is_said(self, out, base_folder):
        from diffusers import DDPMScheduler

        pipe = tiny_pipeline()
        pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        drawn = compose(pipe, "a cat", method="merge", num_inference_steps=1, progress=False)
        path = drawn.save(out / "a.png")
        result = run("generate", "--from", path, "--base", base_folder, "--device", "cpu",
                     "-o", out / "b.png")  # fmt: skip
        assert "note: the scheduler is not what" in result.stderr

    def test_a_record_that_is_no_scene(self, out, quick):
        path = compose(tiny_pipeline(), "a cat", method="merge", num_inference_steps=1).save(
            out / "a.png"
        )
        from loraweave.output import save_png

        record = read_png_record(path)
        with Image.open(path) as image:
            save_png(image, path, {**record, "scene": {**record["scene"], "seed": -1}})
        refused(run("generate", "--from", path, *quick, "-o", out / "b.png"), "a.png", "seed")


class TestSchema:
    def test_printed_and_written(self, out):
        result = run("schema")
        assert json.loads(result.stdout) == scene_schema()
        run("schema", "-o", out / "scene.schema.json")
        assert (out / "scene.schema.json").read_text() == result.stdout

    def test_refused(self, out):
        refused(run("schema", "-o", out / "no" / "a.json"), "cannot be written", folder=out)
        refused(run("schema", "-o", out), "cannot be written", folder=out)
