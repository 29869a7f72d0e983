"""One denoiser call a step in which every position has one owner.

An owner is a pass: a text and adapters. At each position the denoiser works as in its owner's
pass: adapters of the spatial layers are confined by the owner's mask (`AdapterHooks.rows`), and
cross-attention looks at the owner's text through the owner's keys and values. What differs from
the owner's own pass are the other positions' states, which self-attention and convolutions mix in.
Keys and values of a text do not change over the steps: they are computed once.

`B` pictures, `K` owners, `S` halves, `R` = B*S rows, `L` positions, `T` tokens, (H, W) cells.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbone.sites import cross_attention_sites
from ..lora.adapter import Adapter
from .attention import HandOver, check_plain, in_heads, put_together, replaced
from .composition import Pass
from .executor import Evaluation, Executor, Halves, Work, both, differentiated
from .hooks import PLACELESS, Weighted, level_size, no_place, resized_by_area
from .recorder import LastSiteReached

Place = tuple[int, Tensor | None, Tensor | None]
"""An owner, positions that are its own (all if None), and its share of them (all of it if None)."""


class Confined:
    """Evaluates owners that share one call; made by `confined`.

    Args:
        executor: of the run.
        owners: by convention the first one owns the background.
        by_query: in self-attention, too, a position works with its owner's keys and values, those
            that the owner's adapters make of all positions. Without, every position gives keys and
            values of its own owner's.

    Raises:
        MethodError: an adapter that not all owners have changes a layer that has no places.
    """

    def __init__(self, executor: Executor, owners: Sequence[Pass], by_query: bool = False):
        self.executor, self.owners = executor, list(owners)
        _check_places([owner.adapters for owner in owners])
        unet = executor.backbone.unet
        self._self = [
            m for m in unet.modules() if isinstance(m, Attention) and not m.is_cross_attention
        ] if by_query else []  # fmt: skip
        layers = [layer for attn in self._self for layer in (attn.to_k, attn.to_v)]
        self._apart = [getattr(x, "base_layer", x) for x in layers if x is not None]
        self._hooks = executor.composition.unet_hooks
        self._sites = [site.module for site in cross_attention_sites(executor.backbone.unet)]
        self._read = {id(site) for site in executor.backbone.sites}
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
        self._acting: list[list[Weighted]] = []
        self._masks = self._given = torch.empty(0)  # (B, K, H, W)
        self._each = 1
        self._levels: dict[int, list[list[Place]]] = {}
        self._shares: dict[int, tuple[list[Weighted], dict[str, Tensor]]] = {}
        self._halves: slice = slice(None)
        self._records: list[Tensor] | None = None
        self._stop = False

    def evaluate(
        self,
        masks: Float[Tensor, "B K H W"],
        latents: Float[Tensor, "B C H W"],
        t: Tensor,
        *,
        halves: Halves | None = None,
        record: bool = False,
        maps_only: bool = False,
        following: Bool[Tensor, " B"] | None = None,
    ) -> Evaluation:
        """Noise (B, 1, S, C, H, W), and maps (B, K, S, L, T) of every owner's text if asked for.

        Args:
            masks: of each owner; they sum to 1 at every cell. What follows from them is kept
                while the same tensor is given, so it must not be written to.
            latents: already scaled for the model.
            t: timestep.
            halves: with or without the unconditional rows; as guidance needs it if None.
            record: also attend to every owner's text everywhere, at the reading sites.
            maps_only: record, and stop after the last of them; no noise then.
            following: which pictures are drawn after the scene's conditions; all if not given.
        """
        record, halves = record or maps_only, halves or self.executor.halves
        count = 2 if halves == "both" else 1
        most = self.executor.mode.pass_batch
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
        self._halves = slice(None) if halves == "both" else slice(1, None)
        everywhere, places = self._prepared(masks, len(latents), count)
        self._records, self._stop, noise = [] if record else None, maps_only, None
        names = tuple(tuple(adapter.name for adapter, _ in own) for own in self._acting)
        work = Work(names, len(latents), count, True, maps_only, differentiated(latents),
                    self._each, record, not self._keys, bool(self._self))  # fmt: skip
        self.executor.calls.add(len(rows), work)
        text = self.owners[0].states[self._halves].repeat(len(latents), 1, 1)
        acting = (
            partial(self._hooks.rows, [everywhere] * len(rows), places, self._apart),
            partial(replaced, self._sites, HandOver(self.attend)),
            partial(replaced, self._self, HandOver(self.attend_among)),
        )
        with both(*acting), suppress(LastSiteReached):
            chosen = None if following is None else following.repeat_interleave(count)
            again = partial(both, *acting, self._deaf)
            noise = self.executor.denoise(rows, t, text, again, chosen)
        maps = None
        if self._records:
            maps = torch.stack(self._records).mean(0)  # (R, K, L, T)
            maps = maps.unflatten(0, (len(latents), count)).transpose(1, 2)
        if noise is not None:
            noise = noise.unflatten(0, (len(latents), 1, count))
        return Evaluation(noise, maps)

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        """Within this context nothing is recorded, and no forward pass ends early."""
        former = self._records, self._stop
        self._records, self._stop = None if former[0] is None else [], False
        try:
            yield
        finally:
            self._records, self._stop = former

    def _prepared(
        self, masks: Float[Tensor, "B K H W"], pictures: int, count: int
    ) -> tuple[list[Weighted], dict[str, Tensor]]:
        """What `_shared_out` says; everything that follows from masks is kept while they stay."""
        acting = [self.executor.acting(owner) for owner in self.owners]
        same = _named(acting) == _named(self._acting)
        if not same:
            self._keys = {}
        if masks is not self._given or not same or len(self._masks) != pictures:
            self._given, self._masks = masks, masks.expand(pictures, -1, -1, -1)
            self._levels, self._shares = {}, {}
            self._each = 1 if masks.is_meta else round(float((masks > 0).sum(1).float().mean()))
        self._acting = acting
        if count not in self._shares:
            self._shares[count] = self._shared_out(acting, count)
        return self._shares[count]

    def _shared_out(
        self, acting: Sequence[Sequence[Weighted]], count: int
    ) -> tuple[list[Weighted], dict[str, Tensor]]:
        """All adapters of a row, and by name (R, H, W) where those act that not all owners have.

        A weight that differs between owners is part of the mask.
        """
        weights, adapters = _weights(acting)
        rows, places = [], {}
        for name, by_owner in weights.items():
            if len(set(by_owner)) == 1:
                rows.append((adapters[name], by_owner[0]))
                continue
            factors = self._masks.new_tensor(by_owner).view(1, -1, 1, 1)
            places[name] = (self._masks * factors).sum(1).repeat_interleave(count, 0)
            rows.append((adapters[name], 1.0))
        return rows, places

    def attend(self, attn: Attention, states: Float[Tensor, "R L C"]) -> Float[Tensor, "R L C"]:
        """What a cross-attention layer adds, each position by its owner's text."""
        query = in_heads(attn, attn.to_q(states))  # (R, heads, L, d)
        keys, values = self._keys_and_values(attn)  # (K, S, heads, T, d)
        pictures = len(states) // keys.shape[1]
        total = self._by_owner(query, lambda k: (keys[k].unsqueeze(0), values[k].unsqueeze(0)))
        if self._records is not None and id(attn) in self._read:
            self._records.append(torch.stack([
                _probabilities(query, keys[k].repeat(pictures, 1, 1, 1)) for k in range(len(keys))
            ], 1))  # fmt: skip
            if self._stop and len(self._records) == len(self._read):
                raise LastSiteReached
        return put_together(attn, total, states)

    def attend_among(
        self, attn: Attention, states: Float[Tensor, "R L C"]
    ) -> Float[Tensor, "R L C"]:
        """What a self-attention layer adds, each position by its owner's keys and values."""
        check_plain(attn, "self-attention")
        assert attn.to_k is not None
        assert attn.to_v is not None
        query = in_heads(attn, attn.to_q(states))
        plain = [(layer, layer(states)) for layer in (attn.to_k, attn.to_v)]
        deltas = [self._hooks.confined_deltas(layer, states, out) for layer, out in plain]
        pictures = len(self._masks)

        def own(k: int) -> list[Tensor]:
            found = []
            for (_, out), more in zip(plain, deltas):
                for adapter, weight in self._acting[k]:
                    if adapter.name in more:
                        out = out + weight * more[adapter.name]
                found.append(in_heads(attn, out).unflatten(0, (pictures, -1)))
            return found

        return put_together(attn, self._by_owner(query, own), states)

    def _by_owner(
        self, query: Float[Tensor, "R heads L d"],
        own: Callable[[int], Sequence[Float[Tensor, "#B S heads T d"]]],
    ) -> Float[Tensor, "R heads L d"]:  # fmt: skip
        """Attention of each position to its owner's keys and values.

        Args:
            query: of all positions.
            own: keys and values of an owner, for each picture or for all.
        """
        places = self._places(query.shape[2])
        by_picture = query.unflatten(0, (len(places), -1))  # (B, S, heads, L, d)
        pictures = []
        for b, (queries, owners) in enumerate(zip(by_picture, places)):
            total = None
            for k, at, share in owners:
                key, value = (x[b if len(x) > 1 else 0] for x in own(k))
                asked = queries if at is None else queries[:, :, at]
                seen = F.scaled_dot_product_attention(asked, key, value)
                if share is not None:
                    seen = seen * share.to(seen.dtype)
                if at is None:
                    total = seen if total is None else total + seen
                    continue
                if total is None:
                    total = torch.zeros_like(queries)
                total = total.index_add(2, at, seen)
            pictures.append(total)
        return torch.cat(pictures)

    def _places(self, positions: int) -> list[list[Place]]:
        """For each picture: owners, the positions that are theirs, and how much so."""
        if positions not in self._levels:
            cover = self._cover(positions)
            self._levels[positions] = []
            for own in cover:
                found: list[Place] = []
                for k, share in enumerate(own):
                    at = share.nonzero()[:, 0]
                    if not len(at):
                        continue
                    whole = len(at) == positions
                    part = share if whole else share[at]
                    alone = bool((part == 1).all())
                    found.append((k, None if whole else at, None if alone else part[:, None]))
                self._levels[positions].append(found)
        return self._levels[positions]

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

    def _cover(self, positions: int) -> Float[Tensor, "B K L"]:
        size = level_size(self._masks.shape[-2:], positions)
        assert size is not None  # every level of a denoiser halves the one above
        return resized_by_area(self._masks.flatten(0, 1), size).view(
            *self._masks.shape[:2], positions
        )


def _check_places(acting: Sequence[Sequence[Weighted]]) -> None:
    """Raise MethodError now, not after steps that were drawn in vain."""
    weights, adapters = _weights(acting)
    for name, adapter in adapters.items():
        path = next((p for p in adapter.unet if p.startswith(PLACELESS)), None)
        if path is not None and len(set(weights[name])) > 1:
            raise no_place(name, path)


def _weights(
    acting: Sequence[Sequence[Weighted]],
) -> tuple[dict[str, list[float]], dict[str, Adapter]]:
    """By name of an adapter its weight for each owner, and the adapters."""
    weights: dict[str, list[float]] = {}
    adapters = {}
    for k, own in enumerate(acting):
        for adapter, weight in own:
            adapters[adapter.name] = adapter
            weights.setdefault(adapter.name, [0.0] * len(acting))[k] += weight
    return weights, adapters


def _named(acting: Sequence[Sequence[Weighted]]) -> list[list[tuple[str, float]]]:
    return [[(adapter.name, weight) for adapter, weight in own] for own in acting]


def _probabilities(query: Tensor, key: Tensor) -> Float[Tensor, "R L T"]:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.softmax(-1).mean(1)
