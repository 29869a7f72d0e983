"""Rates of some results, with 95 % bootstrap intervals over scenes.

Results of one scene are one draw of the bootstrap, with whatever noises and in whatever wordings it
came (evaluate/bootstrap.py says why, and what is done where there are few scenes).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import mean, median
from typing import Any

from ..evaluate.bootstrap import DIFFERENCES, SHARES, over_scenes
from ..miniature.judged import LEAST_OVERLAP
from ..miniature.scoring import SCORES, scorer_version

FAILURES = ("missing", "duplicated", "swapped", "blended")
Row = dict[str, Any]
_NOT_THE_SCENE = (
    "method", "settings", "wording", "miniature", "package", "device", "steps", "scheduler",
    "dtype", "seed",
)  # fmt: skip


def scene_and_seed(row: Mapping[str, Any]) -> tuple[str, int]:
    """The same for results of one scene with one noise, by any method and in any wording."""
    if "models" in row["job"]:  # a manifest's, in which some methods are told boxes
        scene = row["job"]["scene"]
        return json.dumps([row["job"]["suite"], scene["prompt"]]), scene["seed"]
    told = {key: value for key, value in row["job"].items() if key not in _NOT_THE_SCENE}
    return json.dumps(told, sort_keys=True), row["job"]["seed"]


def rates(found: Sequence[Row], missing: int) -> Row:
    """What `report` says of one method.

    Args:
        found: its results.
        missing: how many jobs are not finished.
    """
    if not found:
        return {"scenes": 0, "open": missing}
    costs = [row["cost"] for row in found]
    keys = dict.fromkeys(key for cost in costs for key in cost)
    told: Row = {"scenes": len(found), "open": missing}
    # Without a segmenter nobody has looked for the concepts of a real base's pictures.
    if judged := [row for row in found if row["outcomes"]]:
        for kind, of in _SHARES.items():
            told |= estimate(kind, judged, of, share=True)
    if all("places" in row for row in found):
        told |= _places(found)
    if asked := [row for row in found if _extras(row)]:
        told |= estimate("extra", asked, lambda row: mean(_extras(row)), share=True)
    told |= _scores([row for row in found if row.get("scores") and current(row)])
    told["cost"] = {
        key: _MIDDLES.get(key, mean)(cost[key] for cost in costs if key in cost) for key in keys
    }  # fmt: skip
    return told


_MIDDLES = {"seconds": median}
"""How a cost is summed up, if not by its mean: whatever else a machine does makes some pictures
slow, and none fast."""


def current(row: Mapping[str, Any]) -> bool:
    """Whether its scores are by the encoders that ship now; a real base's are in its key."""
    return "models" in row["job"] or row.get("scorer") == scorer_version()


def _places(found: Sequence[Row]) -> Row:
    told = estimate("in_place", found, in_place, share=True)
    for kind, what, share in (
        ("layout_iou", "places", True), ("containment", "contained", True),
        ("likeness", "likeness", False),
    ):  # fmt: skip
        if all(what in row for row in found):  # results before containment go without
            told |= estimate(kind, found, lambda row, what=what: mean(row[what].values()), share)
    return told


def _scores(found: Sequence[Row]) -> Row:
    """Of those pictures that have been scored, each score over those that have it."""
    if not found:
        return {}
    told: Row = {"scored": len(found)}
    if texts := [row for row in found if "clip_t" in row["scores"]]:
        told |= estimate("clip_t", texts, lambda row: row["scores"]["clip_t"])
        told |= estimate("clip_t_score", texts, lambda row: 2.5 * max(row["scores"]["clip_t"], 0))
    for kind in SCORES:
        own = [row for row in found if row["scores"].get(kind)]
        for name, of in (("min", min), ("avg", mean), ("max", max)):
            if own:
                told |= estimate(
                    f"{kind}_{name}", own,
                    lambda row, kind=kind, of=of: of(row["scores"][kind].values()),
                )  # fmt: skip
    return told


def estimate(
    kind: str, found: Sequence[Row], of: Callable[[Row], float], share: bool = False
) -> Row:
    """`{kind: mean, kind_ci: [low, high]}` over some results; shares are in [0, 1]."""
    return _interval(kind, found, map(of, found), SHARES if share else None)


def differences(pairs: Sequence[tuple[Row, Row]]) -> Row:
    """Of one method minus another one, scene by scene."""
    kinds: dict[str, Callable[[Row], float]] = {}
    if all(row["outcomes"] for pair in pairs for row in pair):
        kinds = dict(_SHARES)
    if all("places" in row for pair in pairs for row in pair):
        kinds["in_place"] = in_place
    told: Row = {}
    for kind, of in kinds.items():
        minus = (of(one) - of(two) for one, two in pairs)
        told |= _interval(kind, [one for one, _ in pairs], minus, DIFFERENCES)
    return told


def _interval(
    kind: str, rows: Sequence[Row], values: Iterable[float], bounds: tuple[float, float] | None
) -> Row:
    return over_scenes([scene_and_seed(row) for row in rows], values, bounds).named(kind)


def in_place(row: Row) -> float:
    """Share of the concepts that are right and in their box."""
    places, outcomes = row["places"], row["outcomes"]
    return mean(places[n] >= LEAST_OVERLAP and outcomes[n] == "right" for n in places)


def share_right(row: Row) -> float:
    """Of what a picture's scene asks for."""
    outcomes = row["outcomes"].values()
    return sum(outcome == "right" for outcome in outcomes) / len(outcomes)


def success(row: Row) -> float:
    """1 if all is right."""
    return float(share_right(row) == 1)


def failing(kind: str, row: Row) -> float:
    """Share of a picture's concepts that fail so; what comes on top of them is none."""
    outcomes = [row["outcomes"][name] for name in row["job"]["names"]]
    return outcomes.count(kind) / len(outcomes)


def _extras(row: Row) -> list[bool]:
    """Of a style, a place, a thing worn, a relation, a subject without a LoRA: whether right."""
    concepts = row["job"]["names"]
    return [o == "right" for name, o in row["outcomes"].items() if name not in concepts]


_SHARES: dict[str, Callable[[Row], float]] = {
    "success": success, "right": share_right, **{k: partial(failing, k) for k in FAILURES}
}  # fmt: skip
