"""`loraweave generate` and `loraweave compare`."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SceneError
from ..precision import DType
from . import conditions, options
from .for_each import by_method
from .job import Job, differences, judge_for, load_model, make_job

GRID_CELL = 256  # pixels a side up to which a grid enlarges small pictures
DEFAULT_METHOD = "weave"


def generate(
    prompt: options.Prompt = None,
    lora: options.Loras = None,
    lora_dir: options.LoraDir = None,
    scene: options.SceneFile = None,
    picture: options.Picture = None,
    own_prompt: options.OwnPrompt = None,
    scene_set: options.SceneSet = None,
    base: options.Base = None,
    method: Annotated[
        str | None, typer.Option(help="See `loraweave methods`.", show_default="weave")
    ] = None,
    settings: options.Settings = None,
    negative: options.Negative = None,
    negative_for: options.NegativeFor = None,
    region: options.Regions = None,
    auto_regions: options.AutoRegions = False,
    region_prompt: options.RegionPrompts = None,
    sketch: conditions.Sketch = None,
    condition: conditions.Conditions = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    scheduler: options.Scheduler = None,
    width: options.Width = None,
    height: options.Height = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the first picture.", show_default="7")
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, help="Pictures, with seeds counted up: out-1.png, out-2.png, ...")
    ] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("out.png"),
    save_maps: Annotated[
        Path | None, typer.Option(help="Also write a figure of attention and masks (PNG).")
    ] = None,
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="Measure seconds, memory and FLOPs (by drawing a second time), and keep "
            "them in the picture, for evaluate.",
        ),
    ] = False,
    pass_batch: options.PassBatch = None,
    checkpointing: options.Checkpointing = False,
    max_memory: options.MaxMemory = None,
    dtype: options.OwnPrecision = None,
    device: options.Device = None,
    allow_pickle: options.AllowPickle = False,
    allow_partial: options.AllowPartial = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Draw a picture with several LoRAs."""
    pictures = _numbered(out, count)
    figures = _numbered(save_maps, count) if save_maps else []
    _check_paths([*pictures, *figures])
    job = make_job(
        prompt, scene, picture, base, options.read_loras(lora), lora_dir=lora_dir,
        fields=options.read_scene_fields(scene_set, negative_for, region, region_prompt),
        own_prompt=own_prompt, negative_prompt=negative,
        conditions=conditions.read_conditions(condition, sketch),
        num_inference_steps=steps, guidance_scale=guidance, scheduler=scheduler, width=width,
        height=height, seed=seed,
    )  # fmt: skip
    name = method or job.method or DEFAULT_METHOD
    drawer = _Drawer(
        job, {name: {**job.settings(name), **options.read_settings(settings)}},
        dtype or job.dtype, device or job.device, as_json, quiet, auto_regions,
        allow_pickle=allow_pickle, allow_partial=allow_partial, pass_batch=pass_batch,
        checkpointing=checkpointing, max_memory=max_memory,
    )  # fmt: skip
    for n, path in enumerate(pictures):
        output = drawer.draw(name, job.scene.seed + n, cost)
        output.save(path)
        if figures:
            from ..evaluate.figures import maps_figure

            maps_figure(output, 0, figures[n], title=f"{name}: {job.scene.parsed.text}")
        drawer.report(output, path, f"{path}  ")
    drawer.finish()


def compare(
    prompt: options.Prompt = None,
    lora: options.Loras = None,
    lora_dir: options.LoraDir = None,
    scene: options.SceneFile = None,
    picture: options.Picture = None,
    own_prompt: options.OwnPrompt = None,
    scene_set: options.SceneSet = None,
    base: options.Base = None,
    methods: Annotated[
        str, typer.Option(help="Names with commas, one row each.")
    ] = "weave,clora,merge",
    seeds: Annotated[str, typer.Option(help="0,1,2 or 0-3, one column each.")] = "0-3",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="[METHOD.]KEY=VALUE",
            help="A setting of one method, or of all that have it; repeatable.",
        ),
    ] = None,
    negative: options.Negative = None,
    negative_for: options.NegativeFor = None,
    region: options.Regions = None,
    auto_regions: options.AutoRegions = False,
    region_prompt: options.RegionPrompts = None,
    sketch: conditions.Sketch = None,
    condition: conditions.Conditions = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    scheduler: options.Scheduler = None,
    width: options.Width = None,
    height: options.Height = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG to write.")] = Path("grid.png"),
    pass_batch: options.PassBatch = None,
    checkpointing: options.Checkpointing = False,
    max_memory: options.MaxMemory = None,
    dtype: options.OwnPrecision = None,
    device: options.Device = None,
    allow_pickle: options.AllowPickle = False,
    allow_partial: options.AllowPartial = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Draw one scene with several methods and seeds, as a labelled grid."""
    _check_paths([out])
    numbers, names = options.read_seeds(seeds), options.read_methods(methods)
    job = make_job(
        prompt, scene, picture, base, options.read_loras(lora), lora_dir=lora_dir,
        fields=options.read_scene_fields(scene_set, negative_for, region, region_prompt),
        own_prompt=own_prompt, negative_prompt=negative,
        conditions=conditions.read_conditions(condition, sketch),
        num_inference_steps=steps, guidance_scale=guidance, scheduler=scheduler, width=width,
        height=height,
    )  # fmt: skip
    given = by_method(names, options.read_settings(settings))
    every = {name: {**job.settings(name), **given[name]} for name in names}
    drawer = _Drawer(
        job, every, dtype or job.dtype, device or job.device, as_json, quiet, auto_regions,
        allow_pickle=allow_pickle, allow_partial=allow_partial, pass_batch=pass_batch,
        checkpointing=checkpointing, max_memory=max_memory,
    )  # fmt: skip
    rows, marks = [], []
    for name in names:
        images, line = [], []
        for number in numbers:
            output = drawer.draw(name, number)
            images.append(output.images[0])
            verdict = drawer.report(output, out)
            line.append(None if verdict is None else verdict.success)
        rows.append((name, images))
        marks.append(line)
    from ..evaluate.figures import labelled_grid

    labelled_grid(
        rows, [f"seed {number}" for number in numbers], out, title=job.scene.parsed.text,
        marks=marks, scale=max(1, GRID_CELL // max(rows[0][1][0].size)),
    )  # fmt: skip
    drawer.finish()
    if not (as_json or quiet):
        typer.echo(str(out))


class _Drawer:
    """One loaded model that draws a job with some methods and reports each picture.

    Args:
        how: what `compose` is told beside the scene and the method.
    """

    def __init__(
        self, job: Job, settings: dict[str, dict[str, Any]], dtype: DType,
        device: str | None, as_json: bool, quiet: bool, auto_regions: bool, **how: Any,
    ):  # fmt: skip
        from ..memory.plan import read_bytes
        from ..methods import get_method

        self.job, self.as_json, self.quiet = job, as_json, quiet
        if how["max_memory"] is not None:
            read_bytes(how["max_memory"])
        self.how = how
        # Before the model is loaded: a wrong setting is found at once.
        self.methods = {name: get_method(name, own) for name, own in settings.items()}
        with_places = [name for name, one in self.methods.items() if one.regions != "no"]
        if auto_regions and not with_places:
            raise SceneError(
                f"{', '.join(settings)}: no regions are taken; leave --auto-regions out"
            )
        self.auto = with_places if auto_regions else []
        self.scenes = {
            name: one.scene_for(job.scene) if len(settings) > 1 else job.scene
            for name, one in self.methods.items()
        }
        for name, scene in self.scenes.items():
            left = [f for f in ("regions", "prompts") if getattr(scene, f) != getattr(job.scene, f)]
            if left:
                typer.echo(f"note: {name} takes no {' and no '.join(left)}, so it is drawn without",
                           err=True)  # fmt: skip
        self.pipe = load_model(job.base, dtype, device)
        self.judge = judge_for(job)
        self.done: list[dict[str, Any]] = []
        self.told: set[str] = set()

    def draw(self, method: str, seed: int, cost: bool = False) -> Any:
        """One picture as a `ComposeOutput`, with what it cost if that is asked for."""
        from ..api import compose

        if not self.quiet:
            typer.echo(f"{method}, seed {seed} ...", err=True)
        once = partial(
            compose, self.pipe, self.scenes[method].replace(seed=seed),
            method=self.methods[method], progress=not self.quiet, auto_regions=method in self.auto,
            **self.how,
        )  # fmt: skip
        if cost:
            from ..evaluate.cost import drawn_with_cost

            output = drawn_with_cost(once, self.pipe.device, flops=True)
        else:
            output = once()
        for name, lora in output.info["loras"].items():
            if lora.get("dropped") and not self.done:
                typer.echo(f"note: {name!r} was used without {len(lora['dropped'])} of its tensors",
                           err=True)  # fmt: skip
        notes = [note for note in output.info["notes"] if note not in self.told]
        self.told.update(notes)
        if self.job.record and not self.done:
            notes += differences(self.job.record, output.info)
        if output.info["nsfw"][0]:
            notes.append(f"the base's safety checker made the picture of seed {seed} black")
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        return output

    def report(self, output: Any, path: Path, start: str = "") -> Any:
        """Note a picture down, and print a line about it; the judge's verdict, if there is one."""
        verdict = self.judge(output.images[0]) if self.judge else None
        method, (seed,), seconds = (output.info[key] for key in ("method", "seeds", "seconds"))
        cost = output.info.get("cost")
        self.done.append(
            {
                "path": str(path),
                "method": method,
                "seed": seed,
                "seconds": round(seconds, 3),
                "calls": output.info["calls"],
                "found": verdict.as_dict() if verdict else None,
                **({"cost": cost} if cost else {}),
            }
        )
        if not (self.as_json or self.quiet):
            line = f"{start}{method}, seed {seed}, {seconds:.1f} s"
            if cost:
                memory = f", {cost['peak_mib']:.0f} MiB" if "peak_mib" in cost else ""
                line += f", {cost['calls']} calls, {cost['tflops']:.3g} TFLOPs{memory}"
            typer.echo(f"{line}: {verdict.sentence()}" if verdict else line)
        return verdict

    def finish(self) -> None:
        """Print everything at once, if JSON was asked for."""
        if self.as_json:
            typer.echo(json.dumps({"images": self.done}, indent=2))


def _numbered(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(1, count + 1)]


def _check_paths(paths: Sequence[Path]) -> None:
    """Nothing is computed for a picture that cannot be written."""
    from ..output import check_output_path

    for path in paths:
        check_output_path(path)
        if path.is_dir():
            raise SceneError(f"{path} is a folder; give the name of a picture")
    if len({path.resolve() for path in paths}) < len(paths):
        raise SceneError(f"--out and --save-maps both write {paths[0]}; give two names")
