"""What counts as right, and the names of the ways to fail.

For each concept of a scene: right when its class has exactly as many instances as the scene has
concepts of that class, and the instance assigned to it is nearest to it, or nearly as near as to
any other known concept of the class (`SAME`); missing with too few instances of the class;
duplicated with too many; swapped when the nearest concept is another one of the scene; blended
when it is too unlike itself or too like another concept of the scene.

How much it is one of two is measured by its lead: the difference of its similarities to both over
the distance of both, which is 1 for the one, -1 for the other and 0 for half of each. From
`least_lead` on it is itself, down to -`least_lead` neither, below that the other one.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class Instance:
    """One connected component of a class, or a half of one where two touch.

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
class Likeness:
    """How much the instance assigned to a concept is that concept.

    Attributes:
        own: its similarity to it.
        lead: over the concept of the scene that it is most like beside it; 1 without another one.
        behind: by how much some known concept is nearer; 0 if it is the nearest.
    """

    own: float
    lead: float
    behind: float


@dataclass(frozen=True)
class Verdict:
    """The judge's finding for one picture.

    Attributes:
        instances: everything that it saw.
        outcomes: per concept of the scene one of `evaluate.verdicts.OUTCOMES`.
        assigned: the instance that is taken for each concept, among those of its class; concepts
            without any are not in it.
        likeness: of each of these to its concept.
    """

    instances: tuple[Instance, ...]
    outcomes: Mapping[str, str]
    assigned: Mapping[str, Instance]
    likeness: Mapping[str, Likeness]

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


LEAST_DISTANCE = 0.05
"""Of two concepts' looks, so that a lead over one that looks the same stays finite."""
SAME = 0.15
"""By how much a third concept may be nearer; chosen on labelled pictures."""


@dataclass(frozen=True)
class Thresholds:
    """When an instance is not itself: per concept the least similarity, and the least lead."""

    least_similarity: Mapping[str, float]
    least_lead: float

    def outcome(self, name: str, likeness: Likeness) -> str:
        """right, swapped or blended: of a concept whose class has as many instances as it should.

        Results keep each likeness, so other thresholds can be tried on them without a picture.
        """
        if likeness.lead < -self.least_lead:
            return "swapped"
        unlike = likeness.own < self.least_similarity.get(name, 0)
        if likeness.lead < self.least_lead or unlike:
            return "blended"
        # A third one's looks are nobody's here.
        return "right" if likeness.behind <= SAME else "blended"


Alike = Callable[[str, str, str], float]
"""Cosine between the looks of two concepts (first and second) on a class (third)."""


def decide(
    instances: Sequence[Instance], kinds: Mapping[str, str], thresholds: Thresholds, alike: Alike
) -> Verdict:
    """Judge a picture.

    Args:
        instances: what is in it.
        kinds: class of each concept of the scene.
        thresholds: fixed with the judge.
        alike: how alike two concepts look on a class.
    """
    counts = Counter(kinds.values())
    outcomes: dict[str, str] = {}
    assigned: dict[str, Instance] = {}
    likeness: dict[str, Likeness] = {}
    for kind, wanted in counts.items():
        members = [name for name, k in kinds.items() if k == kind]
        found = [instance for instance in instances if instance.kind == kind]
        if len(found) != wanted:
            word = "missing" if len(found) < wanted else "duplicated"
            outcomes |= dict.fromkeys(members, word)
        cost = np.array([[-i.similarities[name] for i in found] for name in members])
        for row, column in zip(*linear_sum_assignment(cost.reshape(len(members), -1))):
            name = members[row]
            assigned[name] = found[column]
            rivals = [other for other in kinds if other != name]
            likeness[name] = _likeness(name, found[column], rivals, alike)
            if len(found) == wanted:
                outcomes[name] = thresholds.outcome(name, likeness[name])
    ordered = {name: outcomes[name] for name in kinds}
    return Verdict(tuple(instances), ordered, assigned, likeness)


def _likeness(name: str, instance: Instance, rivals: Sequence[str], alike: Alike) -> Likeness:
    similarity = instance.similarities
    leads = [
        (similarity[name] - similarity[rival])
        / max(1 - alike(name, rival, instance.kind), LEAST_DISTANCE)
        for rival in rivals
    ]
    own = similarity[name]
    return Likeness(own, min(leads, default=1.0), similarity[instance.nearest] - own)
