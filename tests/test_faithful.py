"""Faithful CLoRA on the miniature equals a plain re-implementation, in every latent."""

import pytest
import torch

import loraweave
from loraweave.bench.naive import NaivePass, naive_clora
from loraweave.miniature.shipped import lora_file

pytestmark = pytest.mark.filterwarnings("ignore:Already found a .peft_config.:UserWarning")

PROMPT = "a [sks cat](blackcat:0.9) and a [zwx dog](golddog) in the meadow"
TEXTS = (
    "a cat and a dog in the meadow",
    "a sks cat and a dog in the meadow",
    "a cat and a zwx dog in the meadow",
)
STEPS = 10


def positions(pipe, text, words):
    """Of words that the miniature's tokenizer keeps whole."""
    ids = pipe.tokenizer(text).input_ids
    return [ids.index(pipe.tokenizer(w, add_special_tokens=False).input_ids[0]) for w in words]


@pytest.mark.parametrize("updating", [True, False])
def test_every_latent_of_ten_steps(updating):
    settings = {
        "variant": "faithful", "max_update_step": 5 if updating else 0, "refinements": 2,
        "refinement_steps": [0, 3], "step_rule": "literal", "step_size": 3.0,
    }  # fmt: skip
    noise = torch.randn(  # of 128 pixels: larger ones would show no more
        (1, 16, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    found = []

    def keep(pipe, i, t, values):
        found.append(values["latents"].clone())
        return values

    loraweave.compose(
        loraweave.load("miniature", dtype=torch.float64, device="cpu"), PROMPT,
        loras={name: lora_file(name) for name in ("blackcat", "golddog")},
        method="clora", settings=settings,
        num_inference_steps=STEPS, width=128, height=128, latents=noise, output_type="latent",
        progress=False, callback_on_step_end=keep,
    )  # fmt: skip

    stock = loraweave.load("miniature", dtype=torch.float64, device="cpu")
    for name in ("blackcat", "golddog"):
        path = lora_file(name)
        stock.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    base, cat, dog = TEXTS
    at = lambda text, *words: positions(stock, text, words)  # noqa: E731
    passes = [
        NaivePass(base, None, 1.0, []),
        NaivePass(cat, "blackcat", 0.9, at(cat, "sks", "cat")),
        NaivePass(dog, "golddog", 1.0, at(dog, "zwx", "dog")),
    ]
    groups = [
        [(0, *at(base, "cat")), (2, *at(dog, "cat")), *((1, n) for n in passes[1].tokens)],
        [(0, *at(base, "dog")), (1, *at(cat, "dog")), *((2, n) for n in passes[2].tokens)],
    ]
    updates = [0] * STEPS
    if updating:
        updates = [3, 1, 1, 3, 1, 0, 0, 0, 0, 0]
    expected = naive_clora(
        stock, passes, groups, noise, steps=STEPS, guidance=7.5, updates=updates, step_size=3.0,
        threshold=0.4, temperature=0.5,
    )  # fmt: skip
    assert len(found) == len(expected) == STEPS
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)
    assert expected[-1].std() > 0.1
