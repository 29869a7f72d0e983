"""Pipelines that their user has compiled."""

import pytest
import torch

import loraweave
from prepared import PROMPT
from tiny import tiny_pipeline


def compiled(kind):
    """A compiled pipeline; `eager` only traces, which needs no C++ compiler."""
    pipe = tiny_pipeline()
    if kind == "wrapped":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    elif kind == "in place":
        pipe.unet.compile(backend="eager")
    else:
        pipe.unet.compile_repeated_blocks(backend="eager")
    return pipe


def state(pipe):
    return [(id(m), id(vars(m).get("_compiled_call_impl"))) for m in pipe.unet.modules()]


@pytest.mark.parametrize("kind", ["wrapped", "in place", "blocks"])
def test_a_compiled_pipeline_draws_the_same_and_stays_compiled(loras, kind):
    def draw(pipe):
        return loraweave.compose(
            pipe, PROMPT, loras=loras, method="weave", num_inference_steps=2, progress=False,
            output_type="latent",
        )  # fmt: skip

    expected, pipe = draw(tiny_pipeline()), compiled(kind)
    before, config = state(pipe), dict(pipe.config)
    torch._dynamo.reset()
    with torch.compiler.set_stance("fail_on_recompile"):  # nothing is compiled, either
        found = draw(pipe)
    assert torch.equal(found.images, expected.images)
    assert found.info["base"] == expected.info["base"]
    assert any("compiled" in note for note in found.info["notes"])
    assert not any("compiled" in note for note in expected.info["notes"])
    assert state(pipe) == before
    assert dict(pipe.config) == config
    assert any(used for _, used in before) or hasattr(pipe.unet, "_orig_mod")
