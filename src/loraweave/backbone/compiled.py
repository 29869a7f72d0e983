"""Models that their user has compiled.

Adapters, recording and owners of places are hooks and processors that come and go with a picture,
and each of them makes a compiler begin anew: with `unet.compile()` the first pictures of the tiny
test model took 40 to 190 times as long. So compiled models are used as they were before that, and
are compiled again on exit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import StableDiffusionPipeline

from .sd1 import models_of

NOTE = (
    "the pipeline is compiled; with LoRAs that come and go that would begin anew for each picture, "
    "so it was used as it was before"
)


@contextmanager
def uncompiled(pipe: StableDiffusionPipeline) -> Iterator[bool]:
    """Within this context nothing of a pipeline runs compiled; whether something was.

    That is `torch.compile(pipe.unet)`, `pipe.unet.compile()` and diffusers'
    `pipe.unet.compile_repeated_blocks()`.
    """
    models = models_of(pipe)
    wrapped = {name: m for name, m in models.items() if hasattr(m, "_orig_mod")}
    for name, model in wrapped.items():
        vars(pipe)[name] = model._orig_mod
    parts = [
        (part, vars(part)["_compiled_call_impl"])
        for model in models.values() for part in model.modules()
        if vars(part).get("_compiled_call_impl") is not None
    ]  # fmt: skip
    for part, _ in parts:
        part._compiled_call_impl = None
    try:
        yield bool(wrapped or parts)
    finally:
        for part, own in parts:
            part._compiled_call_impl = own
        for name, model in wrapped.items():
            vars(pipe)[name] = model
