"""A place for every concept, whatever the base model's layout looks like.

Attention says where the base would put each noun. Where that is a piece of the picture of its own,
the concept gets this piece. Where two nouns look at one place, or a noun looks nowhere, the base
would leave a subject out; such a concept gets a box beside the others, of their size, at the height
where they are. So no concept is without a place, and no place has two concepts.

`N` concepts, (h, w) positions. Lengths and distances are fractions of the longer side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from .auto import exclusive_between, strongest_piece
from .boxes import tight_box
from .instances import Instances

Mask = Bool[np.ndarray, "h w"]
Strength = Float[np.ndarray, "N h w"]


@dataclass(frozen=True)
class PlaceRule:
    """What counts as a place of one's own; chosen on tuning scenes of the miniature.

    Attributes:
        threshold: of a map's largest value, from which a position belongs to its concept.
        least: area of a place, of the picture.
        inside: least share of a concept's attention that is in its own piece.
        apart: least distance of two places' centres, times the number of concepts.
        flat: what a vertical distance counts of a horizontal one; subjects stand side by side.
        size: least side of a box that is put beside the others, times the root of N.
        room: area, of the picture, up to which places grow into what is nobody's.
    """

    threshold: float = 0.3
    least: float = 0.02
    inside: float = 0.4
    apart: float = 0.5
    flat: float = 0.5
    size: float = 0.4
    room: float = 0.08


class Places(NamedTuple):
    """Masks (N, h, w), 0 or 1, without overlap, and which concepts were put beside the others."""

    masks: Float[Tensor, "N h w"]
    put: list[int]


def places_of(
    maps: Float[Tensor, "N h w"], nouns: Sequence[str], rule: PlaceRule | None = None,
    given: Mapping[int, Float[Tensor, "h w"]] | None = None,
) -> Places:  # fmt: skip
    """A place for each concept; an empty one only where those that are given leave no room.

    Args:
        maps: of each concept's attention, the largest value 1.
        nouns: of each concept; those of one noun share out its instances.
        rule: what counts as a place.
        given: by number the places that are known; they stay as they are.
    """
    rule, known = rule or PlaceRule(), given or {}
    n, h, w = maps.shape
    strength = maps.double().cpu().numpy()
    finder = _Finder(strength, rule)
    masks = np.zeros((n, h, w), dtype=bool)
    for k, mask in known.items():
        masks[k] = mask.cpu().numpy() > 0
        finder.settle(k, masks[k])
    pieces = _pieces(maps.cpu(), nouns, rule)
    shares = [_share(strength, pieces, k, nouns, rule) for k in range(n)]
    open_ones = [k for k in range(n) if k not in known]
    open_ones.sort(key=lambda k: -min(shares[k], 1.0) * pieces[k].sum())
    homeless = []
    for k in open_ones:
        piece = pieces[k] & ~masks.any(0)
        if shares[k] >= rule.inside and finder.fits(k, piece):
            masks[k] = piece
            finder.settle(k, piece)
        else:
            homeless.append(k)
    for k in homeless:
        masks[k] = finder.beside(k, masks, [j for j in open_ones if j != k])
    for k in open_ones:
        largest = max(open_ones, key=lambda j: masks[j].sum())
        if not masks[k].any() and masks[largest].sum() > 1:  # its place went to another
            spot = np.where(masks[largest], strength[k], -1).argmax()
            masks[largest].flat[spot], masks[k].flat[spot] = False, True
    _grow(masks, open_ones, rule.room)
    return Places(torch.from_numpy(masks).to(maps), sorted(homeless))


def _grow(masks: Bool[np.ndarray, "N h w"], growing: Sequence[int], room: float) -> None:
    """Let small places grow, cell by cell and all at once, into what is nobody's."""
    while small := [k for k in growing if masks[k].any() and masks[k].mean() < room]:
        away = np.stack([_distance(masks[k]) for k in small])
        reached = cast(Mask, ~masks.any(0) & (away.min(0) < 1.5))
        if not reached.any():
            return
        for row, k in enumerate(small):
            masks[k] |= reached & (away.argmin(0) == row)


def _distance(mask: Mask) -> Float[np.ndarray, "h w"]:
    return cast(np.ndarray, ndimage.distance_transform_edt(~mask))


def upsampled(masks: Float[Tensor, "B K h w"], size: Sequence[int]) -> Float[Tensor, "B K H W"]:
    """Places at a finer level with smooth edges; every position keeps one owner."""
    wide = F.interpolate(masks.float(), tuple(size), mode="bilinear")
    return F.one_hot(wide.argmax(1), masks.shape[1]).movedim(-1, 1).to(masks)


def _pieces(maps: Tensor, nouns: Sequence[str], rule: PlaceRule) -> list[Mask]:
    """The strongest connected piece of what is each concept's own, without holes."""
    claimed = (maps >= rule.threshold).to(maps.dtype)
    own = Instances(nouns).shared_out(0, exclusive_between(claimed, maps, nouns), maps)
    return [
        cast(np.ndarray, ndimage.binary_fill_holes(strongest_piece(m.numpy() > 0, s.numpy())))
        for m, s in zip(own, maps)
    ]


def _share(
    strength: Strength, pieces: Sequence[Mask], k: int, nouns: Sequence[str], rule: PlaceRule
) -> float:
    """How much of the places that a concept looks at is in its piece; those of one noun look at
    the same places, so each can have its part only."""
    total = strength[k][strength[k] >= rule.threshold].sum() / list(nouns).count(nouns[k])
    return float(strength[k][pieces[k]].sum() / max(total, 1e-9))


class _Finder:
    """Where there is room."""

    def __init__(self, strength: Strength, rule: PlaceRule):
        self.strength, self.rule = strength, rule
        self.count, self.height, self.width = strength.shape
        self.side = max(self.height, self.width)
        rows, columns = np.mgrid[0 : self.height, 0 : self.width] + 0.5
        self.rows, self.columns = rows, columns
        self.scale = np.array([rule.flat, 1.0])
        self.centres: dict[int, np.ndarray] = {}
        self.sizes: list[tuple[float, float]] = []

    def settle(self, k: int, mask: Mask) -> None:
        """Note down that a concept has this place."""
        self.centres[k] = self._centre(k, mask)
        x0, y0, x1, y1 = tight_box(mask) if mask.any() else (0, 0, 0, 0)
        self.sizes.append(((y1 - y0) * self.height, (x1 - x0) * self.width))

    def fits(self, k: int, piece: Mask) -> bool:
        """Whether a piece is large enough and far enough from the places that others have."""
        if piece.sum() < max(1, self.rule.least * piece.size):
            return False
        return self._room(self._centre(k, piece)) >= self.rule.apart / self.count

    def beside(self, k: int, masks: Bool[np.ndarray, "N h w"], yielding: Sequence[int]) -> Mask:
        """A box where nobody is, near where the concept's attention is, at the others' height.

        Where there is no room at all, those that yield give some of theirs; nothing if none can.
        """
        taken = cast(Mask, masks.any(0))
        least = self.rule.size / self.count**0.5 * self.side
        usual = np.mean(self.sizes, 0) if self.sizes else np.zeros(2)
        tall, wide = np.maximum(usual, least)
        tall = max(1, min(tall, self.height))
        wide = max(1, min(wide, 0.9 * self.width / self.count))
        best, at = -np.inf, np.zeros(2)
        chosen: Mask = taken
        for y in np.arange(tall / 2, self.height - tall / 2 + 0.01):
            for x in np.arange(wide / 2, self.width - wide / 2 + 0.01):
                near = abs(self.rows - y) <= tall / 2, abs(self.columns - x) <= wide / 2
                box = cast(Mask, near[0] & near[1])
                centre = np.array([y, x]) / self.side
                score = self.strength[k][box].mean() - 2 * taken[box].mean()
                if self.centres:
                    height = np.mean([other[0] for other in self.centres.values()])
                    score += 0.5 * min(self._room(centre), 0.5) - abs(centre[0] - height)
                if score > best:
                    best, chosen, at = score, box, centre
        self.centres[k] = at
        free = chosen & ~taken
        if not free.any():  # of the others that were found, never of what was given
            free = chosen & masks[list(yielding)].any(0)
            masks[list(yielding)] &= ~free
        return free

    def _centre(self, k: int, mask: Mask) -> np.ndarray:
        weight = self.strength[k] * mask + 1e-9 * mask
        total = max(weight.sum(), 1e-12)
        middle = (self.rows * weight).sum(), (self.columns * weight).sum()
        return np.array(middle) / total / self.side

    def _room(self, centre: np.ndarray) -> float:
        away = [np.linalg.norm((centre - c) * self.scale) for c in self.centres.values()]
        return float(min(away, default=np.inf))
