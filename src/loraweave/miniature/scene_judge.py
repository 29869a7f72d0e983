"""Pictures of scenes, judged by all that the scenes ask for.

In a scene with a style LoRA colours and patterns are the style's, so who a subject is cannot be
judged: there a concept is right if its class has as many instances as it should. A style, a place,
a thing to wear and a relation are outcomes of their own, beside those of the concepts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from ..evaluate.similarity import instances_by_noun
from ..layout.boxes import Box, containment, intersection_over_union
from .concepts import KNOWN
from .extras import EXTRAS
from .judge import Instance, load_judge
from .judge.extras import place_in, stands, wears
from .prompts import PLAIN_SUBJECT
from .scenes import ConceptScene
from .scoring import SCORES, Looking, load_scorer, shipped_names
from .style_reader import load_style_reader
from .world.styles import STYLES

RELATION = "relation"
"""What the outcome of a relation is called."""


@dataclass(frozen=True)
class Findings:
    """What there is in a picture of a scene.

    Attributes:
        outcomes: by concept, and by what comes on top.
        places: of a placed scene, by concept, how well its box is kept: intersection over union;
            0 if there is no instance.
        contained: of a placed scene, by concept, the share of its instance's box that lies in the
            given one; 0 likewise.
        likeness: of a placed scene, by concept, the similarity of its instance to it; 0 likewise.
        scores: the papers' scores, see `evaluate.scores`: `clip_t` is the cosine, the others are
            by concept; concepts without an instance have none of instances.
        identity: by concept with an instance the judge's `Likeness`, as plain data; None of a scene
            with a style.
    """

    outcomes: dict[str, str]
    places: dict[str, float] | None = None
    contained: dict[str, float] | None = None
    likeness: dict[str, float] | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class Subjects:
    """A scene's subjects in a picture.

    Attributes:
        outcomes: of each, one of `evaluate.verdicts.OUTCOMES`.
        assigned: which instance is whose; nobody's in a scene with a style.
        identity: how much these are their concepts; see `Findings`.
    """

    outcomes: dict[str, str]
    assigned: dict[str, Instance] = field(default_factory=dict)
    identity: dict[str, dict[str, float]] | None = None


class SceneJudge:
    """Judges pictures of scenes by what ships with the miniature; it works on the processor."""

    def __init__(self) -> None:
        self.judge, self.reader, self.scorer = load_judge(), load_style_reader(), load_scorer()

    def examine(
        self, image: Image.Image, scene: ConceptScene, boxes: Mapping[str, Box]
    ) -> Findings:
        """Everything about one picture.

        Args:
            image: that shall show the scene.
            scene: all of it is asked for.
            boxes: of a placed scene.
        """
        subjects = self.subjects(image, scene)
        found, identity = subjects.assigned, subjects.identity
        outcomes = subjects.outcomes | self._extras(image, scene, found)
        scores = self.scores(image, scene)
        if not boxes:
            return Findings(outcomes, scores=scores, identity=identity)
        places, contained = dict.fromkeys(boxes, 0.0), dict.fromkeys(boxes, 0.0)
        likeness = dict.fromkeys(scene.names, 0.0)
        for name, instance in found.items():
            places[name] = round(intersection_over_union(instance.box, boxes[name]), 4)
            contained[name] = round(containment(instance.box, boxes[name]), 4)
            if name in likeness:
                likeness[name] = round(instance.similarities[name], 4)
        return Findings(outcomes, places, contained, likeness, scores, identity)

    def scores(self, image: Image.Image, scene: ConceptScene) -> dict[str, Any]:
        """The papers' scores; see `Findings`."""
        nouns = {name: KNOWN[name].kind for name in scene.names}
        wanted = Counter(nouns.values())
        if scene.attribute is not None:
            wanted[scene.attribute[0]] += 1
        looking = Looking(self.judge, wanted)
        cut = instances_by_noun(image, nouns.values(), looking)
        instances = self.scorer.of_instances(cut)
        made = self.scorer.scores(image, scene.plain_prompt, nouns, instances)
        scores: dict[str, Any] = {"clip_t": round(made["clip_t"]["cosine"], 4)}
        for name in SCORES:
            scores[name] = {c: round(v, 4) for c, v in made[name]["by_concept"].items()}
        return scores

    def subjects(self, image: Image.Image, scene: ConceptScene) -> Subjects:
        """What becomes of each subject."""
        if scene.style is not None:
            return Subjects(self._counted(image, scene))
        verdict = self.judge.examine(image, scene.names, scene.subjects)
        outcomes, found = dict(verdict.outcomes), dict(verdict.assigned)
        if scene.attribute is not None:
            outcomes[PLAIN_SUBJECT], plain = self._coloured(image, scene)
            found |= {PLAIN_SUBJECT: plain} if plain else {}
        identity = {
            name: {what: round(value, 4) for what, value in asdict(own).items()}
            for name, own in verdict.likeness.items()
        }
        return Subjects(outcomes, found, identity)

    def _counted(self, image: Image.Image, scene: ConceptScene) -> dict[str, str]:
        wanted = Counter(KNOWN[name].kind for name in scene.names)
        found = Counter(i.kind for i in self.judge.instances(image, len(scene.names), wanted))
        outcomes = {}
        for name in scene.names:
            kind = KNOWN[name].kind
            more = found[kind] - wanted[kind]
            outcomes[name] = "right" if more == 0 else "duplicated" if more > 0 else "missing"
        return outcomes

    def _coloured(self, image: Image.Image, scene: ConceptScene) -> tuple[str, Instance | None]:
        """Right if there is one of that class in that colour, `blended` in another one; and the
        largest of that class."""
        assert scene.attribute is not None
        kind, colour = scene.attribute
        every = self.judge.instances(image, scene.subjects, {kind: 1})
        found = [i for i in every if i.kind == kind]
        largest = max(found, key=lambda i: i.area, default=None)
        if len(found) != 1:
            return "duplicated" if found else "missing", largest
        right = self.judge.dominant_colour(image, kind) == colour
        return "right" if right else "blended", largest

    def _extras(
        self, image: Image.Image, scene: ConceptScene, found: Mapping[str, Instance]
    ) -> dict[str, str]:
        outcomes: dict[str, str] = {}
        if scene.style is not None:
            seen = self.reader.read([image]) == [scene.style]
            outcomes[scene.style] = "right" if seen else "missing"
        if scene.place is not None:
            seen = place_in(image, self.judge.classes([image])[0] > 0) == EXTRAS[scene.place].drawn
            outcomes[scene.place] = "right" if seen else "missing"
        if scene.worn is not None:
            outcomes[scene.worn[0]] = self._worn(image, *scene.worn, found)
        if scene.relation is not None:
            first, second = (found.get(name) for name in scene.names)
            if first is None or second is None:
                outcomes[RELATION] = "missing"
            else:
                so = stands(first.box, second.box, scene.relation)
                outcomes[RELATION] = "right" if so else "swapped"
        return outcomes

    def _worn(
        self, image: Image.Image, extra: str, wearer: str, found: Mapping[str, Instance]
    ) -> str:
        """Missing if the wearer has it not, swapped if another one has it instead, duplicated if
        another one has it, too."""
        classes = self.judge.classes([image])[0]
        have = set()
        for name, instance in found.items():
            x0, y0, x1, y1 = (
                round(edge * side) for edge, side in zip(instance.box, classes.shape[::-1] * 2)
            )
            mask = classes == 1 + self.judge.kinds.index(instance.kind)
            mask[:y0], mask[y1:], mask[:, :x0], mask[:, x1:] = False, False, False, False
            if mask.any() and wears(self.judge, image, mask, name, extra):
                have.add(name)
        if wearer in have:
            return "right" if have == {wearer} else "duplicated"
        return "swapped" if have else "missing"


class LoraJudge:
    """The judge, of pictures whose concepts are known by their LoRAs' files."""

    def __init__(self) -> None:
        self._judge = load_judge()

    def outcomes(
        self, image: Image.Image, concepts: Sequence[str], hashes: Mapping[str, str]
    ) -> dict[str, str] | None:
        """By concept what becomes of it.

        None if that cannot be said: a concept's LoRA does not ship or is another one's, too, or
        there is a style, in which nobody is known by looks.

        Args:
            image: the picture.
            concepts: of its scene.
            hashes: of all LoRAs of the scene the SHA-256 of their files, by name.
        """
        shipped = {name: shipped_names().get(sha256, "") for name, sha256 in hashes.items()}
        own = {name: shipped.get(name, "") for name in concepts}
        if not set(own.values()) <= set(KNOWN) or len(set(own.values())) < len(own):
            return None
        if any(name in STYLES for name in shipped.values()):
            return None
        found = self._judge.examine(image, list(own.values())).outcomes
        return {name: found[lora] for name, lora in own.items()}
