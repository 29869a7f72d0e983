"""Benchmarks of papers for real base models, with places for what the user has to supply.

A manifest says which concepts are put together with which prompts. LoRA files, and data that is not
ours to pass on, are the user's; nothing is ever downloaded. `loraweave bench check` says what is
missing before anything is drawn.
"""

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..data_file import SUFFIXES, read_data
from ..errors import LoraError, MethodError, SceneError
from ..lora.folder import find_lora
from ..lora_ref import BACKGROUND, EVERYWHERE, Data, LoraRef
from ..messages import close_match
from ..prompt import escaped
from ..region import Region
from ..scene import Pixels, Scene
from .suites import suite_names

FOLDER = Path(__file__).parent / "manifests"
Text = Annotated[str, Field(min_length=1)]
Format = Literal["concepts", "customconcept101", "composlora"]
Box = tuple[float, float, float, float]


class Entry(Data):
    """A LoRA.

    Attributes:
        noun: class of the concept, of which the prompt has one word as the noun.
        trigger: words before the noun that its LoRA knows, if any.
        file: name of the LoRA's file without its ending; the entry's own name if not given.
        group: what it is, for manifests that choose one of each group.
        on: `everywhere`, `background` or a group: a LoRA of no concept, that acts there.
    """

    noun: Text
    trigger: str = ""
    file: str | None = None
    group: str = "subject"
    on: str | None = None

    def marked(self, name: str) -> str:
        """Its words with markup."""
        if self.on is not None:
            first, _, rest = f"{self.trigger} {self.noun}".strip().partition(",")
            return f"[{escaped(first)}]({name}){',' if rest else ''}{escaped(rest)}"
        return f"[{escaped(self.trigger)}|{escaped(self.noun)}]({name})"


class Together(Data):
    """Concepts that are put into one picture.

    Attributes:
        concepts: names of entries.
        prompts: `{0}`, `{1}`, ... stand for their words, `{all}` for a list of them.
        boxes: of each concept, in pixels or as fractions: left, top, right, bottom.
        own: by concept what is read in its box; `{0}` stands for its words.
    """

    concepts: Annotated[list[str], Field(min_length=1, max_length=8)]
    prompts: Annotated[list[Text], Field(min_length=1)]
    boxes: list[Box] | None = None
    own: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if strangers := [name for name in self.own if name not in self.concepts]:
            raise SceneError(f"own.{strangers[0]} is none of the concepts put together")
        if self.boxes is not None and len(self.boxes) != len(self.concepts):
            raise SceneError(f"{len(self.boxes)} boxes for {len(self.concepts)} concepts")
        return self


class Choice(Data):
    """A rule that puts concepts together.

    Attributes:
        groups: one concept of each chosen group.
        sizes: how many groups, each number in turn.
        always: a group that is in every choice.
        prompts: as in `Together`; `count` choices get one of them each, in turn, or all if None.
        places: further words of each prompt, `{place}`.
        count: of choices of concepts and prompt, by a seed; every one with every prompt if None.
    """

    groups: Annotated[list[str], Field(min_length=1)]
    sizes: Annotated[list[int], Field(min_length=1)]
    always: str | None = None
    prompts: Annotated[list[Text], Field(min_length=1)]
    places: list[Text] = Field(default_factory=list)
    count: Annotated[int, Field(ge=1)] | None = None


class Manifest(Data):
    """A benchmark for a real base model.

    Attributes:
        summary, source: what it is, and whose.
        needs: what the user supplies, in words.
        width, height, steps, guidance: of the pictures.
        weight: of every LoRA.
        seeds: so many noises of each prompt, from 0.
        concepts: entries by name, unless a data file has them.
        data: file in the user's data folder, in a format that is read here: `concepts` (a YAML
            file of entries), `customconcept101` (its `dataset_multiconcept.json`) or `composlora`
            (its `STYLE_lora_info.json`, whose LoRAs are called `STYLE_ID` and are in a folder
            STYLE); several files are taken one after the other.
        together: concepts, prompts and boxes, listed.
        choice: a rule that lists them.
    """

    summary: Text
    source: Text
    needs: Annotated[list[Text], Field(min_length=1)]
    width: Pixels = 512
    height: Pixels = 512
    weight: float = 1.0
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    guidance: float = 7.5
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    concepts: dict[str, Entry] = Field(default_factory=dict)
    data: dict[Format, str | list[str]] = Field(default_factory=dict)
    together: list[Together] = Field(default_factory=list)
    choice: Choice | None = None


@cache
def manifest_names() -> tuple[str, ...]:
    """Of those that ship."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def is_manifest(name: str) -> bool:
    """Whether a name or file is a manifest's rather than a suite's of the miniature."""
    if name in manifest_names():
        return True
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    data = read_data(path)
    return isinstance(data, dict) and "needs" in data


def read_manifest(name: str) -> tuple[str, Manifest]:
    """Name and content of a manifest that ships, or of one in a file.

    Raises:
        MethodError: no such manifest.
        SceneError: something is wrong with the file.
    """
    shipped = name in manifest_names()
    path = FOLDER / f"{name}.yaml" if shipped else Path(name)
    if not shipped and path.stem in (*suite_names(), *manifest_names()):
        raise MethodError(f"{name}: there is a {path.stem!r} already; call yours otherwise")
    if not path.is_file():
        hint = close_match(name, manifest_names())
        raise MethodError(f"no manifest {name!r}{hint}; there are: {', '.join(manifest_names())}")
    try:
        return path.stem, Manifest.model_validate(read_data(path))
    except SceneError as error:
        raise SceneError(f"{path}: {error}") from None


def check(
    manifest: Manifest, lora_dir: Path | None, data: Path | None = None
) -> tuple[list[Scene], dict[str, str]]:
    """All scenes of a manifest, and what is wrong by concept.

    Args:
        manifest: from `read_manifest`.
        lora_dir: folder with a LoRA for each concept that is used; without one all are missing.
        data: folder with the manifest's data file, if it names one.

    Returns:
        The scenes, one for each prompt and seed, and why there is no LoRA of a concept.

    Raises:
        SceneError: the data file is missing or broken, an unknown concept, or a wrong prompt.
    """
    concepts, together = _resolved(manifest, data)
    used = dict.fromkeys(name for one in together for name in one.concepts)
    if unknown := [name for name in used if name not in concepts]:
        hint = close_match(unknown[0], concepts)
        raise SceneError(f"no concept {unknown[0]!r}{hint} in the manifest")
    if not together:
        raise SceneError("the manifest puts no concepts together")
    files: dict[str, Path] = {}
    faults: dict[str, str] = {}
    for name in used:
        if lora_dir is None:
            faults[name] = f"no LoRA of {name!r}; give the folder with --lora-dir"
            continue
        try:
            files[name] = find_lora(lora_dir, concepts[name].file or name)
        except LoraError as error:
            faults[name] = str(error)
    return [
        _scene(manifest, concepts, one, prompt, seed, files)
        for one in together
        for prompt in one.prompts
        for seed in range(manifest.seeds)
    ], faults


def _scene(
    manifest: Manifest, concepts: Mapping[str, Entry], one: Together, prompt: str, seed: int,
    files: Mapping[str, Path],
) -> Scene:  # fmt: skip
    entries = {name: concepts[name] for name in one.concepts}
    marked = {name: entry.marked(name) for name, entry in entries.items()}
    try:
        text = prompt.format(*marked.values(), all=_listed(list(marked.values())))
        own = {n: words.format(marked[n]) for n, words in one.own.items()}
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise SceneError(
            f"the prompt {prompt!r} or its boxes' own: {type(error).__name__}: {error}; "
            "{0}, {1}, ... and {all} stand for words"
        ) from None
    groups = {entry.group: name for name, entry in entries.items()}
    loras = {
        name: LoraRef(path=files.get(name), on=_place(entry.on, groups), weight=manifest.weight)
        for name, entry in entries.items()
        if f"({name})" in text
    }
    boxes = dict(zip(one.concepts, one.boxes or ()))
    return Scene(
        prompt=text, width=manifest.width, height=manifest.height, seed=seed, loras=loras,
        regions={name: Region(box=box) for name, box in boxes.items()}, prompts=own,  # type: ignore[arg-type]
        num_inference_steps=manifest.steps, guidance_scale=manifest.guidance,
    )  # fmt: skip


def _place(on: str | None, groups: Mapping[str, str]) -> str | None:
    return on if on in (None, BACKGROUND, EVERYWHERE) else groups.get(on, on)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _resolved(manifest: Manifest, data: Path | None) -> tuple[dict[str, Entry], list[Together]]:
    concepts, together = dict(manifest.concepts), list(manifest.together)
    parts = [dict(concepts)] if concepts or not manifest.data else []
    for kind, files in manifest.data.items():
        for file in [files] if isinstance(files, str) else files:
            path = (data or Path()) / file
            if data is None or not path.is_file():
                raise SceneError(f"the manifest needs {file}; put it into a folder and give --data")
            try:
                own, listed = _read(kind, path)
            except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
                raise SceneError(f"{path} is no file of the kind {kind}: {error!r}") from None
            concepts |= own
            together += listed
            parts.append(own)
    if manifest.choice is not None:
        together += [one for part in parts for one in _chosen(manifest.choice, part)]
    return concepts, together


def _read(kind: Format, path: Path) -> tuple[dict[str, Entry], list[Together]]:
    if kind == "concepts":
        entries = {}
        for name, entry in read_data(path).items():
            try:
                entries[name] = Entry.model_validate(entry)
            except SceneError as error:
                raise SceneError(f"{path}: {name}: {error}") from None
        return entries, []
    data = json.loads(path.read_text())
    if kind == "composlora":
        return _composlora(data, path.stem.partition("_")[0]), []
    return _customconcept101(data, path.parent)


def _chosen(choice: Choice, concepts: Mapping[str, Entry]) -> Iterator[Together]:
    by_group: dict[str, list[str]] = {group: [] for group in choice.groups}
    for name, entry in concepts.items():
        if entry.group in by_group:
            by_group[entry.group].append(name)
    sets = [
        names
        for size in choice.sizes
        for groups in itertools.combinations_with_replacement(choice.groups, size)
        if _allowed(groups, choice)
        for names in _picks(groups, by_group)
    ]
    places = choice.places or [""]
    prompts = [p.replace("{place}", place) for p in choice.prompts for place in places]
    if choice.count is None:
        yield from (Together(concepts=list(names), prompts=prompts) for names in sets)
        return
    rng = random.Random(0)
    for n in range(choice.count if sets else 0):
        yield Together(concepts=list(rng.choice(sets)), prompts=[prompts[n % len(prompts)]])


def _allowed(groups: Sequence[str], choice: Choice) -> bool:
    """One of a group, unless it is the only one there is; and the one that always is."""
    alike = len(choice.groups) > 1 and len(set(groups)) < len(groups)
    return not alike and (choice.always is None or choice.always in groups)


def _picks(groups: Sequence[str], by_group: Mapping[str, Sequence[str]]) -> Iterator[tuple]:
    if len(set(groups)) < len(groups):
        yield from itertools.combinations(by_group[groups[0]], len(groups))
    else:
        yield from itertools.product(*(by_group[group] for group in groups))


def _composlora(data: Mapping[str, Sequence[Mapping[str, Any]]], style: str) -> dict[str, Entry]:
    on = {"clothing": "character", "background": "background"}
    entries = {}
    for group, items in data.items():
        for item in items:
            words, file = ", ".join(item["trigger"]), f"{style}/{item['id']}"
            if group == "character":
                entry = Entry(noun="person", trigger=words, group=group, file=file)
            else:
                entry = Entry(noun=words, group=group, file=file, on=on.get(group, "everywhere"))
            entries[f"{style}_{item['id']}"] = entry
    return entries


def _customconcept101(
    data: Sequence[Sequence[Mapping[str, str]]], folder: Path
) -> tuple[dict[str, Entry], list[Together]]:
    entries: dict[str, Entry] = {}
    together = []
    for *pair, prompts in data:
        names = [Path(item["instance_data_dir"]).name for item in pair]
        for name, item in zip(names, pair):
            # A few pairs call one concept by another noun; what it is called first is kept.
            entries.setdefault(name, Entry(noun=item["class_prompt"], trigger="<new1>"))
        file = folder / prompts["prompt_filename_compose"]
        if folder.resolve() not in file.resolve().parents:
            raise ValueError(f"{file} lies outside of {folder}")
        lines = [line.strip() for line in file.read_text().splitlines()]
        together.append(Together(concepts=names, prompts=[line for line in lines if line]))
    return entries, together
