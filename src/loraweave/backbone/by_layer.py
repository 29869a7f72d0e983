"""Texts that differ from one cross-attention layer of the denoiser to the next (ED-LoRA).

A text is then encoded once for each of the `X` layers, and its states lie side by side along the
width, so that they go through the denoiser as any others do: (B, T, X*D). A hook narrows them to
a layer's own D columns before the layer reads them; whoever computes with the parts of a layer
narrows by the same function.

The layers count in the order of a forward pass (down, middle, up), as in ED-LoRA files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from .sites import cross_attention_sites


class TextByLayer:
    """Which columns of the text states each cross-attention layer reads.

    Attributes:
        count: X, how many such layers there are.
    """

    def __init__(self, unet: UNet2DConditionModel):
        self.sites = [site.module for site in cross_attention_sites(unet)]
        self.count = len(self.sites)
        self._places = {id(attn): place for place, attn in enumerate(self.sites)}

    def joined(self, states: Sequence[Float[Tensor, "B T D"]]) -> Float[Tensor, "B T W"]:
        """States for each layer, or one that all layers share, side by side; W = X*D."""
        return torch.cat([*states] if len(states) > 1 else [*states] * self.count, -1)

    def own(self, attn: Attention, text: Float[Tensor, "B T W"]) -> Float[Tensor, "B T D"]:
        """The columns of one layer."""
        return text.chunk(self.count, -1)[self._places[id(attn)]]

    def narrow(
        self, attn: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """A hook before a layer's forward pass."""
        text = self.own(attn, kwargs["encoder_hidden_states"])
        return args, {**kwargs, "encoder_hidden_states": text}


@contextmanager
def text_by_layer(unet: UNet2DConditionModel) -> Iterator[TextByLayer]:
    """In this context every cross-attention layer reads its own columns; no hook stays."""
    by_layer, handles = TextByLayer(unet), []
    try:
        for attn in by_layer.sites:
            handles.append(attn.register_forward_pre_hook(by_layer.narrow, with_kwargs=True))
        yield by_layer
    finally:
        for handle in handles:
            handle.remove()
