"""Gradients in less memory: what the denoiser's blocks compute is made again instead of kept.

The library's own checkpointing makes a block's values again when the gradient needs them, and by
then the adapters and the recording of this call are gone. Here they are put back for as long as
that takes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

Again = Callable[[], AbstractContextManager]
"""What has to be active while a block of the same call runs again."""


@contextmanager
def checkpointing(model: nn.Module, again: Again) -> Iterator[None]:
    """Within this context the model's blocks are checkpointed.

    Args:
        model: of diffusers; what its user has set comes back on exit.
        again: puts back what acts on this call.
    """
    blocks = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    former = [
        (block, {key: vars(block)[key] for key in _KEYS if key in vars(block)}) for block in blocks
    ]
    for block in blocks:
        block.gradient_checkpointing = True  # type: ignore[assignment]
        block._gradient_checkpointing_func = partial(_checkpoint, again)  # type: ignore[assignment]
    try:
        yield
    finally:
        for block, own in former:
            for key in _KEYS:
                vars(block).pop(key, None)
            vars(block).update(own)


_KEYS = ("gradient_checkpointing", "_gradient_checkpointing_func")


def _checkpoint(again: Again, block: nn.Module, *args):
    return checkpoint(  # nothing is drawn at random in eval mode
        block.__call__, *args, use_reentrant=False, preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()),
    )  # fmt: skip
