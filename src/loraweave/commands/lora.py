"""`loraweave convert`, and the base model that LoRA files are fitted to without its weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import LoraError
from ..scene import MINIATURE
from . import options

Formats = Literal["peft", "diffusers", "kohya"]


def convert(
    file: Annotated[Path, typer.Argument(help="A LoRA file, or an adapter folder.")],
    to: Annotated[Formats, typer.Option("--to", help="Whose names and layout to write.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A .safetensors file; a new folder for peft.")
    ],
    base: options.LoraBase = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Reduce to at most this rank.", show_default="as it is"),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", metavar="OLD=NEW", help="Rename an embedding; repeatable."),
    ] = None,
    allow_pickle: options.AllowPickle = False,
    allow_partial: options.AllowPartial = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a LoRA in another program's format."""
    from ..lora.adapter import adapter_from_file
    from ..lora.convert import check_target, convert_lora
    from ..lora.file import read_lora

    check_target(out, to)
    names = _renaming(token or [])
    read = read_lora(file, allow_pickle)
    models = models_for(read, base)
    if models is None:
        raise LoraError(
            f"{file.name} fits no base model that is known by its shapes; give the one that it is "
            "for with --base FOLDER (a diffusers folder; its configuration files are enough)"
        )
    adapter = adapter_from_file(
        file.stem, read, unet=models.unet, text_encoder=models.text_encoder,
        allow_partial=allow_partial,
    )  # fmt: skip
    report = convert_lora(adapter, out, to, rank=rank, tokens=names)
    _say_dropped(report.dropped, file.name)
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2))
        return
    ranks = "-".join(str(r) for r in sorted({report.ranks[0], report.ranks[-1]}))
    line = f"{report.path}  {to}, {report.modules} modules of rank {ranks}"
    if report.approximated:
        line += f", {report.approximated} of them changed with a relative error of "
        line += f"{report.relative_error:.2g} (at most {report.largest_error:.2g})"
    typer.echo(line)


def merge(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE[:WEIGHT]...", help="LoRA files or folders.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A .safetensors file; a new folder for peft.")
    ],
    rule: Annotated[
        str, typer.Option(help="sum, magnitude, ties, dare or dare_ties, on whole deltas.")
    ] = "sum",
    density: Annotated[
        float, typer.Option(min=0, max=1, help="Share of entries that pruning rules keep.")
    ] = 0.5,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of the result.", show_default="the sum of the files' ranks"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what dare drops.")] = 0,
    to: Annotated[Formats, typer.Option("--to", help="Whose names and layout to write.")] = "kohya",
    base: options.LoraBase = None,
    allow_pickle: options.AllowPickle = False,
    allow_partial: options.AllowPartial = False,
    as_json: options.AsJson = False,
) -> None:
    """Write several LoRAs as one ordinary LoRA file."""
    from ..lora.adapter import adapter_from_file
    from ..lora.convert import check_target, convert_lora
    from ..lora.file import read_lora
    from ..lora.merging import RULES, merged_adapter

    check_target(out, to)
    if rule not in RULES:
        raise LoraError(f"no merging rule {rule!r}; there are: {', '.join(RULES)}")
    weighted, models = [], None
    for text in files:
        ref = options.read_ref(text)
        assert ref.path is not None
        path, read = ref.path, read_lora(ref.path, allow_pickle)
        models = models or models_for(read, base)
        if models is None:
            raise LoraError(f"{path.name} fits no base model that is known by its shapes; give the "
                            "one that it is for with --base FOLDER")  # fmt: skip
        adapter = adapter_from_file(
            path.stem, read, unet=models.unet, text_encoder=models.text_encoder,
            allow_partial=allow_partial,
        )  # fmt: skip
        _say_dropped(adapter.dropped, path.name)
        if adapter.tokens:
            raise LoraError(
                f"{path.name} brings tokens of its own ({', '.join(adapter.tokens)}), which "
                "one file for all cannot keep apart; draw with --method merge instead"
            )
        weighted.append((adapter, ref.unet_weight, ref.text_encoder_weight))
    most = sum(_highest_rank(adapter) for adapter, *_ in weighted)
    chosen = rank or (None if rule == "sum" else most)
    losses: list[tuple[float, float]] = []
    merged = merged_adapter(
        out.stem, weighted, rule, density=density, rank=chosen, seed=seed, losses=losses
    )
    report = convert_lora(merged, out, to, rank=chosen)
    whole, lost = (sum(column) for column in zip(*losses)) if losses else (0.0, 0.0)
    error = (lost / whole) ** 0.5 if whole else 0.0
    if as_json:
        data = {"path": str(report.path), "format": to, "rule": rule, "modules": report.modules,
                "ranks": report.ranks, "relative_error": error}  # fmt: skip
        typer.echo(json.dumps(data, indent=2))
        return
    line = f"{report.path}  {to}, {rule} of {len(files)} files, {report.modules} modules"
    if error:
        line += f", relative error of the lower rank {error:.2g}"
    typer.echo(line)


def _say_dropped(names: Sequence[str], file: str) -> None:
    if names:
        few = ", ".join(names[:3])
        typer.echo(f"note: left out {len(names)} tensors of {file}: {few}", err=True)


def _highest_rank(adapter: Any) -> int:
    updates = [*adapter.unet.values(), *adapter.text_encoder.values()]
    return max((update.rank for update in updates), default=1)


def models_for(file: Any, base: str | None) -> Any:
    """The modules that a LoRA file is fitted to: of the base named, or of the one it seems to fit.

    Args:
        file: a `LoraFile`.
        base: "sd15", "miniature", a diffusers folder, or None.

    Returns:
        A `Skeleton`, or None if nothing is known about the file's base.

    Raises:
        ModelNotFound: no such folder.
    """
    from ..lora.base import guess_base
    from ..lora.skeleton import sd1_skeleton, skeleton
    from ..miniature.shipped import base_folder

    if base is None:
        guess = guess_base({key: tuple(tensor.shape) for key, tensor in file.tensors.items()})
        if guess is not None and not guess.known:
            if 128 not in (guess.width, guess.text_width):
                return None
            base = MINIATURE
    if base == MINIATURE:
        return skeleton(base_folder())
    return sd1_skeleton() if base in (None, "sd15") else skeleton(base)


def _renaming(texts: list[str]) -> dict[str, str]:
    names = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not (equals and old and new) or old in names:
            raise LoraError(f"--token {text!r} is not of the form OLD=NEW, once for each token")
        names[old] = new
    return names
