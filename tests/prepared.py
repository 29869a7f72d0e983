"""A scene on a pipeline, prepared as the public call prepares it."""

from contextlib import contextmanager

import torch

from loraweave.backbone.sd1 import StableDiffusion1
from loraweave.backbone.tokens import joint_embeddings
from loraweave.denoise.composition import composition
from loraweave.denoise.executor import executing
from loraweave.denoise.loop import StepScheduler
from loraweave.lora.pipeline import gather_adapters
from loraweave.scene import Scene

PROMPT = "a [sks cat](a) and a [zwx dog](b:0.7) in the meadow"


@contextmanager
def composed_on(pipe, loras, prompt=PROMPT, method=None, **changes):
    """(composition, executor), with the adapters as a method uses them."""
    scene = Scene(prompt=prompt, loras=loras, **changes)
    backbone = StableDiffusion1(pipe)
    with (
        gather_adapters(pipe, scene) as adapters,
        backbone.tokens(joint_embeddings(adapters, backbone.tokenizer)),
        composition(scene, backbone, _used(method, scene, adapters)) as composed,
        executing(composed) as executor,
    ):
        yield composed, executor


def _used(method, scene, adapters):
    return adapters if method is None else {**adapters, **method.extra_adapters(scene, adapters)}


@contextmanager
def engine(pipe, loras, prompt=PROMPT, **changes):
    """(executor, passes)."""
    with composed_on(pipe, loras, prompt, **changes) as (composed, executor):
        yield executor, composed.passes()


@contextmanager
def stage_of(pipe, loras, method, steps=50, prompt=PROMPT, **changes):
    """The one stage of a method."""
    with composed_on(pipe, loras, prompt, method, **changes) as (composed, executor):
        scheduler = StepScheduler(pipe.scheduler, steps, torch.device("cpu"), None)
        (stage,) = method.stages(composed, executor, scheduler)
        yield stage
