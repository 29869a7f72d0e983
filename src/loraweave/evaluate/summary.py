"""What many evaluated pictures say together: means, and methods beside one another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from ..errors import SceneError
from .bootstrap import DIFFERENCES, SHARES, over_scenes
from .cost import mean_cost
from .scores import SCORES
from .verdicts import OUTCOMES

Entry = Mapping[str, Any]


def means(entries: Sequence[Entry]) -> dict[str, Any]:
    """Of every score, over the pictures that have it; of outcomes their shares of the concepts.

    An outcome that could not be told in some picture (`not_told`) has no share. `cost` is of the
    pictures that say it, see `mean_cost`.
    """
    found: dict[str, Any] = {}
    for name in ("clip_t", *SCORES):
        rows = [entry[name] for entry in entries if name in entry]
        keys = ("cosine", "score") if name == "clip_t" else ("min", "avg", "max")
        if rows:
            values = {key: [row[key] for row in rows if row[key] is not None] for key in keys}
            found[name] = {key: mean(own) if own else None for key, own in values.items()}
            if name.startswith("instance"):
                found[name]["missing"] = sum(len(row["missing"]) for row in rows)
    if outcomes := [o for entry in entries for o in entry.get("outcomes", {}).values()]:
        found["outcomes"] = {kind: outcomes.count(kind) / len(outcomes) for kind in _told(entries)}
        if untold := set(OUTCOMES) - set(found["outcomes"]):
            found["not_told"] = sorted(untold)
    for kind in ("iou", "containment"):
        if own := [value for entry in entries for value in entry.get(kind, {}).values()]:
            found[kind] = mean(own)
    return found | _costs(entries)


def by_method(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """By method its `pictures`, and each figure with a 95 % bootstrap interval over scenes.

    Figures are `right` to `blended`, shares of a picture's concepts; `clip_t`, the cosine; of the
    other scores `_min`, `_avg` and `_max` over the concepts; `iou` and `containment`. Every method
    but the first has `minus_<first>` with the differences over the scenes and noises that both
    have, if there are any. `cost` is the mean of pictures that say it, see `mean_cost`.

    Args:
        entries: of pictures; `scene` and `seed` say which belong together.

    Raises:
        SceneError: two pictures by one method are of one scene and seed, so they differ in
            something that is not told apart here.
    """
    rows: dict[str, dict[tuple[str, int], Entry]] = {}
    for entry in entries:
        if rows.setdefault(entry["method"], {}).setdefault(_scene(entry), entry) is not entry:
            raise SceneError(
                f"two pictures by {entry['method']} are of one prompt and seed, {entry['seed']}, "
                "with other settings or sizes; evaluate them apart to compare methods"
            )
    kinds = _figures(entries)
    table: dict[str, dict[str, Any]] = {}
    for method, own in rows.items():
        table[method] = {"pictures": len(own), **_costs([*own.values()])}
        for kind, (of, bounds) in kinds.items():
            known = [(entry, value) for entry in own.values() if (value := of(entry)) is not None]
            table[method] |= _estimate(kind, known, bounds)
    first = next(iter(rows), "")
    for method, own in rows.items():
        if method == first:
            continue
        minus: dict[str, Any] = {}
        for kind, (of, bounds) in kinds.items():
            both = [
                (entry, one - two) for scene, entry in own.items() if scene in rows[first]
                if (one := of(entry)) is not None and (two := of(rows[first][scene])) is not None
            ]  # fmt: skip
            minus |= _estimate(kind, both, DIFFERENCES if bounds == SHARES else None)
        if minus:
            table[method][f"minus_{first}"] = minus
    return table


Figure = Callable[[Entry], float | None]


def _figures(entries: Sequence[Entry]) -> dict[str, tuple[Figure, tuple[float, float] | None]]:
    kinds: dict[str, tuple[Figure, tuple[float, float] | None]] = {
        kind: (partial(_share, kind), SHARES) for kind in _told(entries)
    }
    kinds["clip_t"] = (lambda entry: entry["clip_t"]["cosine"] if "clip_t" in entry else None), None
    for name in SCORES:
        for end in ("min", "avg", "max"):
            kinds[f"{name}_{end}"] = partial(_score, name, end), None
    return kinds | {kind: (partial(_mean, kind), SHARES) for kind in ("iou", "containment")}


def _told(entries: Sequence[Entry]) -> Iterator[str]:
    untold = {kind for entry in entries for kind in entry.get("not_told", ())}
    yield from (kind for kind in OUTCOMES if kind not in untold)


def _costs(entries: Sequence[Entry]) -> dict[str, Any]:
    told = mean_cost([entry["cost"] for entry in entries if "cost" in entry])
    return {"cost": told} if told else {}


def _share(kind: str, entry: Entry) -> float | None:
    outcomes = list(entry.get("outcomes", {}).values())
    return outcomes.count(kind) / len(outcomes) if outcomes else None


def _score(name: str, end: str, entry: Entry) -> float | None:
    return entry[name][end] if name in entry else None


def _mean(kind: str, entry: Entry) -> float | None:
    return mean(entry[kind].values()) if entry.get(kind) else None


def _scene(entry: Entry) -> tuple[str, int]:
    return entry["scene"], entry["seed"]


def _estimate(
    kind: str, known: Sequence[tuple[Entry, float]], bounds: tuple[float, float] | None
) -> dict[str, Any]:
    if not known:
        return {}
    scenes, values = zip(*((_scene(entry), value) for entry, value in known))
    return over_scenes(scenes, values, bounds).named(kind)
