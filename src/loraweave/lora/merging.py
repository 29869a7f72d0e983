"""Several LoRAs as one update per layer, in the space of weight deltas.

Trimming, electing signs and dropping at random mean something for entries of delta W, not for the
factors of a product: (A1 + A2)(B1 + B2) is not A1 B1 + A2 B2. So every rule here works on whole
deltas, each times its own alpha / rank once, and a low rank comes last, by SVD, if it is wanted.

Rules: `sum`; `magnitude`, the largest entries of each delta, then sum; `ties` (Yadav et al. 2023),
the largest entries, then the mean of those that agree with the sign of their sum; `dare` (Yu et al.
2024), each entry kept with probability `density` and divided by it, then sum; `dare_ties`, both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LoraError
from .adapter import Adapter
from .updates import Difference, LowRank, Update, compressed

Rule = Literal["sum", "magnitude", "ties", "dare", "dare_ties"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class Dense(Difference):
    """One layer's update as the whole delta W, of the shape of the layer's weight."""

    matrix: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return min(self.matrix.flatten(1).shape)

    @property
    def inputs(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape[1:])

    def delta(self, x: Tensor, module: nn.Module) -> Tensor:
        if isinstance(module, nn.Conv2d):
            return F.conv2d(
                x, self.matrix, None, module.stride, module.padding, module.dilation, module.groups
            )
        return F.linear(x, self.matrix)

    def weight(self) -> Tensor:
        return self.matrix

    def factors(self) -> tuple[Tensor, Tensor]:
        flat = self.matrix.flatten(1)
        return torch.eye(len(flat), dtype=flat.dtype, device=flat.device), flat

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> "Dense":
        return replace(self, matrix=self.matrix.to(device, dtype))


def merged_adapter(
    name: str, adapters: Sequence[tuple[Adapter, float, float]], rule: Rule = "sum", *,
    density: float = 0.5, rank: int | None = None, seed: int = 0,
    losses: list[tuple[float, float]] | None = None,
) -> Adapter:  # fmt: skip
    """One adapter that acts as several do together.

    Args:
        name: of the result.
        adapters: with the weights of their parts for the U-Net and for the text encoder.
        rule: how entries are put together.
        density: share of the entries that is kept, in (0, 1]; `sum` keeps all.
        rank: the nearest updates of this rank (SVD); whole deltas if None, except that a plain sum
            keeps its factors side by side, exactly.
        seed: of what `dare` drops.
        losses: gets, for every layer that was reduced to the rank, the squared norms of its delta
            and of what was lost.

    Raises:
        LoraError: no adapter, no such rule, a density or rank out of range.
    """
    if not adapters:
        raise LoraError("nothing to merge; give at least one LoRA")
    if rule not in RULES:
        raise LoraError(f"no merging rule {rule!r}; there are: {', '.join(RULES)}")
    if not 0 < density <= 1:
        raise LoraError(f"a density of {density}; it is a share in (0, 1]")
    if rank is not None and rank < 1:
        raise LoraError(f"a rank of {rank}; at least 1 is needed")
    parts: dict[str, dict] = {"unet": {}, "text_encoder": {}}
    for component, updates in parts.items():
        paths = {path: None for a, *_ in adapters for path in getattr(a, component)}
        for path in paths:
            own = [(found, unet if component == "unet" else text) for a, unet, text in adapters
                   if (found := getattr(a, component).get(path)) is not None]  # fmt: skip
            key = f"{seed}/{component}/{path}"
            updates[path] = _merged(own, rule, density, rank, key, losses)
    whole = [(a.sha256, *weights, rule, density, rank, seed) for a, *weights in adapters]
    digest = sha256(repr(whole).encode()).hexdigest()
    return Adapter(name, parts["unet"], parts["text_encoder"], digest)


def _merged(
    own: Sequence[tuple[Update, float]], rule: Rule, density: float, rank: int | None, key: str,
    losses: list[tuple[float, float]] | None,
) -> Difference:  # fmt: skip
    updates = []
    for update, weight in own:
        if not isinstance(update, Difference):
            raise LoraError(
                f"a DoRA changes {key.partition('/')[2]} by more than a difference, so it cannot "
                "be merged ahead of a run; the rule `sum` without a rank adds at run time"
            )
        updates.append((update, weight))
    low = [(update, weight) for update, weight in updates if isinstance(update, LowRank)]
    if rule == "sum" and len(low) == len(updates):
        joined = side_by_side(low)
        return joined if rank is None or joined.rank <= rank else _reduced(joined, rank, losses)
    dtype = updates[0][0].factors()[0].dtype
    exact = torch.promote_types(dtype, torch.float32)  # half would decide signs by rounding
    deltas = torch.stack([update.to(None, exact).weight() for update, _ in updates])
    weights = deltas.new_tensor([weight for _, weight in updates])
    dense = Dense(put_together(deltas, weights, rule, density, key).to(dtype))
    return dense if rank is None else _reduced(dense, rank, losses)


def _reduced(update: Difference, rank: int, losses: list[tuple[float, float]] | None) -> Difference:
    """The nearest update of a rank, of the same type of numbers."""
    whole = update.weight()
    exact = update.to(None, torch.promote_types(whole.dtype, torch.float32))
    new = compressed(exact, rank).to(None, whole.dtype)
    if losses is not None:
        lost = (new.weight().float() - whole.float()).square().sum()
        losses.append((float(whole.float().square().sum()), float(lost)))
    return new


def side_by_side(own: Sequence[tuple[LowRank, float]]) -> LowRank:
    """The exact sum of several updates of one module: their factors beside each other."""
    down = torch.cat([update.down for update, _ in own])
    up = torch.cat([update.up * (update.scale * weight) for update, weight in own], 1)
    return LowRank(down, up, 1.0)


def put_together(deltas: Tensor, weights: Tensor, rule: Rule, density: float, key: str) -> Tensor:
    """One delta from several and their weights, (n, ...) and (n,) -> (...).

    As in peft, TIES elects signs by the pruned deltas alone; the weights count afterwards.
    """
    if rule.startswith("dare"):
        generator = torch.Generator().manual_seed(int(sha256(key.encode()).hexdigest()[:15], 16))
        kept = torch.rand(deltas.shape, generator=generator) < density
        deltas = deltas * kept.to(deltas) / density
    elif rule in ("magnitude", "ties"):
        deltas = torch.stack([largest(delta, density) for delta in deltas])
    weighted = deltas * weights.view(-1, *[1] * (deltas.dim() - 1))
    if not rule.endswith("ties"):
        return weighted.sum(0)
    sign = deltas.sum(0).sign()
    agrees = (deltas.sign() == sign) & (deltas != 0)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def largest(delta: Tensor, density: float) -> Tensor:
    """A delta with all but its largest entries set to zero."""
    count = max(1, round(density * delta.numel()))
    kept = torch.zeros(delta.numel(), dtype=torch.bool, device=delta.device)
    kept[delta.abs().flatten().topk(count).indices] = True
    return delta * kept.view(delta.shape)
