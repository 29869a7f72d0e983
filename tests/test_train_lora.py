"""Training: learns, resumes exactly, and leaves the pipeline as it was."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from loraweave.errors import TrainingError
from loraweave.lora import inspect_lora, load_adapter
from loraweave.train import TrainSettings, train_lora
from loraweave.train.data import find_examples, load_picture, to_tensor
from tiny import random_lora, tiny_pipeline

EVERYTHING = TrainSettings(
    rank=2,
    alpha=4.0,
    learning_rate=1e-3,
    steps=9,
    batch_size=2,
    seed=3,
    flip=True,
    text_encoder=True,
    text_learning_rate=5e-4,
    prior=0.5,
    class_images=4,
    class_steps=1,
    min_snr=5.0,
    checkpoint_every=3,
    preview_every=4,
    preview_steps=1,
)
QUICK = TrainSettings(rank=2, steps=2, checkpoint_every=1)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(4):
        pixels = np.zeros((40 + index, 50, 3), np.uint8)
        pixels[8:30, 10 : 30 + index] = (200, 40 * index, 30)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "1.txt").write_text("sks cat, at night\n")  # the others get "a sks cat"
    return folder


def train(pipe, folder, out, settings=QUICK, **options):
    options = {"trigger": "sks", "class_noun": "cat", "progress": False} | options
    return train_lora(pipe, folder, out=out, settings=settings, **options)


class Stopped(Exception):
    pass


def stop_after(step: int):
    def on_step(done: int, loss: float) -> None:
        if done == step:
            raise Stopped

    return on_step


def picture_of(pipe: StableDiffusionPipeline) -> dict[str, object]:
    """Everything about a pipeline that training could have changed, by identity."""
    found: dict[str, object] = {"scheduler": pipe.scheduler, "pipe": dict(vars(pipe))}
    for component in ("unet", "text_encoder", "vae"):
        model = getattr(pipe, component)
        found[f"{component} attributes"] = dict(vars(model))
        for name, module in model.named_modules():
            found[f"{component}.{name}"] = (id(module), module.training)
        for name, parameter in model.named_parameters():
            found[f"{component}.{name} value"] = (
                id(parameter), parameter.requires_grad, parameter.grad,
                parameter.sum().item(), parameter._version,
            )  # fmt: skip
    return found


def test_the_loss_falls(pipe, folder, tmp_path):
    settings = TrainSettings(rank=4, learning_rate=3e-3, steps=80, batch_size=2)
    report = train(pipe, folder, tmp_path / "cat.safetensors", settings)
    assert report.steps == len(report.losses) == 80
    assert report.seconds > 0
    assert np.mean(report.losses[-20:]) < 0.9 * np.mean(report.losses[:20])


def test_the_file_is_a_lora_for_everyone(folder, tmp_path):
    pipe = tiny_pipeline()
    path = train(pipe, folder, tmp_path / "cat.safetensors", EVERYTHING, date="2026-01-02").path
    adapter = load_adapter("cat", path, unet=pipe.unet, text_encoder=pipe.text_encoder)
    assert {update.scale for update in adapter.unet.values()} == {2.0}
    assert any(update.up.abs().max() > 0 for update in adapter.text_encoder.values())
    report = inspect_lora(path)
    assert report.components == {"text_encoder": 8, "unet": 32}
    assert report.trigger_words[0] == "sks cat"
    assert adapter.metadata["ss_steps"] == "9"
    assert adapter.metadata["modelspec.date"] == "2026-01-02"
    pipe.load_lora_weights(path, adapter_name="cat")
    assert pipe.get_active_adapters() == ["cat"]


@pytest.mark.parametrize("stop", [2, 3, 7])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(folder, tmp_path, stop):
    pipe = tiny_pipeline()
    whole = train(pipe, folder, tmp_path / "a" / "cat.safetensors", EVERYTHING)
    out = tmp_path / "b" / "cat.safetensors"
    with pytest.raises(Stopped):
        train(pipe, folder, out, EVERYTHING, on_step=stop_after(stop))
    assert not out.exists()
    assert out.with_name("cat.safetensors.state").exists() == (stop >= 3)
    seen: list[int] = []
    rest = train(pipe, folder, out, EVERYTHING, on_step=lambda step, loss: seen.append(step))
    assert seen == list(range(stop // 3 * 3 + 1, 10))
    assert rest.losses == whole.losses
    assert out.read_bytes() == whole.path.read_bytes()
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "cat-class", "cat-preview", "cat.safetensors",
    ]  # fmt: skip
    previews = [p.name for p in sorted((out.parent / "cat-preview").iterdir())]
    assert previews == ["step_000004.png", "step_000008.png"]
    assert len(list((out.parent / "cat-class").glob("*.png"))) == 4


def test_the_seed_and_nothing_else_decides(pipe, folder, tmp_path):
    torch.manual_seed(1)
    first = train(pipe, folder, tmp_path / "a" / "cat.safetensors")
    state = torch.get_rng_state()
    torch.manual_seed(2)
    second = train(pipe, folder, tmp_path / "b" / "cat.safetensors")
    assert first.path.read_bytes() == second.path.read_bytes()
    other = TrainSettings(rank=2, steps=2, seed=1)
    third = train(pipe, folder, tmp_path / "c" / "cat.safetensors", other)
    assert third.path.read_bytes() != first.path.read_bytes()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are not used up


@pytest.mark.parametrize("error", [None, Stopped, KeyboardInterrupt])
def test_the_pipeline_comes_back_as_it_was(folder, tmp_path, error):
    pipe = tiny_pipeline()
    pipe.load_lora_weights(random_lora(pipe, tmp_path / "a.safetensors"))
    pipe.unload_lora_weights()  # leaves attributes of its own behind
    pipe.unet.conv_in.weight.requires_grad_(False)
    pipe.text_encoder.train()
    before = picture_of(pipe)

    def on_step(step: int, loss: float) -> None:
        assert hasattr(pipe.unet, "peft_config")
        if error:
            raise error

    with pytest.raises(error) if error else nullcontext():
        train(pipe, folder, tmp_path / "cat.safetensors", EVERYTHING, on_step=on_step)
    assert picture_of(pipe) == before


def test_restored_when_the_layers_cannot_be_put_in(folder, tmp_path, monkeypatch):
    pipe = tiny_pipeline()
    before = picture_of(pipe)
    monkeypatch.setattr("loraweave.train.lora.TEXT_LAYERS", ["no_such_layer"])
    with pytest.raises(TrainingError, match="Cannot put LoRA layers"):
        train(pipe, folder, tmp_path / "cat.safetensors", EVERYTHING)
    assert picture_of(pipe) == before


def test_a_checkpoint_of_another_run_is_refused(pipe, folder, tmp_path):
    out = tmp_path / "cat.safetensors"
    state = tmp_path / "cat.safetensors.state"

    def interrupt():
        with pytest.raises(Stopped):
            train(pipe, folder, out, on_step=stop_after(1))

    interrupt()
    changed = TrainSettings(rank=2, steps=2, checkpoint_every=1, learning_rate=1e-3)
    with pytest.raises(TrainingError, match=r"what differs: learning_rate.*Delete .*\.state"):
        train(pipe, folder, out, changed)
    with pytest.raises(TrainingError, match="what differs: trigger"):
        train(pipe, folder, out, trigger="at night")  # a caption has it
    with pytest.raises(TrainingError, match="what differs: base model"):
        train(tiny_pipeline(seed=1), folder, out)
    assert train(pipe, folder, out, changed, resume=False).steps == 2
    assert not state.exists()

    interrupt()
    Image.new("RGB", (9, 9)).save(folder / "0.png")
    with pytest.raises(TrainingError, match="what differs: pictures"):
        train(pipe, folder, out)
    state.write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"cannot be read\. Delete"):
        train(pipe, folder, out)


def test_class_pictures_are_kept_completed_and_guarded(pipe, folder, tmp_path):
    def settings(**more) -> TrainSettings:
        return TrainSettings(rank=2, steps=1, prior=1.0, class_steps=1, **more)

    out, cache = tmp_path / "cat.safetensors", tmp_path / "cat-class"
    train(pipe, folder, out, settings(class_images=2))
    kept = {p: p.stat().st_mtime_ns for p in cache.iterdir() if p.suffix == ".png"}
    train(pipe, folder, out, settings(class_images=3))
    now = {p: p.stat().st_mtime_ns for p in cache.iterdir() if p.suffix == ".png"}
    assert len(now) == 3
    assert kept.items() <= now.items()
    with pytest.raises(TrainingError, match="other settings or another base"):
        train(pipe, folder, out, settings(class_images=2), class_noun="dog")
    own = tmp_path / "own"
    shutil.copytree(cache, own)
    report = train(pipe, folder, tmp_path / "b.safetensors", settings(class_folder=own))
    assert not (tmp_path / "b-class").exists()
    without = train(pipe, folder, tmp_path / "c.safetensors", TrainSettings(rank=2, steps=1))
    assert report.losses != without.losses


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_prediction_type_and_arithmetic(folder, tmp_path, prediction, dtype):
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction)
    settings = TrainSettings(rank=2, steps=2, min_snr=5.0, dtype=dtype)
    report = train(pipe, folder, tmp_path / "cat.safetensors", settings)
    assert all(np.isfinite(report.losses))
    with safe_open(report.path, "pt") as file:
        written = file.metadata()["modelspec.prediction_type"]
    assert written == {"v_prediction": "v"}.get(prediction, prediction)


def test_a_half_precision_pipeline_trains_in_float32(folder, tmp_path):
    pipe = tiny_pipeline().to(dtype=torch.bfloat16)
    report = train(pipe, folder, tmp_path / "cat.safetensors", EVERYTHING)
    adapter = load_adapter("cat", report.path, unet=pipe.unet, text_encoder=pipe.text_encoder)
    assert next(iter(adapter.unet.values())).down.dtype == torch.bfloat16
    assert pipe.unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.5}, "whole number"),
        ({"steps": True}, "steps is True"),
        ({"batch_size": -1}, "batch_size"),
        ({"learning_rate": 0}, "above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"alpha": -1}, "alpha"),
        ({"prior": -0.1}, "prior"),
        ({"min_snr": 0}, "min_snr"),
        ({"dtype": "int8"}, "one of float32"),
        ({"seed": "7"}, "seed is '7'"),
        ({"size": 0}, "size"),
    ],
)
def test_bad_settings(bad, reason):
    with pytest.raises(TrainingError, match=reason):
        TrainSettings(**bad)


def test_bad_input(pipe, folder, tmp_path):
    out = tmp_path / "cat.safetensors"
    for name in ("trigger", "class_noun"):
        with pytest.raises(TrainingError, match="go together"):
            train(pipe, folder, out, **{name: "  "})
    with pytest.raises(TrainingError, match=r"\.safetensors"):
        train(pipe, folder, tmp_path / "cat.bin")
    with pytest.raises(TrainingError, match="multiple of 4"):
        train(pipe, folder, out, TrainSettings(size=30))
    with pytest.raises(TrainingError, match="No folder"):
        train(pipe, tmp_path / "none", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.md").write_text("x")
    with pytest.raises(TrainingError, match="No pictures"):
        train(pipe, empty, out)
    (folder / "2.png").write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match=r"2\.png"):
        train(pipe, folder, out)
    loaded = tiny_pipeline()
    loaded.load_lora_weights(random_lora(loaded, tmp_path / "a.safetensors"))
    (folder / "2.png").unlink()
    with pytest.raises(TrainingError, match="already has LoRA layers"):
        train(loaded, folder, out)
    assert not out.exists()


def test_a_diverged_run_says_so(folder, tmp_path):
    pipe = tiny_pipeline()
    before = picture_of(pipe)
    settings = TrainSettings(rank=2, steps=20, learning_rate=1e30)
    with pytest.raises(TrainingError, match="diverged"):
        train(pipe, folder, tmp_path / "cat.safetensors", settings)
    assert picture_of(pipe) == before


def test_captions_without_the_trigger_are_pointed_out(pipe, folder, tmp_path):
    with pytest.warns(UserWarning, match="1 of 4 captions do not contain the trigger 'zwx'"):
        train(pipe, folder, tmp_path / "cat.safetensors", trigger="zwx")


# ---------------------------------------------------------------- pictures


def test_pictures_of_every_kind(tmp_path):
    size = (64, 48)
    left = Image.new("RGB", (80, 40), "black")
    left.paste("red", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    left.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("P", (50, 50), 3).save(tmp_path / "palette.gif")
    Image.new("L", (50, 50), 128).save(tmp_path / "grey.webp")
    Image.fromarray(np.full((50, 50), 32768, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (50, 50)).save(tmp_path / "print.tiff")
    (tmp_path / "grey.txt").write_text("\ufeff a grey\n  wall ", encoding="utf-8")
    (tmp_path / "clear.txt").write_text(" \n")
    (tmp_path / ".hidden.png").write_bytes(b"")

    examples = {e.path.name: e for e in find_examples(tmp_path)}
    names = ["clear.png", "deep.png", "grey.webp", "palette.gif", "print.tiff", "turned.jpg"]
    assert list(examples) == names
    assert examples["grey.webp"].caption == "a grey wall"
    assert examples["clear.png"].caption is None
    pictures = {name: load_picture(e.path, *size) for name, e in examples.items()}
    assert {picture.size for picture in pictures.values()} == {size}
    assert pictures["clear.png"].getpixel((5, 5)) == (255, 255, 255)
    assert abs(pictures["deep.png"].getpixel((5, 5))[0] - 128) <= 1
    upright = load_picture(tmp_path / "turned.jpg", 20, 40)
    assert upright.getpixel((10, 4))[0] > 200  # what was left is above
    assert upright.getpixel((10, 35))[0] < 50
    tensor = to_tensor(pictures["clear.png"])
    assert (tuple(tensor.shape), tensor.max().item()) == ((3, 48, 64), 1.0)

    (tmp_path / "grey.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingError, match=r"grey\.txt is not UTF-8"):
        find_examples(tmp_path)


def test_the_crop_is_from_the_centre(tmp_path):
    wide = Image.new("RGB", (90, 30), "black")
    wide.paste("white", (30, 0, 60, 30))
    wide.save(tmp_path / "a.png")
    assert np.asarray(load_picture(tmp_path / "a.png", 30, 30)).min() > 200


def test_a_style_needs_captions_and_no_trigger(pipe, folder, tmp_path):
    with pytest.raises(TrainingError, match="every picture needs a caption"):
        train(pipe, folder, tmp_path / "style.safetensors", trigger="", class_noun="")
    for picture in folder.iterdir():
        picture.with_suffix(".txt").write_text("a cat in the snow")
    out = tmp_path / "style.safetensors"
    train(pipe, folder, out, trigger="", class_noun="", format="diffusers")
    report = inspect_lora(out)
    assert report.kind == "diffusers"
    assert report.trigger_words == ["a cat in the snow"]  # a hint, as in other files
    with pytest.raises(TrainingError, match="prior preservation needs them"):
        train(
            pipe, folder, out, trigger="", class_noun="",
            settings=TrainSettings(steps=1, prior=1.0),
        )  # fmt: skip
