"""LoRAs found by their names in a folder, and triggers found in their files."""

import json
from pathlib import Path

import pytest
import torch

from loraweave import LoraError, LoraRef, Scene, compose
from loraweave.loading import with_folder_loras
from loraweave.lora.adapter import load_adapter
from loraweave.lora.folder import find_lora, list_loras
from loraweave.lora.save import save_lora
from loraweave.lora.trigger import fill_triggers, own_triggers
from tiny import random_lora, random_state


@pytest.fixture
def folder(tmp_path) -> Path:
    top = tmp_path / "loras"
    for name in (
        "cat.safetensors", "ink.v2.safetensors", "pets/dog.safetensors", "pets/ink.safetensors",
        "styles/ink.safetensors", "styles/robot/adapter_model.safetensors", "notes.txt",
        ".hidden/bird.safetensors", "pets/._dog.safetensors",
    ):  # fmt: skip
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (tmp_path / "secret.safetensors").touch()
    return top


class TestFolder:
    @pytest.mark.parametrize(
        ("name", "path"),
        [
            ("cat", "cat.safetensors"),
            ("ink.v2", "ink.v2.safetensors"),
            ("dog", "pets/dog.safetensors"),
            ("pets/dog", "pets/dog.safetensors"),
            ("styles/ink", "styles/ink.safetensors"),
            ("robot", "styles/robot"),
        ],
    )
    def test_found(self, folder, name, path):
        assert find_lora(folder, name) == folder / path

    @pytest.mark.parametrize(
        "name",
        ["../secret", "..", ".", "", "/", "pets/../cat", "notes", "bird", "cat.safetensors", "Cat",
         "pets", "pets//dog", "._dog"],
    )  # fmt: skip
    def test_not_found(self, folder, name):
        with pytest.raises(LoraError, match="no LoRA"):
            find_lora(folder, name)
        with pytest.raises(LoraError, match="no LoRA"):
            find_lora(folder, str(folder.parent / "secret"))

    def test_a_near_miss_is_named(self, folder):
        with pytest.raises(LoraError, match=r"no LoRA 'dgo' in .*did you mean 'dog'\?.*6 files"):
            find_lora(folder, "dgo")

    def test_two_of_one_name(self, folder):
        ways = r"2 LoRAs 'ink' .*pets/ink.safetensors, styles/ink.safetensors; write 'pets/ink'"
        with pytest.raises(LoraError, match=ways):
            find_lora(folder, "ink")
        (folder / "ink.safetensors").touch()
        assert find_lora(folder, "ink") == folder / "ink.safetensors", "the way from the top"

    def test_what_belongs_to_one_lora_has_one_name(self, folder):
        for name in (
            "both/unet/adapter_model.safetensors", "both/text_encoder/adapter_model.safetensors",
            "own/pytorch_lora_weights.safetensors", "own/learned_embeds.safetensors",
            "own/other.safetensors", "cat_emb.safetensors", "mad_emb.safetensors",
        ):  # fmt: skip
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        known = list_loras(folder)
        assert known["both"] == [folder / "both"]
        assert known["own"] == [folder / "own"]
        assert known["own/other"] == [folder / "own/other.safetensors"]
        assert known["mad_emb"] == [folder / "mad_emb.safetensors"], "beside nothing"
        hidden = {"unet", "text_encoder", "pytorch_lora_weights", "learned_embeds", "cat_emb"}
        assert not hidden.intersection(known)

    def test_no_folder(self, folder):
        for path in (folder / "none", folder / "cat.safetensors"):
            with pytest.raises(LoraError, match=r"does not exist.*LORAWEAVE_LORA_DIR"):
                list_loras(path)

    def test_scene_takes_files_for_names_without_one(self, folder):
        scene = Scene(
            prompt="a [cat](cat), a [dog](dog), a [bird](bird) <lora:styles/ink:0.5>",
            loras={"cat": LoraRef(path=Path("mine.safetensors")), "dog": LoraRef(weight=0.5)},
        )
        found = with_folder_loras(scene, folder, ["bird"]).loras
        assert found == {
            "cat": LoraRef(path=Path("mine.safetensors")),
            "dog": LoraRef(path=folder / "pets/dog.safetensors", weight=0.5),
            "styles/ink": LoraRef(path=folder / "styles/ink.safetensors"),
        }


class TestTriggers:
    @pytest.mark.parametrize(
        ("metadata", "found"),
        [
            ({}, []),
            ({"loraweave.trigger": "sks", "modelspec.trigger_phrase": "zwx cat"}, ["sks"]),
            ({"loraweave.trigger": "", "modelspec.trigger_phrase": "cat"}, []),
            ({"modelspec.trigger_phrase": " sks  Cat "}, ["sks"]),
            ({"modelspec.trigger_phrase": "sks"}, ["sks"]),
            ({"modelspec.trigger_phrase": "bobcat"}, ["bobcat"]),
            ({"modelspec.trigger_phrase": "cat"}, []),
            ({"modelspec.trigger_phrase": "sks \ud800cat"}, ["sks"]),
            ({"ss_tag_frequency": '{"10_sks cat": {"sks cat": 9}}'}, ["sks"]),
            ({"ss_tag_frequency": '{"10_images": {"sks cat": 9}}'}, []),
            ({"ss_tag_frequency": '{"sks cat": {"sks cat": 9}}'}, []),
            (
                {"ss_tag_frequency": '{"1_sks cat": {"sks cat": 9}, "2_zwx cat": {"zwx cat": 1}}'},
                ["sks", "zwx"],
            ),
            ({"ss_tag_frequency": "{broken"}, []),
            ({"ss_tag_frequency": "[1]"}, []),
            ({"ss_tag_frequency": '{"1_a": 3}'}, []),
        ],
    )
    def test_from_metadata(self, metadata, found):
        assert own_triggers(metadata, "cat") == found

    def test_filled_where_the_prompt_leaves_it_open(self):
        named = {"modelspec.trigger_phrase": "s[k]s"}
        prompt = "a [cat](a), a [zwx cat](b), a [|cat](c), a [cat](d), ([cat](e:0.5):1.2) <lora:f>"
        scene, notes = fill_triggers(Scene(prompt=prompt), dict.fromkeys("abcef", named))
        assert scene.prompt == (
            r"a [s\[k\]s|cat](a), a [zwx cat](b), a [|cat](c), a [cat](d), "
            r"([s\[k\]s|cat](e:0.5):1.2) <lora:f>"
        )
        assert [c.trigger for c in scene.concepts] == ["s[k]s", "zwx", "", "", "s[k]s"]
        assert len(notes) == 2
        assert "'a' got the trigger 's[k]s'" in notes[0]
        assert "[|cat](e)" in notes[1]
        again, none = fill_triggers(scene, dict.fromkeys("abcef", named))
        assert (again, none) == (scene, [])

    def test_filled_in_the_prompts_of_regions_too(self):
        own = {
            "a": "a [cat](a) with a [y hat](hat)", "b": "a [|dog](b)",
            "background": "the meadow",
        }  # fmt: skip
        scene = Scene(
            prompt="a [cat](a) and a [dog](b), a [hat](hat)", prompts=own,
            loras={"hat": LoraRef(on="a")},
        )  # fmt: skip
        named = {"modelspec.trigger_phrase": "sks"}
        found = fill_triggers(scene, dict.fromkeys(("a", "b", "hat"), named))[0]
        assert found.prompt == "a [sks|cat](a) and a [sks|dog](b), a [sks|hat](hat)"
        assert found.prompts == {**own, "a": "a [sks|cat](a) with a [y hat](hat)"}

    def test_several_are_not_guessed_from(self):
        tags = json.dumps({"1_sks": {"sks": 1}, "1_zwx": {"zwx": 1}})
        scene, notes = fill_triggers(Scene(prompt="[cat](a)"), {"a": {"ss_tag_frequency": tags}})
        assert scene.prompt == "[cat](a)"
        assert "several triggers in its file, none was used: sks, zwx" in notes[0]


def test_compose_draws_with_the_files_trigger_and_says_so(pipe, tmp_path):
    state = random_state(pipe.unet, 4, torch.Generator().manual_seed(1))
    path = tmp_path / "pet.safetensors"
    save_lora(path, state, {}, rank=4, alpha=4.0, metadata={"modelspec.trigger_phrase": "sks cat"})
    assert load_adapter("pet", path, unet=pipe.unet, text_encoder=pipe.text_encoder).metadata

    def drawn(prompt):
        return compose(
            pipe, prompt, lora_dir=tmp_path, method="merge", num_inference_steps=1,
            output_type="np", progress=False,
        )  # fmt: skip

    found, written, none = (drawn(f"a {p}(pet)") for p in ("[cat]", "[sks cat]", "[|cat]"))
    assert (found.images == written.images).all()
    assert (found.images != none.images).any()
    assert found.info["scene"]["prompt"] == "a [sks|cat](pet)"
    assert "'pet' got the trigger 'sks'" in found.info["notes"][0]
    assert written.info["notes"] == none.info["notes"] == []


def test_a_text_encoder_weight_for_nothing_is_said(pipe, tmp_path):
    random_lora(pipe, tmp_path / "a.safetensors")
    random_lora(pipe, tmp_path / "b.safetensors", text_encoder=True)
    out = compose(
        pipe, "a [x cat](a:1:0.5) <lora:b:1:0.5>", lora_dir=tmp_path, method="merge",
        num_inference_steps=1, output_type="latent", progress=False,
    )  # fmt: skip
    assert len(out.info["notes"]) == 1
    assert "'a' has no part for the text encoder" in out.info["notes"][0]


def test_compose_with_a_name_that_is_not_in_the_folder(pipe, tmp_path):
    random_lora(pipe, tmp_path / "pet.safetensors")
    with pytest.raises(LoraError, match=r"no LoRA 'pte'.*did you mean 'pet'"):
        compose(pipe, "a [x cat](pte)", lora_dir=tmp_path)
