"""One denoiser call a step in which every position has one owner.

An owner is a pass: a text and adapters. At each position the denoiser works as in its owner's
pass: adapters of the spatial layers are confined by the owner's mask (`AdapterHooks.rows`), and
cross-attention looks at the owner's text through the owner's keys and values. What differs from
the owner's own pass are the other positions' states, which self-attention and convolutions mix in.
Keys and values of a text do not change over the steps: they are computed once.

`B` pictures, `K` owners, `S` halves, `R` = B*S rows, `L` positions, `T` tokens, (H, W) cells.
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbone.sites import cross_attention_sites
from .attention import HandOver, check_plain, in_heads, put_together, replaced
from .composition import Pass
from .executor import Evaluation, Executor, Halves
from .hooks import Weighted, level_size, resized_by_area
from .recorder import LastSiteReached


class Confined:
    """Evaluates owners that share one call; made by `confined`.

    Args:
        executor: of the run.
        owners: by convention the first one owns the background.
    """

    def __init__(self, executor: Executor, owners: Sequence[Pass]):
        self.executor, self.owners = executor, list(owners)
        self._hooks = executor.composition.unet_hooks
        self._sites = [site.module for site in cross_attention_sites(executor.backbone.unet)]
        self._read = {id(site) for site in executor.backbone.sites}
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
        self._acting: list[list[Weighted]] = []
        self._masks = torch.empty(0)  # (R, K, H, W)
        self._halves: slice = slice(None)
        self._records: list[Tensor] | None = None
        self._stop = False

    def evaluate(
        self,
        masks: Float[Tensor, "B K H W"],
        latents: Float[Tensor, "B C H W"],
        t: Tensor,
        *,
        halves: Halves = "both",
        record: bool = False,
        maps_only: bool = False,
        following: Bool[Tensor, " B"] | None = None,
    ) -> Evaluation:
        """Noise (B, 1, S, C, H, W), and maps (B, K, S, L, T) of every owner's text if asked for.

        Args:
            masks: of each owner; they sum to 1 at every cell.
            latents: already scaled for the model.
            t: timestep.
            halves: with or without the unconditional rows.
            record: also attend to every owner's text everywhere, at the reading sites.
            maps_only: record, and stop after the last of them; no noise then.
            following: which pictures are drawn after the scene's conditions; all if not given.
        """
        record = record or maps_only
        count = 2 if halves == "both" else 1
        most = self.executor.pass_batch
        if most and len(latents) > 1 and len(latents) * count > most:
            size = max(1, most // count)
            masks = masks.expand(len(latents), -1, -1, -1)
            chosen = [None] * len(latents) if following is None else following.split(size)
            parts = [
                self.evaluate(
                    m, z, t, halves=halves, record=record, maps_only=maps_only, following=f
                )
                for m, z, f in zip(masks.split(size), latents.split(size), chosen)
            ]
            maps = torch.cat([p.maps for p in parts if p.maps is not None]) if record else None
            noise = [p.noise for p in parts if p.noise is not None]
            return Evaluation(torch.cat(noise) if noise else None, maps)
        rows = latents.repeat_interleave(count, 0)
        self._masks = masks.expand(len(latents), -1, -1, -1).repeat_interleave(count, 0)
        self._halves = slice(None) if halves == "both" else slice(1, None)
        acting = [self.executor.acting(owner) for owner in self.owners]
        if _named(acting) != _named(self._acting):
            self._keys = {}
        self._acting = acting
        everywhere, places = self._shared_out(acting)
        self._records, self._stop, noise = [] if record else None, maps_only, None
        calls = self.executor.calls
        calls.forward, calls.rows = calls.forward + 1, calls.rows + len(rows)
        text = self.owners[0].states[self._halves].repeat(len(latents), 1, 1)
        attending, early = replaced(self._sites, HandOver(self.attend)), suppress(LastSiteReached)
        with self._hooks.rows([everywhere] * len(rows), places), attending, early:
            chosen = None if following is None else following.repeat_interleave(count)
            noise = self.executor.denoise(rows, t, text, chosen)
        maps = None
        if self._records:
            maps = torch.stack(self._records).mean(0)  # (R, K, L, T)
            maps = maps.unflatten(0, (len(latents), count)).transpose(1, 2)
        if noise is not None:
            noise = noise.unflatten(0, (len(latents), 1, count))
        return Evaluation(noise, maps)

    def _shared_out(
        self, acting: Sequence[Sequence[Weighted]]
    ) -> tuple[list[Weighted], dict[str, Tensor]]:
        """All adapters of a row, and by name (R, H, W) where those act that not all owners have.

        A weight that differs between owners is part of the mask.
        """
        weights: dict[str, list[float]] = {}
        adapters = {}
        for k, own in enumerate(acting):
            for adapter, weight in own:
                adapters[adapter.name] = adapter
                by_owner = weights.setdefault(adapter.name, [0.0] * len(acting))
                by_owner[k] += weight
        rows, places = [], {}
        for name, by_owner in weights.items():
            if len(set(by_owner)) == 1:
                rows.append((adapters[name], by_owner[0]))
                continue
            factors = self._masks.new_tensor(by_owner).view(1, -1, 1, 1)
            places[name] = (self._masks * factors).sum(1)
            rows.append((adapters[name], 1.0))
        return rows, places

    def attend(self, attn: Attention, states: Float[Tensor, "R L C"]) -> Float[Tensor, "R L C"]:
        """What a cross-attention layer adds, each position by its owner's text."""
        query = in_heads(attn, attn.to_q(states))  # (R, heads, L, d)
        keys, values = self._keys_and_values(attn)  # (K, S, heads, T, d)
        cover = self._cover(states.shape[1])  # (R, K, L)
        pictures, total = len(states) // keys.shape[1], torch.zeros_like(query)
        for k in range(len(keys)):
            key, value = (x[k].repeat(pictures, 1, 1, 1) for x in (keys, values))
            own = F.scaled_dot_product_attention(query, key, value)
            total = total + own * cover[:, k, None, :, None].to(own.dtype)
        if self._records is not None and id(attn) in self._read:
            self._records.append(torch.stack([
                _probabilities(query, keys[k].repeat(pictures, 1, 1, 1)) for k in range(len(keys))
            ], 1))  # fmt: skip
            if self._stop and len(self._records) == len(self._read):
                raise LastSiteReached
        return put_together(attn, total, states)

    def _keys_and_values(self, attn: Attention) -> tuple[Tensor, Tensor]:
        """(K, S, heads, T, d) each, of every owner's text with every owner's adapters."""
        if id(attn) not in self._keys:
            check_plain(attn, "cross-attention")
            found = []
            for owner, adapters in zip(self.owners, self._acting):
                text = self.executor.backbone.own_text(attn, owner.states)
                if attn.norm_cross:
                    text = attn.norm_encoder_hidden_states(text)
                with self._hooks.rows([adapters] * len(text)):
                    assert attn.to_k is not None
                    assert attn.to_v is not None
                    found.append([in_heads(attn, layer(text)) for layer in (attn.to_k, attn.to_v)])
            keys, values = (torch.stack(part) for part in zip(*found))
            self._keys[id(attn)] = keys, values
        keys, values = self._keys[id(attn)]
        return keys[:, self._halves], values[:, self._halves]

    def _cover(self, positions: int) -> Float[Tensor, "R K L"]:
        size = level_size(self._masks.shape[-2:], positions)
        assert size is not None  # every level of a denoiser halves the one above
        return resized_by_area(self._masks.flatten(0, 1), size).view(
            *self._masks.shape[:2], positions
        )


def _named(acting: Sequence[Sequence[Weighted]]) -> list[list[tuple[str, float]]]:
    return [[(adapter.name, weight) for adapter, weight in own] for own in acting]


def _probabilities(query: Tensor, key: Tensor) -> Float[Tensor, "R L T"]:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.softmax(-1).mean(1)
