"""Scenes: what they hold, what they refuse, and files."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loraweave.errors import LoraError, PromptSyntaxError, RegionError, SceneError
from loraweave.prompt import Span, parse_prompt
from loraweave.scene import (
    MAX_FILE_BYTES,
    Concept,
    LoraRef,
    Region,
    Scene,
    Style,
    scene_from_dict,
    scene_schema,
)

PROMPT = "a [sks cat](blackcat:0.5) and a [zwx dog](golddog) <lora:ink:0.8>"
FULL = {
    "prompt": PROMPT,
    "negative_prompt": "blurry",
    "width": 512,
    "height": 768,
    "seed": 7,
    "num_inference_steps": 30,
    "guidance_scale": 6,
    "loras": {
        "blackcat": {"path": "cat.safetensors", "weight": 0.5},
        "golddog": "dogs/dog.safetensors",
        "ink": {"weight": 0.5},
    },
    "regions": {"blackcat": {"box": [0, 0.25, 0.5, 1]}, "golddog": {"image": "dog.png"}},
}


def concepts(count: int) -> str:
    return " and ".join(f"a [t{i} cat](c{i})" for i in range(count))


def test_defaults():
    scene = Scene(prompt="a meadow")
    assert (scene.width, scene.height, scene.seed) == (None, None, 0)
    assert (scene.num_inference_steps, scene.guidance_scale) == (50, 7.5)
    assert scene.negative_prompt == scene.negative_text == ""
    assert scene.loras == scene.regions == {}
    assert scene.concepts == scene.styles == ()
    assert scene.parsed.text == "a meadow"


def test_full_scene():
    scene = scene_from_dict(FULL)
    # Own weight of the LoRA times the weight in the prompt.
    assert scene.concepts == (
        Concept("blackcat", "sks", "cat", 0.25, 0.25),
        Concept("golddog", "zwx", "dog", 1.0, 1.0),
    )
    assert scene.styles == (Style("ink", 0.4, 0.4),)
    assert scene.loras["golddog"] == LoraRef(path=Path("dogs/dog.safetensors"), weight=1.0)
    assert scene.regions["blackcat"].box == (0, 0.25, 0.5, 1)
    assert scene.regions["golddog"].image == Path("dog.png")


def test_weight_without_lora_entry_is_that_of_the_prompt():
    assert Scene(prompt=PROMPT).concepts[0].weight == 0.5
    assert Scene(prompt=PROMPT).styles[0].weight == 0.8


def test_scene_is_frozen():
    scene = Scene(prompt="a meadow")
    with pytest.raises(ValidationError, match="frozen"):
        scene.seed = 3  # pyright: ignore


def test_round_trips():
    scene = scene_from_dict(FULL)
    assert scene_from_dict(json.loads(scene.to_json())) == scene
    assert scene_from_dict(scene.model_dump(mode="json")) == scene
    assert scene_from_dict(yaml.safe_load(yaml.safe_dump(scene.model_dump(mode="json")))) == scene
    assert scene_from_dict({**FULL, "seed": 8}) != scene


@given(
    st.integers(0, 2**63 - 1),
    st.floats(0, 100),
    st.floats(-4, 4),
    st.tuples(*[st.floats(0, 1)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3]),
    st.text("abcäİ日 \n'\"{}#", min_size=1, max_size=20).filter(str.strip),
)
def test_any_scene_survives_json(seed, guidance, weight, box, words):
    scene = Scene(
        prompt=f"{words} [cat](x)",
        negative_prompt=words,
        seed=seed,
        guidance_scale=guidance,
        loras={"x": LoraRef(path=Path("a b.safetensors"), weight=weight)},
        regions={"x": Region(box=box)},
    )
    assert scene_from_dict(json.loads(scene.to_json())) == scene


def test_replace_checks_again():
    scene = scene_from_dict(FULL)
    assert scene.replace(seed=9) == scene_from_dict({**FULL, "seed": 9})
    assert scene.replace(prompt=PROMPT + " at night").parsed.text.endswith("at night")
    with pytest.raises(SceneError, match="seed"):
        scene.replace(seed=-1)
    with pytest.raises(SceneError, match="region for 'blackcat'"):
        scene.replace(prompt="a meadow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"promt": "x"}, r"unknown key 'promt' \(did you mean 'prompt'\?\)"),
        ({"steps": 3}, "unknown key 'steps'; known: prompt, negative_prompt"),
        ({"prompt": 3}, "prompt: .*string"),
        ({"prompt": None}, "prompt: .*string"),
        ({"prompt": " "}, "empty"),
        ({"width": 0}, "width: .*greater than 0"),
        ({"width": 500}, "width: .*multiple of 8"),
        ({"height": 512.0}, "height: .*integer"),
        ({"height": 80000}, "height: .*8192"),
        ({"seed": True}, "seed: .*integer"),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"num_inference_steps": 0}, "num_inference_steps: "),
        ({"guidance_scale": float("nan")}, "guidance_scale: .*finite"),
        ({"guidance_scale": "7"}, "guidance_scale: .*number"),
        ({"guidance_scale": -1}, "guidance_scale: "),
        ({"loras": ["a"]}, "loras: .*dict"),
        ({"loras": {"ink": 3}}, "loras.ink: "),
        ({"loras": {"ink": ""}}, "loras.ink: the path is empty"),
        ({"loras": {"ink": {"path": ""}}}, "loras.ink: the path is empty"),
        ({"loras": {"ink": {"weight": 5}}}, "loras.ink: weight: .*less than or equal to 4"),
        ({"loras": {"ink": {"weight": float("inf")}}}, "loras.ink: weight: "),
        ({"loras": {"ink": {"weight": "1"}}}, "loras.ink: weight: .*number"),
        ({"loras": {"ink": {"weight": {"unet": 5}}}}, "weight: unet: .*less than or equal to 4"),
        ({"loras": {"ink": {"weight": {"te": 1}}}}, "weight: unknown key 'te'; known: unet, text"),
        ({"loras": {"ink": {"weight": {1: 1}}}}, "weight: .*strings"),
        ({"negative_prompts": {"blackcat": 3}}, "negative_prompts.blackcat: .*string"),
        (
            {"loras": {"ink": {"scale": 1}}},
            "loras.ink: unknown key 'scale'.*; known: path",
        ),
        ({"regions": {"blackcat": {}}}, "regions.blackcat: .*neither"),
        ({"regions": {"blackcat": {"box": [0, 0, 1]}}}, "regions.blackcat: box.3 is missing"),
        ({"regions": {"blackcta": {"box": [0, 0, 1, 1]}}}, "did you mean 'blackcat'"),
        ({"regions": {"ink": {"box": [0, 0, 1, 1]}}}, "'ink', which is no concept"),
        ({"width": 0, "height": 0, "seed": -1, "x": 1, "y": 1}, "; and 2 more$"),
    ],
)
def test_refused(change, message):
    data = {**FULL, **change}
    with pytest.raises(SceneError, match=message) as by_dict:
        scene_from_dict(data)
    with pytest.raises(SceneError) as direct:
        Scene(**data)
    assert str(direct.value) == str(by_dict.value)
    assert "pydantic" not in str(direct.value)


def test_missing_prompt():
    with pytest.raises(SceneError, match=r"^prompt is missing$"):
        scene_from_dict({})
    with pytest.raises(SceneError, match="dictionary"):
        scene_from_dict(["a meadow"])  # pyright: ignore


def test_markup_error_passes_through_with_its_place():
    with pytest.raises(PromptSyntaxError) as error:
        Scene(prompt="a (red cat")
    assert error.value.position == 2
    with pytest.raises(PromptSyntaxError, match=r"^in the negative prompt: ") as error:
        Scene(prompt="a cat", negative_prompt="bad (hands")
    assert error.value.position == 4
    assert error.value.prompt == "bad (hands"


def test_negative_prompt_is_plain_words():
    scene = Scene(prompt="a cat", negative_prompt=r"blurry \(photo\)")
    assert scene.negative_text == "blurry (photo)"
    for negative in ("a [cat](x)", "blurry <lora:x>"):
        with pytest.raises(SceneError, match="negative prompt names the LoRA 'x'"):
            Scene(prompt="a cat", negative_prompt=negative)


def test_negative_prompts_of_the_passes():
    scene = Scene(
        prompt="a [cat](x) and a [dog](y)",
        negative_prompt="(blurry:1.5) ",
        negative_prompts={"y": "white fur"},
    )
    assert scene.negative().text == scene.negative("x").text == "blurry"
    assert scene.negative("y").text == scene.negative("x", "y").text == "blurry, white fur"
    assert scene.negative("y").emphasis == ((Span(0, 6), 1.5),)
    assert scene.replace(negative_prompt="").negative("y").text == "white fur"
    with pytest.raises(SceneError, match=r"negative prompt for 'z', which is no concept"):
        scene.replace(negative_prompts={"z": "white"})
    with pytest.raises(PromptSyntaxError, match=r"^in the negative prompt of 'y': "):
        scene.replace(negative_prompts={"y": "white)"})
    with pytest.raises(SceneError, match=r"negative prompt of 'y' names the LoRA 'z'"):
        scene.replace(negative_prompts={"y": "a [cat](z)"})


def test_weights_by_component():
    scene = Scene(
        prompt="a [cat](x:0.5) and a [dog](y:0.5:0.2) <lora:ink:te=0>",
        loras={"x": {"weight": {"unet": 0.5, "text_encoder": 0}}, "y": {"weight": 2}},  # pyright: ignore
    )
    weights = [(c.name, c.weight, c.text_encoder_weight) for c in scene.concepts]
    assert weights == [("x", 0.25, 0.0), ("y", 1.0, 0.4)]
    assert scene.styles == (Style("ink", 1.0, 0.0),)
    assert scene_from_dict(json.loads(scene.to_json())) == scene


def test_schema_describes_what_a_scene_takes():
    schema = scene_schema()
    assert schema["properties"].keys() == Scene.model_fields.keys()
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    lora = schema["$defs"]["LoraRef"]["anyOf"]
    assert [one["type"] for one in lora] == ["string", "object"]
    assert lora[1]["properties"].keys() == LoraRef.model_fields.keys()
    assert schema["$schema"].startswith("https://json-schema.org/")


def test_eight_concepts_and_no_more():
    assert len(Scene(prompt=concepts(8)).concepts) == 8
    with pytest.raises(SceneError, match=r"9 concepts.*at most 8"):
        Scene(prompt=concepts(9))


@pytest.mark.parametrize(
    "box",
    [
        (-0.1, 0, 1, 1),
        (0, 0, 1, 1.01),
        (0.5, 0, 0.5, 1),
        (0, 0.6, 1, 0.5),
        (0, 0, 512, 256.5),
        (0, 0, float("nan"), 1),
        ("0", 0, 1, 1),
        (0, 0, 1),
    ],
)
def test_box_outside_the_picture(box):
    with pytest.raises(RegionError):
        Region(box=box)
    with pytest.raises(RegionError, match=r"^regions\.x: "):
        Scene(prompt="[cat](x)", regions={"x": {"box": box}})  # pyright: ignore


def test_a_box_beyond_1_is_in_pixels():
    box = Region(box=(0, 0, 512, 256))
    assert box.in_pixels
    assert box.fractions(1024, 512) == (0, 0, 0.5, 0.5)
    assert not Region(box=(0, 0, 1, 1)).in_pixels
    with pytest.raises(RegionError, match="outside the picture of 511x512 pixels"):
        box.fractions(511, 512)


def test_region_is_a_box_or_an_image():
    assert Region(box=(0, 0, 1, 1)).image is None
    assert Region(image=Path("a.png")).box is None
    with pytest.raises(RegionError, match="neither"):
        Region()
    with pytest.raises(RegionError, match="both"):
        Region(box=(0, 0, 1, 1), image=Path("a.png"))


def test_check_loras_accepts_files_and_loaded_adapters():
    scene = scene_from_dict(FULL)
    assert scene.check_loras(["ink", "something else"]) is None
    assert Scene(prompt=PROMPT).check_loras(["blackcat", "golddog", "ink"]) is None
    assert Scene(prompt="a meadow").check_loras() is None


def test_check_loras_names_what_is_not_loaded():
    with pytest.raises(LoraError) as error:
        Scene(prompt=PROMPT).check_loras(["black_cat", "golddog", "ink"])
    message = str(error.value)
    assert "'blackcat'" in message
    assert "did you mean 'black_cat'?" in message
    assert "black_cat, golddog, ink" in message
    assert "loras: {blackcat: path/to/blackcat.safetensors}" in message
    # A weight without a path loads nothing.
    with pytest.raises(LoraError, match="'ink', which is not loaded"):
        scene_from_dict(FULL).check_loras()
    with pytest.raises(LoraError, match="loaded: none"):
        Scene(prompt=PROMPT).check_loras()


def test_check_loras_names_what_is_never_used():
    scene = Scene(prompt="a [cat](blackcat)", loras={"blackcat": "a", "blackcta": "b"})  # pyright: ignore
    with pytest.raises(LoraError, match=r"'blackcta' is given.*did you mean 'blackcat'"):
        scene.check_loras()


@pytest.mark.parametrize(("name", "dump"), [("s.yaml", yaml.safe_dump), ("s.JSON", json.dumps)])
def test_file(tmp_path, name, dump):
    away = str(tmp_path / "away" / "dog.safetensors")
    data = {**FULL, "loras": {**FULL["loras"], "golddog": away}}
    (tmp_path / name).write_text(dump(data), encoding="utf-8")
    scene = Scene.from_file(tmp_path / name)
    assert scene.loras["blackcat"] == LoraRef(path=tmp_path / "cat.safetensors", weight=0.5)
    assert scene.loras["golddog"].path == Path(away)
    assert scene.loras["ink"].path is None
    assert scene.regions["golddog"].image == tmp_path / "dog.png"
    assert scene.regions["blackcat"].box == (0, 0.25, 0.5, 1)
    rest = {"loras", "regions"}
    assert scene.model_dump(exclude=rest) == scene_from_dict(FULL).model_dump(exclude=rest)


def test_yaml_as_people_write_it(tmp_path):
    """YAML 1.1 reads the key `on` as true, and 5e-1 as a word."""
    (tmp_path / "s.yaml").write_text("""
    prompt: a [x cat](cat) with a [y hat](hat) and a [z dog](1)
    loras: {hat: &hat {weight: 5e-1, path: hat.safetensors, on: cat}, 1: {<<: *hat, on: everywhere}}
    """)
    loras = Scene.from_file(tmp_path / "s.yaml").loras
    assert (loras["hat"].on, loras["hat"].weight) == ("cat", 0.5)
    assert (loras["1"].on, loras["1"].weight) == ("everywhere", 0.5)


@pytest.mark.parametrize("name", ["background", "everywhere"])
def test_names_of_places_are_no_names_of_concepts(name):
    with pytest.raises(SceneError, match=f"cannot be called '{name}'"):
        Scene(prompt=f"a [x cat](cat) in a [y meadow]({name})")


def test_paths_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "s.yaml").write_text("prompt: a [x cat](cat)\nloras: {cat: ~/cat.safetensors}")
    scene = Scene.from_file(tmp_path / "s.yaml")
    assert scene.loras["cat"].path == tmp_path / "home" / "cat.safetensors"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.txt", "prompt: a", "name it .yaml, .yml or .json"),
        ("s.json", "{", "not valid JSON"),
        ("s.json", "[" * 100_000, "not valid JSON"),
        ("s.yaml", "prompt: [", "not valid YAML"),
        ("s.yaml", "!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("s.yaml", "prompt: !!bool maybe", "not valid YAML"),
        ("s.yaml", "", "dictionary"),
        ("s.yaml", "prompt: a\nstep: 3", "unknown key 'step'"),
        ("s.yaml", "prompt: &p [*p]", "prompt: .*string"),
        ("s.yaml", "prompt: 'a [b|c]'", "A1111"),
        ("s.yaml", "prompt: a # " + "x" * MAX_FILE_BYTES, "larger than 1000000 bytes"),
    ],
)
def test_bad_file(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SceneError, match=message) as error:
        Scene.from_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_unreadable_file(tmp_path):
    with pytest.raises(SceneError, match="cannot read"):
        Scene.from_file(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"prompt: caf\xe9")
    with pytest.raises(SceneError, match="not valid YAML"):
        Scene.from_file(tmp_path / "latin.yaml")


DOCS = Path(__file__).parents[1] / "docs"


def test_scene_files_of_the_documentation(tmp_path):
    scene = Scene.from_file(DOCS / "scene.yaml")
    assert scene.loras["golddog"].text_encoder_weight == 0.8
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "scenes.md").read_text(), re.DOTALL)
    (tmp_path / "s.yaml").write_text(block)
    assert Scene.from_file(tmp_path / "s.yaml").styles == (Style("ink", 0.4, 0.15),)


def test_documented_markup_is_read_as_documented():
    prompts, _, _ = (DOCS / "scenes.md").read_text().partition("## Scene files")
    table = re.findall(r"^\| `(.*?)`", prompts, re.MULTILINE)
    written = [line.replace(r"\|", "|") for line in table if not line.startswith("\\")]
    assert len(written) == 9
    for markup in written:
        prefix = "a [x cat]" if markup.startswith("(blackcat") else "a cat and "
        assert parse_prompt(prefix + markup).text
