"""Triggers that a LoRA's file names, for concepts whose prompt has none.

    loraweave.trigger           ours: the trigger alone, empty if there is none
    modelspec.trigger_phrase    the trigger, mostly with the class noun behind it
    ss_tag_frequency            kohya's trainer: its folders are called `<repeats>_<trigger> <noun>`

A folder's name is taken only if the captions have it too: many are called `10_images`.
"""

import json
from collections.abc import Mapping

from loraweave.prompt import ConceptWords, parse_prompt, with_trigger
from loraweave.scene import Scene


def own_triggers(metadata: Mapping[str, str], noun: str) -> list[str]:
    """The triggers that a file names, without the class noun behind them; all different."""
    if "loraweave.trigger" in metadata:
        phrases = [metadata["loraweave.trigger"]]
    elif metadata.get("modelspec.trigger_phrase", "").strip():
        phrases = [metadata["modelspec.trigger_phrase"]]
    else:
        phrases = _folder_names(metadata.get("ss_tag_frequency", ""))
    found = (_without_noun(phrase, noun) for phrase in phrases)
    return list(dict.fromkeys(trigger for trigger in found if trigger))


def fill_triggers(
    scene: Scene, metadata: Mapping[str, Mapping[str, str]]
) -> tuple[Scene, list[str]]:
    """The scene with triggers from the files where the prompt leaves them open.

    `[cat](x)` leaves it open; `[|cat](x)` says that there is none and stays so.

    Args:
        scene: what was asked for.
        metadata: texts of each LoRA's file, by name.

    Returns:
        The scene, and a sentence about each concept that something was found for.
    """
    notes = []
    for concept in scene.parsed.concepts:
        if not _is_open(concept):
            continue
        name, none = concept.name, f"write [|{concept.noun}]({concept.name}) to do without"
        match own_triggers(metadata.get(name, {}), concept.noun):
            case []:
                continue
            case [trigger]:
                scene = scene.replace(
                    prompt=_filled(scene.prompt, name, trigger),
                    prompts={k: _filled(text, name, trigger) for k, text in scene.prompts.items()},
                )
                notes.append(f"the LoRA {name!r} got the trigger {trigger!r} from its file; {none}")
            case several:
                notes.append(
                    f"the LoRA {name!r} has several triggers in its file, none was used: "
                    f"{', '.join(several)}; put one into the prompt, or {none}"
                )
    return scene, notes


def _is_open(words: ConceptWords) -> bool:
    return not (words.trigger or words.bar)


def _filled(prompt: str, name: str, trigger: str) -> str:
    """A prompt, also that of a region, with the trigger if it leaves it open."""
    parsed = parse_prompt(prompt)
    there = any(words.name == name and _is_open(words) for words in parsed.concepts)
    return with_trigger(parsed, name, trigger) if there else prompt


def _without_noun(phrase: str, noun: str) -> str:
    words, last = " ".join(phrase.encode("utf-8", "ignore").decode().split()), noun.casefold()
    head = words[: len(words) - len(noun)]
    if words.casefold().endswith(last) and (not head or head[-1] == " "):
        return head.strip()
    return words


def _folder_names(text: str) -> list[str]:
    try:
        names = []
        for folder, tags in json.loads(text or "{}").items():
            repeats, _, words = folder.partition("_")
            captions = [str(tag).casefold() for tag in tags]
            if repeats.isdigit() and any(words.casefold() in caption for caption in captions):
                names.append(words)
        return names
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []  # a hint that cannot be read is no hint; the prompt can have the trigger
