"""Training an ED-LoRA: vectors for each layer are learned beside the LoRA, and nothing else."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import loraweave
from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.cli import app
from loraweave.errors import TrainingError
from loraweave.lora import inspect_lora, load_adapter
from loraweave.lora.skeleton import Skeleton
from loraweave.train import TrainReport, TrainSettings, train_lora
from loraweave.train.edlora import NOISE, new_vectors, tokens_of, with_tokens
from loraweave.train.inputs import Inputs
from loraweave.train.loss import Batch, denoising_loss, training_scheduler
from test_train_lora import Stopped, picture_of, stop_after
from tiny import tiny_pipeline

EVERYTHING = TrainSettings(
    kind="ed-lora", rank=2, learning_rate=1e-3, steps=6, batch_size=2, seed=3, prior=0.5,
    class_images=2, class_steps=1, checkpoint_every=2, preview_every=3, preview_steps=1,
    embedding_learning_rate=1e-2,
)  # fmt: skip
QUICK = TrainSettings(kind="ed-lora", rank=2, steps=2)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, caption in enumerate(
        (None, "a Toy cat, at night", "the <toy1> <toy2> in the meadow")
    ):
        pixels = np.full((32, 32, 3), 80 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        if caption:
            (folder / f"{index}.txt").write_text(caption)
    return folder


def train(pipe, folder, out, settings=QUICK, **options) -> TrainReport:
    options = {"trigger": "toy", "class_noun": "cat", "progress": False} | options
    return train_lora(pipe, folder, out=out, settings=settings, **options)


def load(pipe, path):
    return load_adapter("x", path, unet=pipe.unet, text_encoder=pipe.text_encoder)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_the_file_has_both_parts_and_both_tokens(pipe, folder, tmp_path, format):
    settings = TrainSettings(kind="ed-lora", rank=2, steps=3, embedding_learning_rate=1e-2)
    path = train(pipe, folder, tmp_path / "toy.safetensors", settings, format=format).path
    adapter = load(pipe, path)
    assert {t: tuple(v.shape) for t, v in adapter.layered.items()} == {
        "<toy1>": (4, 32), "<toy2>": (4, 32),
    }  # fmt: skip
    assert (len(adapter.unet), len(adapter.text_encoder)) == (32, 8)
    assert any(u.up.abs().max() > 0 for u in adapter.text_encoder.values())
    # Every layer's vector has gone its own way from the same start.
    start = new_vectors(pipe, "toy", "cat", 2)
    for token, vectors in adapter.layered.items():
        moved = (vectors - start[token][:, 0]).abs()
        assert (moved.max(1).values > 5e-3).all()
        assert moved.max() < 3.5e-2
        assert len(vectors.unique(dim=0)) == 4
    report = inspect_lora(path, models=Skeleton(pipe.unet, pipe.text_encoder))
    assert (report.format, report.supported, report.refused) == ("ED-LoRA", True, None)
    assert report.triggers[:3] == ["<toy1>", "<toy2>", "<toy1> <toy2>"]
    assert adapter.metadata["loraweave.trigger"] == "<toy1> <toy2>"
    assert adapter.metadata["loraweave.class_noun"] == "cat"
    for prompt in (r"a [\<toy1\> \<toy2\>](toy)", "a [cat](toy)"):
        drawn = loraweave.compose(
            pipe, prompt, loras={"toy": path}, method="merge", num_inference_steps=1,
            output_type="latent", progress=False,
        )  # fmt: skip
        assert torch.isfinite(drawn.images).all()


def test_without_the_text_encoder(pipe, folder, tmp_path):
    settings = TrainSettings(kind="ed-lora", rank=2, steps=2, text_encoder=False)
    adapter = load(pipe, train(pipe, folder, tmp_path / "toy.safetensors", settings).path)
    assert adapter.unet
    assert not adapter.text_encoder
    assert len(adapter.layered) == 2


def test_how_the_vectors_start(pipe):
    start = new_vectors(pipe, "Toy", "cat", seed=5)
    assert list(start) == ["<toy1>", "<toy2>"]
    table = pipe.text_encoder.get_input_embeddings().weight
    word = table[pipe.tokenizer("cat", add_special_tokens=False).input_ids[0]]
    assert torch.equal(start["<toy2>"], word.expand(4, 1, 32))
    noise = start["<toy1>"]
    assert torch.equal(noise, noise[:1].expand(4, 1, 32))
    assert 0.5 * NOISE < noise.std() < 1.5 * NOISE
    assert torch.equal(new_vectors(pipe, "toy", "cat", seed=5)["<toy1>"], noise)
    assert not torch.equal(new_vectors(pipe, "toy", "cat", seed=6)["<toy1>"], noise)


def test_the_gradient_goes_to_each_layers_vector_by_its_own_text():
    """The loss by the narrowing hook, and its gradient, against differences of the loss."""
    pipe = tiny_pipeline().to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(2, 4, 16, 16, generator=generator).double() for _ in range(2))
    batch = Batch(z, noise, torch.tensor([300, 700]), ["a <toy1> cat", "a dog"])
    inputs = Inputs((32, 32), "", "", "", [], z, None, {}, {})
    vectors = torch.nn.Parameter(torch.randn(4, 1, 32, generator=generator).double())
    backbone, scheduler = StableDiffusion1(pipe), training_scheduler(pipe)

    def loss():
        return denoising_loss(pipe, scheduler, batch, inputs, QUICK, backbone).double()

    with backbone.tokens({"<toy1>": vectors}):
        (gradient,) = torch.autograd.grad(loss(), vectors)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
        for layer in range(4):
            step = torch.zeros_like(vectors)
            step[layer] = gradient[layer] / gradient[layer].norm() * 1e-2
            with torch.no_grad():
                vectors += step
                up = loss()
                vectors -= 2 * step
                difference = (up - loss()) / 2e-2
                vectors += step
            assert difference.item() == pytest.approx(gradient[layer].norm().item(), rel=0.05)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(folder, tmp_path, stop):
    pipe = tiny_pipeline()
    whole = train(pipe, folder, tmp_path / "a" / "toy.safetensors", EVERYTHING)
    out = tmp_path / "b" / "toy.safetensors"
    with pytest.raises(Stopped):
        train(pipe, folder, out, EVERYTHING, on_step=stop_after(stop))
    rest = train(pipe, folder, out, EVERYTHING)
    assert rest.losses == whole.losses
    assert out.read_bytes() == whole.path.read_bytes()
    previews = [p.name for p in sorted((out.parent / "toy-preview").iterdir())]
    assert previews == ["step_000003.png", "step_000006.png"]


@pytest.mark.parametrize("error", [None, Stopped, KeyboardInterrupt])
def test_the_pipeline_comes_back_as_it_was(folder, tmp_path, error):
    pipe = tiny_pipeline()
    pipe.text_encoder.train()
    before, size = picture_of(pipe), len(pipe.tokenizer)
    table = pipe.text_encoder.get_input_embeddings().weight.clone()

    def on_step(step: int, loss: float) -> None:
        if error:
            raise error

    with pytest.raises(error) if error else nullcontext():
        train(pipe, folder, tmp_path / "toy.safetensors", EVERYTHING, on_step=on_step)
    assert picture_of(pipe) == before
    assert len(pipe.tokenizer) == size
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, table)
    for model in (pipe.unet, pipe.text_encoder):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_it_learns_and_uses_what_it_learned(pipe, folder, tmp_path):
    """With the LoRA's rates near zero the vectors alone make the loss fall."""
    settings = TrainSettings(
        kind="ed-lora", rank=1, learning_rate=1e-9, text_learning_rate=1e-9, steps=60,
        embedding_learning_rate=3e-2, batch_size=2,
    )  # fmt: skip
    frozen = TrainSettings(**{**vars(settings), "embedding_learning_rate": 1e-9})
    learned = train(pipe, folder, tmp_path / "a.safetensors", settings).losses
    fixed = train(pipe, folder, tmp_path / "b.safetensors", frozen).losses
    assert learned[0] == pytest.approx(fixed[0])
    assert np.mean(learned[-20:]) < np.mean(fixed[-20:])


def test_captions_and_tokens():
    assert tokens_of("Black-cat") == ("<black-cat1>", "<black-cat2>")
    assert with_tokens("the TOY  cat and a toy", "toy", "cat") == "the <toy1> <toy2> and a toy"
    assert with_tokens("a toy catfish", "toy", "cat") == "a toy catfish"


def test_captions_without_the_tokens_are_pointed_out(pipe, folder, tmp_path):
    (folder / "1.txt").write_text("a cat")
    with pytest.warns(
        UserWarning, match="1 of 3 captions do not contain the trigger '<toy1> <toy2>'"
    ):
        train(pipe, folder, tmp_path / "toy.safetensors")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"trigger": "<c1> <c2>"}, r"'<c1> <c2>'; an ED-LoRA's is one plain word"),
        ({"trigger": "", "class_noun": ""}, "one plain word"),
        ({"class_noun": "rhinoceros"}, r"'rhinoceros' is \d+ tokens of the base"),
        ({"class_noun": "red house"}, "'red house' is 2 tokens of the base"),
    ],
)
def test_bad_input(pipe, folder, tmp_path, given, reason):
    before = picture_of(pipe)
    with pytest.raises(TrainingError, match=reason):
        train(pipe, folder, tmp_path / "toy.safetensors", **given)
    assert picture_of(pipe) == before


def test_tokens_that_are_there_already(folder, tmp_path):
    pipe = tiny_pipeline()
    pipe.tokenizer.add_tokens(["<toy2>"])
    with pytest.raises(TrainingError, match="has the token <toy2> already"):
        train(pipe, folder, tmp_path / "toy.safetensors")


def test_settings():
    with pytest.raises(TrainingError, match="kind is 'lora2'; it must be one of lora, ed-lora"):
        TrainSettings(kind="lora2")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="embedding_learning_rate is 0"):
        TrainSettings(embedding_learning_rate=0)
    assert TrainSettings().text_encoder is False
    assert TrainSettings(kind="ed-lora").text_encoder is True


def test_a_checkpoint_of_the_other_kind_is_refused(pipe, folder, tmp_path):
    out = tmp_path / "toy.safetensors"
    settings = TrainSettings(kind="ed-lora", rank=2, steps=2, checkpoint_every=1)
    with pytest.raises(Stopped):
        train(pipe, folder, out, settings, on_step=stop_after(1))
    other = TrainSettings(rank=2, steps=2, checkpoint_every=1, text_encoder=True)
    with pytest.raises(TrainingError, match="what differs: kind"):
        train(pipe, folder, out, other)


def test_by_the_command(folder, tmp_path, base_folder):
    out = tmp_path / "toy.safetensors"
    given = ["train", str(folder), "-o", str(out), "--base", str(base_folder), "--trigger", "toy",
             "--class", "cat", "--kind", "ed-lora", "--steps", "1", "--rank", "1",
             "--embedding-learning-rate", "2e-3", "--json"]  # fmt: skip
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["steps"] == 1
    adapter = load(tiny_pipeline(), out)
    assert list(adapter.layered) == ["<toy1>", "<toy2>"]
    assert adapter.text_encoder
