"""The papers' scores: features against transformers' own calls, figures by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import loraweave
from loraweave import ModelNotFound, Scene, SceneError
from loraweave.cli import app
from loraweave.detect.registry import SEGMENTERS, Entry
from loraweave.evaluate.encoders import CLIP_MEAN, CLIP_STD, Clip, Dino, squared
from loraweave.evaluate.references import draw_references, own_scene, read_references
from loraweave.evaluate.similarity import (
    cut_out,
    instance_similarity,
    instances_of,
    to_references,
    to_text,
)

PROMPT = "a [sks cat](cat) and a [zwx dog](dog:0.7) in the meadow"


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(height // 8, width // 8, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )


# ---------------------------------------------------------------- features


def test_the_middle_square():
    wide = Image.new("RGB", (80, 40))
    wide.paste((255, 0, 0), (20, 0, 60, 40))
    cut = np.asarray(squared(wide, 40, 40))
    assert cut.shape == (40, 40, 3)
    assert (cut == (255, 0, 0)).all()
    tall = squared(wide.rotate(90, expand=True), 32, 28)
    assert tall.size == (28, 28)
    assert (np.asarray(tall)[2:-2, 2:-2] == (255, 0, 0)).all()


def test_clip_is_transformers_own(clip_folder):
    clip = Clip(clip_folder)
    images = [picture(0), picture(1, 32, 64)]
    pixels = torch.stack([
        torch.from_numpy(np.asarray(squared(image, 32, 32)).copy()).permute(2, 0, 1) / 255
        for image in images
    ])  # fmt: skip
    pixels = (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[
        :, None, None
    ]
    text = ["a cat and a dog", "the red house"]
    tokens = clip.tokenizer(text, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        out = clip.model(**tokens, pixel_values=pixels)
    torch.testing.assert_close(clip.images(images), out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.texts(text), out.text_embeds, atol=1e-5, rtol=0)
    many = [picture(n) for n in range(35)]  # more than a batch
    torch.testing.assert_close(clip.images(many)[33:], clip.images(many[33:]), atol=1e-5, rtol=0)


def test_dino_is_the_class_token(dino_folder):
    dino = Dino(dino_folder)
    (feature,) = dino.images([picture(0, 32, 32)])
    pixels = np.asarray(picture(0, 32, 32).crop((2, 2, 30, 30))) / 255  # 28 of 32
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    given = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        expected = dino.model(given).last_hidden_state[0, 0]
    torch.testing.assert_close(feature, expected / expected.norm(), atol=1e-5, rtol=0)


def test_what_is_no_model(clip_folder, dino_folder, tmp_path):
    with pytest.raises(ModelNotFound, match="no CLIP model in"):
        Clip(tmp_path)
    with pytest.raises(ModelNotFound, match="no DINO model in"):
        Dino(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match=r"no DINO model in .*that of a 'clip' model"):
        Dino(clip_folder)
    with pytest.raises(ModelNotFound, match=r"no CLIP model in .*that of a 'vit' model"):
        Clip(dino_folder)
    half = shutil.copytree(clip_folder, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match=r"1 weights are missing, such as visual_projection"):
        Clip(half)
    (half / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelNotFound, match="no CLIP model in"):
        Clip(half)
    bare = shutil.copytree(clip_folder, tmp_path / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelNotFound, match="no tokenizer beside the CLIP model"):
        Clip(bare)


def test_of_a_long_text_the_beginning_is_read(clip_folder):
    clip = Clip(clip_folder)
    assert clip.fits("a cat and a dog")
    assert not clip.fits("a cat " * 60)
    long, longer = clip.texts(["a cat " * 60, "a cat " * 60 + "and a dog"])
    torch.testing.assert_close(long, longer)


# ---------------------------------------------------------------- scores


def test_similarity_by_hand():
    turned = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1.0]])
    found = to_references(turned[1], {"a": turned[:2], "b": turned[2:], "c": turned})
    assert found.by_concept == pytest.approx({"a": 0.8, "b": 0.8, "c": 2.4 / 3})
    found = to_references(turned[0], {"a": turned[:2], "b": turned[2:]}).as_dict()
    assert [found[key] for key in ("min", "avg", "max")] == pytest.approx([0, 0.4, 0.8])
    assert to_text(turned[1], turned[0]) == pytest.approx({"cosine": 0.6, "score": 1.5})
    assert to_text(turned[0], -turned[1])["score"] == 0
    with pytest.raises(SceneError, match="no reference picture of 'b'"):
        to_references(turned[0], {"a": turned, "b": turned[:0]})


class Colours:
    """An encoder of the mean colour."""

    def images(self, images):
        means = [np.asarray(image).reshape(-1, 3).mean(0) for image in images]
        features = torch.tensor(np.array(means)).float()
        return features / features.norm(dim=1, keepdim=True)


class Thirds:
    """A segmenter that finds cats in the outer thirds and a dog in the middle one."""

    def find(self, image, noun):
        third = image.width // 3
        starts = {"cat": (0, 2 * third), "dog": (third,), "bird": ()}[noun]
        masks = np.zeros((len(starts), 30, image.width), dtype=bool)
        for mask, start in zip(masks, starts):
            mask[10:20, start : start + third] = True
        return list(masks)


def test_instances_are_compared_with_their_own():
    red, green, blue = np.eye(3) * 255
    image = Image.fromarray(np.repeat([[green, blue, red]], 30, 0).repeat(10, 1).astype(np.uint8))
    cut = cut_out(image, Thirds().find(image, "dog")[0])
    assert cut.size == (10, 10)
    assert (np.asarray(cut) == blue).all()
    references = dict(zip("rgb", torch.eye(3)[:, None]))
    features = {
        noun: Colours().images([one.image for one in instances_of(image, noun, Thirds())])
        for noun in ("cat", "dog")
    }
    nouns = {"r": "cat", "g": "cat", "b": "dog"}
    found = instance_similarity(features, nouns, references)
    assert found.by_concept == pytest.approx({"r": 1, "g": 1, "b": 1}), "shared out by likeness"
    nouns = {"r": "bird", "b": "dog", "g": "dog"}
    missing = instance_similarity({"dog": features["dog"]}, nouns, references)
    assert missing.by_concept == pytest.approx({"b": 1})
    assert missing.as_dict()["missing"] == ["r", "g"]
    with pytest.raises(SceneError, match="cannot look for 'ship'"):
        instances_of(image, "ship", Thirds())
    assert instances_of(image, "bird", Thirds()) == []
    assert cut_out(image, np.zeros((4, 4), dtype=bool)) is None
    thin = np.zeros((300, 300), dtype=bool)
    thin[1] = True  # between the pixels of the smaller picture
    assert cut_out(image, thin) is None


def test_what_is_around_a_mask_is_white():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5, 5:9] = mask[5:12, 5] = True
    cut = np.asarray(cut_out(Image.new("RGB", (20, 20)), mask))
    assert cut.shape == (7, 7, 3), "a square around all of it"
    assert (cut[0, 1:5] == 0).all()
    assert (cut[:, 1] == 0).all()
    assert cut.sum() == 255 * 3 * (49 - 10)


# ---------------------------------------------------------------- references


def test_a_concepts_part_of_a_scene():
    scene = Scene(
        prompt=r"a [\(c\: d\)|big cat](x:0.5:0.25) and a [dog](y) <lora:z:1>",
        loras={"x": "x.safetensors", "y": "none"}, num_inference_steps=7, negative_prompt="fog",
    )  # fmt: skip
    own = own_scene(scene, "x")
    assert own.parsed.text == "a (c: d) big cat"
    (words,) = own.parsed.concepts
    assert (words.noun, words.weight, words.text_encoder_weight) == ("big cat", 0.5, 0.25)
    assert (own.negative_prompt, own.num_inference_steps, own.width) == ("fog", 7, None)
    assert list(own.loras) == ["x"]
    with pytest.raises(SceneError, match="'z' is no concept"):
        own_scene(scene, "z")
    open_ended = Scene(prompt="a [cat](x) and a [|dog](y)", negative_prompts={"x": "fog"})
    assert own_scene(open_ended, "x").prompt == "a [cat](x:1)", "its file may have the trigger"
    assert own_scene(open_ended, "x").negative_prompts == {"x": "fog"}
    assert own_scene(open_ended, "y").prompt == "a [|dog](y:1)", "it has none on purpose"


def test_references_are_each_lora_alone_and_stay(pipe, lora_files, tmp_path):
    scene = Scene(prompt=PROMPT, loras=lora_files, num_inference_steps=2)
    assert draw_references(pipe, scene, tmp_path, count=2) == 4
    found = read_references(tmp_path, ["cat", "dog"])
    assert [len(own) for own in found.values()] == [2, 2]
    alone = loraweave.compose(
        pipe, "a [zwx dog](dog:0.7)", loras={"dog": lora_files["dog"]}, method="merge",
        generator=torch.Generator().manual_seed(1), num_inference_steps=2, progress=False,
    )  # fmt: skip
    assert found["dog"][1].tobytes() == alone.images[0].tobytes()
    (tmp_path / "cat" / "001.png").unlink()
    assert draw_references(pipe, scene, tmp_path, count=2) == 1
    assert draw_references(pipe, scene, tmp_path, count=2) == 0
    for other in ({"num_inference_steps": 3}, {"loras": {**lora_files, "dog": lora_files["cat"]}}):
        with pytest.raises(SceneError, match=r"are of another LoRA, base or prompt"):
            draw_references(pipe, scene.replace(**other), tmp_path, count=2)
    (tmp_path / "dog" / "references.json").unlink()
    with pytest.raises(SceneError, match="were not made here"):
        draw_references(pipe, scene, tmp_path, count=2)
    with pytest.raises(SceneError, match="no concepts"):
        draw_references(pipe, Scene(prompt="a cat"), tmp_path)


def test_references_that_are_not_there(tmp_path):
    with pytest.raises(SceneError, match=r"no reference picture of 'cat' in .*`loraweave"):
        read_references(tmp_path, ["cat"])
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "000.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(SceneError, match=r"cannot read the picture .*000\.png"):
        read_references(tmp_path, ["cat"])
    for name in ("..", "../cat", ".", "a/b"):
        with pytest.raises(SceneError, match="cannot have a folder"):
            read_references(tmp_path, [name])


# ---------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def made(tmp_path_factory, base_folder, lora_files):
    """Two pictures of a scene, and references of its concepts."""
    desk = tmp_path_factory.mktemp("desk")
    scene = [PROMPT, "--base", str(base_folder), "--steps", "2"]
    scene += [x for name in ("cat", "dog") for x in ("--lora", f"{name}={lora_files[name]}")]
    runner = CliRunner()
    drawn = ["generate", *scene, "--method", "merge", "--count", "2", "-o", str(desk / "p.png")]
    out = runner.invoke(app, drawn)
    assert out.exit_code == 0, out.stderr
    command = ["references", *scene, "--count", "2", "--json", "-o", str(desk / "own")]
    out = runner.invoke(app, command)
    assert out.exit_code == 0, out.stderr
    assert json.loads(out.stdout) == {
        "drawn": 4, "concepts": ["cat", "dog"], "folder": str(desk / "own"),
    }  # fmt: skip
    return desk


def evaluated(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_every_score_of_pictures(made, clip_folder, dino_folder):
    pictures = sorted(made.glob("*.png"))
    models = ["--clip", clip_folder, "--dino", dino_folder, "--references", made / "own"]
    out = evaluated(*pictures, *models, "--json")
    assert out.exit_code == 0, out.stderr
    found = json.loads(out.stdout)
    assert [entry["picture"] for entry in found["pictures"]] == [str(p) for p in pictures]
    assert [entry["method"] for entry in found["pictures"]] == ["merge", "merge"]
    clip = Clip(clip_folder)
    image = clip.images([Image.open(pictures[1])])[0]
    own = {c: clip.images([Image.open(p) for p in sorted((made / "own" / c).glob("*.png"))])
           for c in ("cat", "dog")}  # fmt: skip
    means = {c: (features @ image).mean().item() for c, features in own.items()}
    score = found["pictures"][1]["clip_i"]
    assert score["by_concept"] == pytest.approx(means, abs=1e-5)
    assert score["min"] == pytest.approx(min(means.values()), abs=1e-5)
    text = clip.texts(["a cat and a dog in the meadow"])[0]
    assert found["pictures"][1]["clip_t"]["cosine"] == pytest.approx(
        (text @ image).item(), abs=1e-5
    )
    both = [entry["dino"]["avg"] for entry in found["pictures"]]
    assert found["mean"]["dino"]["avg"] == pytest.approx(np.mean(both))
    assert set(found["mean"]) == {"clip_t", "clip_i", "dino"}
    table = evaluated(*pictures, *models)
    assert "mean of" in table.stdout


def test_outcomes_of_pictures(made, clip_folder, dino_folder, monkeypatch):
    class First:
        """One instance of everything, in the first pixels."""

        def find(self, image, noun):
            mask = np.zeros((8, 8), bool)
            mask[:4, :4] = True
            return [mask]

    monkeypatch.setitem(SEGMENTERS, "first", Entry(First))
    models = ["--clip", clip_folder, "--dino", dino_folder, "--references", made / "own"]
    out = evaluated(made / "p-1.png", *models, "--segmenter", "first", "--json")
    assert out.exit_code == 0, out.stderr
    found = json.loads(out.stdout)
    outcomes = found["pictures"][0]["outcomes"]
    assert set(outcomes) == {"cat", "dog"}
    assert not {"missing", "duplicated"} & set(outcomes.values()), "there is one of each"
    assert sum(found["mean"]["outcomes"].values()) == pytest.approx(1)
    assert "iou" not in found["mean"], "the scene has no boxes"


def test_what_cannot_be_measured(made, clip_folder, dino_folder, tmp_path):
    picture, own = made / "p-1.png", made / "own"
    plain = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(plain)
    cut_short = tmp_path / "cut.png"
    cut_short.write_bytes(picture.read_bytes()[:-200])
    for words, message in (
        ([picture], "give a CLIP model, or a DINO model with reference pictures"),
        ([picture, "--dino", dino_folder], "compared with reference pictures"),
        ([picture, "--clip", clip_folder, "--dino", dino_folder], "compared with reference"),
        ([picture, "--clip", clip_folder, "--segmenter-model", tmp_path], "without --segmenter"),
        ([cut_short, "--clip", clip_folder], "cannot read the picture"),
        ([plain, "--clip", clip_folder], "carries no LoRAWeave record"),
        ([tmp_path / "no.png", "--clip", clip_folder], "cannot read the picture"),
        ([picture, "--clip", tmp_path], "no CLIP model in"),
        ([picture, "--clip", clip_folder, "--references", tmp_path], "no reference picture of"),
        ([picture, "--clip", clip_folder, "--segmenter", "miniature"], "give their folder"),
        ([picture, "--dino", dino_folder, "--references", own, "--segmenter", "eyes"],
         "no segmenter 'eyes'"),
        ([picture, "--dino", dino_folder, "--references", own, "--segmenter", "clipseg"],
         "needs 1 model folders"),
    ):  # fmt: skip
        out = evaluated(*words)
        assert out.exit_code == 2, message
        assert message in " ".join(out.stderr.split()), out.stderr
