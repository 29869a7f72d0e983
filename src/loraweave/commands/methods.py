"""`loraweave methods`: what there is, and what each method's settings mean."""

import json
from typing import Annotated, Any

import typer

from . import options
from .report import show_table, show_values

COLUMNS = {
    "method": "name", "what it does": "summary", "passes a step": "calls_per_step",
    "regions": "regions",
}  # fmt: skip
FACTS = {
    "what it does": "summary", "source": "source", "passes a step": "calls_per_step",
    "regions": "regions", "prompts for regions": "own_prompts", "extra models": "extra_models",
    "training": "training", "any LoRA": "any_lora", "concepts, at least": "least_concepts",
    "at most": "max_concepts", "refuses": "refuses",
}  # fmt: skip


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="One of them, with its settings.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the methods, or say what one can do and what its settings mean."""
    from ..methods import METHODS, get_method
    from ..methods.described import described

    chosen = list(METHODS.values()) if name is None else [type(get_method(name))]
    listed: list[dict[str, Any]] = [
        method.capabilities() | {"described": described(method.Settings)} for method in chosen
    ]
    if as_json:
        typer.echo(json.dumps(listed if name is None else listed[0], indent=2))
        return
    if name is None:
        lines = [[one[key] for key in COLUMNS.values()] for one in listed]
        show_table(list(COLUMNS), *lines)
        typer.echo("`loraweave methods METHOD` says the rest: settings, sources, what is refused.")
        return
    (one,) = listed
    show_values({head: _words(one[key]) for head, key in FACTS.items()})
    if one["described"]:
        lines = [
            [f"{key}={json.dumps(own['default'])}", own["takes"], own["means"]]
            for key, own in one["described"].items()
        ]
        show_table(["settings (--set)", "may be", "means"], *lines)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "; ".join(value) or "nothing" if isinstance(value, list) else str(value)
