"""Self-attention that does not pass between regions.

A place inside regions attends to the places of those regions and to the background, a place of the
background to everything (LoRA-Composer, section 3.4). Places that are in the same regions are
allowed the same keys, so there is one fused attention call for each such group, and no mask of
L x L is ever built.

Where regions overlap a place is allowed what any of its regions is allowed. (The authors' code
forbids it what any of them is forbidden, which leaves a place in all regions without a key.)

`N` regions, `R` rows, `L` positions of a level, (H, W) cells of the latent.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .attention import HandOver, check_plain, in_heads, put_together, replaced
from .hooks import level_size, resized_by_area

Group = tuple[Int[Tensor, " Q"], Int[Tensor, " K"]]


def level_regions(masks: Float[Tensor, "N H W"], size: tuple[int, int]) -> Bool[Tensor, "N h w"]:
    """Which places of a level are in which region: at least half covered, and never none."""
    covered = resized_by_area(masks, size)
    most = covered.amax((1, 2), keepdim=True)
    return covered >= torch.minimum(most, torch.full_like(most, 0.5))


def groups_of(regions: Bool[Tensor, "N L"]) -> list[Group]:
    """Queries that are in the same regions, with the keys that they may attend to."""
    if not len(regions):
        every = torch.arange(regions.shape[1], device=regions.device)
        return [(every, every)]
    groups = []
    for pattern in regions.T.unique(dim=0):  # (N,)
        queries = (pattern == regions.T).all(1).nonzero()[:, 0]
        allowed = ~regions.any(0) | regions[pattern].any(0) | ~pattern.any()
        groups.append((queries, allowed.nonzero()[:, 0]))
    return groups


class Isolation:
    """Keeps regions apart in every self-attention layer of a denoiser.

    Args:
        unet: the denoiser.
        masks: of the regions, at the latent's size.
        read: cross-attention layers; the self-attention beside them is recorded if asked for.
    """

    def __init__(
        self, unet: nn.Module, masks: Float[Tensor, "N H W"], read: Sequence[Attention] = ()
    ):
        self.masks, self._recording = masks, False
        self._sites = [
            m for m in unet.modules() if isinstance(m, Attention) and not m.is_cross_attention
        ]
        beside = {id(site) for site in read}
        self._read = {
            id(block.attn1) for block in unet.modules()
            if isinstance(block, BasicTransformerBlock) and id(block.attn2) in beside
        }  # fmt: skip
        self._groups: dict[int, list[Group]] = {}
        self._records: list[Tensor] = []

    @contextmanager
    def acting(self, record: bool = False) -> Iterator[None]:
        """Within this context the regions are apart; the processors come back on exit.

        Args:
            record: keep the probabilities of the layers that are read, for `take`.
        """
        self._recording, self._records = record, []
        with replaced(self._sites, HandOver(self.attend)):
            yield

    def groups(self, positions: int) -> list[Group]:
        """Those of a level with so many positions."""
        if positions not in self._groups:
            size = level_size(self.masks.shape[-2:], positions)
            assert size is not None  # every level of a denoiser halves the one above
            self._groups[positions] = groups_of(level_regions(self.masks, size).flatten(1))
        return self._groups[positions]

    def take(self) -> Float[Tensor, "R L L"]:
        """Mean of the probabilities recorded since the last call, over heads and layers."""
        records, self._records = self._records, []
        return torch.stack(records).mean(0)

    def attend(self, attn: Attention, states: Float[Tensor, "R L C"]) -> Float[Tensor, "R L C"]:
        """What a self-attention layer gives."""
        check_plain(attn, "self-attention")
        assert attn.to_k is not None
        assert attn.to_v is not None
        query, key, value = (
            in_heads(attn, layer(states)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        out, seen = torch.zeros_like(query), None
        if self._recording and id(attn) in self._read:
            exact = torch.promote_types(query.dtype, torch.float32)  # half is too coarse for losses
            seen = query.new_zeros(len(query), query.shape[2], query.shape[2], dtype=exact)
        for queries, keys in self.groups(states.shape[1]):
            own, allowed = query[:, :, queries], key[:, :, keys]
            out[:, :, queries] = F.scaled_dot_product_attention(own, allowed, value[:, :, keys])
            if seen is not None:
                sharp = own.to(seen.dtype) / query.shape[-1] ** 0.5
                scores = sharp @ allowed.to(seen.dtype).transpose(-1, -2)
                seen[:, queries[:, None], keys] = scores.softmax(-1).mean(1)
        if seen is not None:
            self._records.append(seen)
        return put_together(attn, out, states)
