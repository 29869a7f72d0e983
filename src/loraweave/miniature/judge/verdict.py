"""What counts as right, and the names of the ways to fail.

For each concept of a scene: right when its class has exactly as many instances as the scene has
concepts of that class and the instance assigned to it has it as its nearest concept; missing with
too few instances of the class; duplicated with too many; swapped when the nearest concept is
another one of the scene; blended when it is too unlike itself or too like another concept of the
scene. Where both could be said, it is swapped if it is as much the other one as that one's LoRA
makes it alone, and blended if it is neither.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

OUTCOMES = ("right", "missing", "duplicated", "swapped", "blended")


@dataclass(frozen=True)
class Instance:
    """One connected component of a class.

    Attributes:
        kind: its class.
        box: left, top, right, bottom, as fractions of the picture.
        area: share of the picture that it covers.
        similarities: to every known concept, in [0, 1].
    """

    kind: str
    box: tuple[float, float, float, float]
    area: float
    similarities: Mapping[str, float]

    @property
    def nearest(self) -> str:
        """The known concept that it is most like."""
        return max(self.similarities, key=lambda name: self.similarities[name])


@dataclass(frozen=True)
class Verdict:
    """The judge's finding for one picture.

    Attributes:
        instances: everything that it saw.
        outcomes: per concept of the scene one of `OUTCOMES`.
    """

    instances: tuple[Instance, ...]
    outcomes: Mapping[str, str]

    @property
    def success(self) -> bool:
        """All concepts are right."""
        return all(outcome == "right" for outcome in self.outcomes.values())

    @property
    def right(self) -> int:
        """How many concepts are right."""
        return sum(outcome == "right" for outcome in self.outcomes.values())

    def sentence(self) -> str:
        """The finding in words."""
        seen = ", ".join(f"{i.kind} (like {i.nearest})" for i in self.instances) or "nothing"
        judged = ", ".join(f"{name} {outcome}" for name, outcome in self.outcomes.items())
        return f"sees {seen}" + (f": {judged}" if judged else "")

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        return {
            "success": self.success,
            "outcomes": dict(self.outcomes),
            "instances": [
                {**asdict(i), "similarities": {k: round(v, 3) for k, v in i.similarities.items()},
                 "nearest": i.nearest}
                for i in self.instances
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Thresholds:
    """When an instance is not itself: per concept the least similarity, and the least lead."""

    least_similarity: Mapping[str, float]
    least_lead: float


def decide(
    instances: Sequence[Instance], kinds: Mapping[str, str], thresholds: Thresholds
) -> Verdict:
    """Judge a picture.

    Args:
        instances: what is in it.
        kinds: class of each concept of the scene.
        thresholds: fixed with the judge.
    """
    counts = Counter(kinds.values())
    outcomes: dict[str, str] = {}
    for kind, wanted in counts.items():
        members = [name for name, k in kinds.items() if k == kind]
        found = [instance for instance in instances if instance.kind == kind]
        if len(found) != wanted:
            word = "missing" if len(found) < wanted else "duplicated"
            outcomes |= dict.fromkeys(members, word)
            continue
        cost = np.array([[-i.similarities[name] for i in found] for name in members])
        for row, column in zip(*linear_sum_assignment(cost)):
            outcomes[members[row]] = _identity(members[row], found[column], kinds, thresholds)
    return Verdict(tuple(instances), {name: outcomes[name] for name in kinds})


def _identity(
    name: str, instance: Instance, kinds: Mapping[str, str], thresholds: Thresholds
) -> str:
    own = instance.similarities[name]
    rivals = {n: instance.similarities[n] for n in kinds if n != name}
    rival = max(rivals, key=lambda n: rivals[n], default=None)
    if rival is not None and rivals[rival] > own:
        like_it = rivals[rival] >= thresholds.least_similarity.get(rival, 0.0)
        return "swapped" if like_it else "blended"
    lead = own - max(rivals.values(), default=-1.0)
    if own < thresholds.least_similarity.get(name, 0.0) or lead < thresholds.least_lead:
        return "blended"
    # Nearest among all known concepts, too: a third one's looks are nobody's here.
    return "right" if instance.nearest == name else "blended"
