"""The public call: one scene, one method, one pipeline."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from .backbone.compiled import NOTE as COMPILED
from .backbone.compiled import uncompiled
from .backbone.sd1 import StableDiffusion1
from .backbone.tokens import joint_embeddings
from .caveats import caveat, unused_weights
from .condition import weighed_concepts
from .conditioning import check_conditions, given_conditions, prepare
from .denoise.composition import composition
from .denoise.executor import Executor, MemoryMode, executing
from .denoise.loop import StepScheduler, Trace, denoise
from .errors import MethodError, SceneError
from .laying_out import check_auto, lay_out, sorted_regions
from .loading import base_identity, with_folder_loras, with_shipped_loras
from .lora.blocks import with_blocks
from .lora.pipeline import gather_adapters
from .lora.trigger import fill_triggers
from .memory.plan import MaxMemory, kept_to, planned
from .methods import METHODS, Method, MethodSettings, get_method
from .noise import Generator, check_latents, noise_sources, seed_of
from .output import ComposeOutput, versions
from .scene import Condition, LoraRef, Scene
from .schedulers import scheduler_for

LoraSource = str | Path | LoraRef
STEPS = Scene.model_fields["num_inference_steps"].default
GUIDANCE = Scene.model_fields["guidance_scale"].default


def compose(
    pipe: StableDiffusionPipeline,
    prompt: str | Scene,
    *,
    loras: Mapping[str, LoraSource] | None = None,
    lora_dir: str | Path | None = None,
    method: str | Method = "weave",
    settings: MethodSettings | Mapping[str, Any] | None = None,
    negative_prompt: str = "",
    negative_prompts: Mapping[str, str] | None = None,
    num_inference_steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    scheduler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_images_per_prompt: int = 1,
    batch_size: int = 1,
    pass_batch: int | None = None,
    checkpointing: bool = False,
    max_memory: MaxMemory | None = None,
    generator: Generator = None,
    latents: Tensor | None = None,
    regions: Mapping[str, Any] | Sequence[Any] | None = None,
    prompts: Mapping[str, str] | None = None,
    auto_regions: bool = False,
    conditions: Sequence[Condition | Mapping[str, Any]] | None = None,
    output_type: str = "pil",
    callback_on_step_end: Callable[[Any, int, Tensor, dict], dict] | None = None,
    progress: bool = True,
    allow_pickle: bool = False,
    allow_partial: bool = False,
) -> ComposeOutput:
    """Draw a scene with several LoRAs.

    Args:
        pipe: any Stable Diffusion 1.x pipeline. Adapters that are active in it act everywhere,
            except those that the prompt names as concepts. It comes back as it was.
        prompt: `a [sks cat](blackcat) and a [zwx dog](golddog:0.8) in the meadow`, or a whole
            scene, which then brings its own sizes, steps, seed and LoRAs.
        scheduler: such as "dpm++_2m" or "unipc", see `loraweave.schedulers`; the pipeline's own
            if not given.
        loras: file of each LoRA that the prompt names; names already loaded in `pipe` need none.
            A concept without a trigger gets that of its file's metadata, if there is one; `info`
            says so in "notes" and has the prompt as it was drawn.
        lora_dir: folder in which the LoRAs are found that have no file and are not loaded.
        method: name or instance; `loraweave.METHODS` has them all.
        settings: of the method, if `method` is a name.
        negative_prompt: what to steer away from, words with or without emphasis.
        negative_prompts: by concept, what its pass steers away from in addition.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance, as in diffusers.
        height, width: pixels; the model's own size if not given.
        num_images_per_prompt: pictures to draw.
        batch_size: how many of them are drawn at the same time. A picture of a larger batch
            differs by rounding from one drawn alone.
        pass_batch: most rows (pictures x passes x 2) of one denoiser call; all at once if None.
        checkpointing: methods that take gradients compute what is inside of the denoiser's blocks
            twice instead of keeping it: the same picture in less memory.
        max_memory: bytes, or "6GB", of the device for all of it; on the CPU of the process. What
            is given up for it is the least that suffices, and is said in the notes: rows of a
            call, graphs of several passes, checkpointing, tiles in decoding, and where there is
            another device than the CPU weights that wait on the host. Excludes `pass_batch`,
            `checkpointing` and a pipeline that is offloaded already.
        generator: one for all pictures or one for each; without it the scene's seed is used,
            counted up from picture to picture.
        latents: initial noise (num_images_per_prompt, C, h, w) instead of drawing it; standard
            normal, the scheduler's own scale is applied here as in diffusers.
        regions: by a concept's name where it may be, for methods that take regions: a `Region`, a
            box (left, top, right, bottom) of fractions or pixels, a mask picture (path or PIL), an
            array or tensor (h, w) in [0, 1], or a list of these. Instead of names, a list with one
            for each concept in the order of the prompt. A picture's record has boxes and paths
            only.
        prompts: by a concept's name what is read inside its regions, or outside of all
            (`background`), for methods with a text for each region; see `Scene`.
        auto_regions: for methods that take regions: concepts without a region get a box where the
            base model's attention puts them (the first two fifths of a run without LoRAs, for each
            picture). The pictures' records have these boxes; see `info["regions"]`.
        conditions: pictures that the scene is drawn after, by any method: `Condition`s, or dicts
            of their fields in which `image` may be a PIL picture; in the record that is a caveat.
        output_type: "pil", "np", "pt" or "latent".
        callback_on_step_end: `callback(pipe, i, t, {"latents": z}) -> {"latents": z}`; setting
            `pipe._interrupt` stops after the step; the picture is decoded as it is then, and
            none is begun after it.
        progress: show a progress bar with the loss on a terminal.
        allow_pickle: read LoRA files that are pickles too, with torch's weights-only reader.
        allow_partial: draw also with a LoRA file of which a part has no place in the model; the
            parts left out are in `info["loras"]`.

    Raises:
        SceneError, LoraError, MethodError: see `loraweave.errors`; nothing is drawn then.
    """
    with_files, at_hand = given_conditions(conditions or ())
    if isinstance(prompt, Scene):
        scene = prompt
        plain, masks_at_hand = sorted_regions(regions, scene)
        given = {
            "loras": loras, "regions": plain, "conditions": with_files,
            "negative_prompt": negative_prompt,
            "negative_prompts": negative_prompts, "prompts": prompts,
            "height": height, "width": width, "scheduler": scheduler,
            "num_inference_steps": num_inference_steps != STEPS,
            "guidance_scale": guidance_scale != GUIDANCE,
        }  # fmt: skip
        if twice := [name for name, value in given.items() if value]:
            raise SceneError(
                f"a Scene has its own {', '.join(twice)}; use scene.replace(...) to change that"
            )
    else:
        scene = Scene(
            prompt=prompt, negative_prompt=negative_prompt,
            negative_prompts=dict(negative_prompts or {}), width=width, height=height,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            scheduler=scheduler, loras=dict(loras or {}), prompts=dict(prompts or {}),  # type: ignore[arg-type]
            conditions=with_files,
        )  # fmt: skip
        plain, masks_at_hand = sorted_regions(regions, scene)
        scene = scene.replace(regions=plain) if plain else scene
    if isinstance(method, Method):
        if settings is not None:
            raise MethodError(f"this {method.name} has its settings already; give one of the two")
    else:
        method = get_method(method, settings if isinstance(settings, MethodSettings) else
                            dict(settings or {}))  # fmt: skip
    if unknown := set(masks_at_hand) - {concept.name for concept in scene.concepts}:
        raise SceneError(f"a region for {sorted(unknown)[0]!r}, which is no concept of the prompt")
    every_condition = [*scene.conditions, *(given.condition for given in at_hand)]
    every_region = {**scene.regions, **masks_at_hand}
    check_conditions(every_condition, [c.name for c in scene.concepts], every_region)
    weighed = weighed_concepts(every_condition)
    if method.regions == "no" and not set(weighed).issuperset(every_region):
        raise MethodError(f"{method.name} takes no regions; leave them out")
    if scene.prompts and not method.own_prompts:
        others = ", ".join(name for name, one in METHODS.items() if one.own_prompts)
        raise MethodError(
            f"{method.name} has no text for each region, so {', '.join(scene.prompts)} cannot have "
            f"a prompt of its own; leave prompts out, or use one of: {others}"
        )
    _check_output(output_type, num_images_per_prompt)
    for name, number in (("batch_size", batch_size), ("pass_batch", pass_batch)):
        if number is not None and number < 1:
            raise SceneError(f"{name} is {number}; at least 1 is needed")
    if max_memory is not None and (pass_batch is not None or checkpointing):
        raise SceneError("max_memory chooses pass_batch and checkpointing itself; leave them out")
    started = time.monotonic()
    with ExitStack() as stack:
        compiled = stack.enter_context(uncompiled(pipe))
        backbone = StableDiffusion1(pipe)
        base = base_identity(pipe, scheduler_for(scene.scheduler, pipe.scheduler))
        size = backbone.size(scene.width, scene.height)
        sources = noise_sources(scene, generator, latents, num_images_per_prompt)
        check_latents(backbone, size, [own for _, own in sources])
        loaded = {name for names in pipe.get_list_adapters().values() for name in names}
        if lora_dir is not None:
            scene = with_folder_loras(scene, lora_dir, loaded)
        images, masks, maps, losses, flags, caveats = [], [], [], [], [], []
        boxes: list[dict[str, Any]] = []
        stack.enter_context(torch.inference_mode(False))  # methods take gradients
        stack.enter_context(_interruptible(pipe))
        adapters = stack.enter_context(
            gather_adapters(pipe, with_shipped_loras(scene), allow_pickle, allow_partial)
        )
        stack.enter_context(backbone.tokens(joint_embeddings(adapters, backbone.tokenizer)))
        scene, notes = fill_triggers(scene, {n: a.metadata for n, a in adapters.items()})
        notes += unused_weights(scene, adapters) + [COMPILED] * compiled
        adapters = {
            name: with_blocks(adapter, blocks)
            if (blocks := scene.loras.get(name, LoraRef()).blocks) else adapter
            for name, adapter in adapters.items()
        }  # fmt: skip
        every = {**adapters, **method.extra_adapters(scene, adapters)}
        composed = stack.enter_context(composition(scene, backbone, every, masks_at_hand))
        followed, condition_records = prepare(composed, at_hand, allow_pickle)
        gradients = method.takes_gradients(
            len(composed.concepts) if auto_regions else composed.placed
        )
        mode, tiles = MemoryMode(pass_batch, checkpointing=checkpointing), False
        if max_memory is not None:
            most = 1 if auto_regions else min(batch_size, len(sources))
            plan, chosen = planned(
                max_memory, composed, *size, gradients=gradients, pictures=most,
                rows=2 * (len(composed.concepts) + 1) * most,
            )  # fmt: skip
            stack.enter_context(kept_to(plan, backbone))
            mode, notes, tiles = plan.mode, [*notes, chosen], plan.tiling
        if checkpointing and not gradients:
            notes.append(f"{method.name} takes no gradients here, so checkpointing saves nothing")
        executor = stack.enter_context(executing(composed, mode, followed))
        method.check(composed)
        given = dict(composed.regions)
        lacking = [c.name for c in composed.concepts if c.name not in given]
        check_auto(auto_regions, method, lacking)
        for part in _batches(sources, 1 if auto_regions else batch_size):
            caveats += [
                caveat(pipe, scene, own_generator, own_latents, callback_on_step_end,
                        masks_at_hand, len(part) > 1, at_hand, tiles, mode.pass_batch,
                        any(own_generator is former for former, _ in part[:n]))
                for n, (own_generator, own_latents) in enumerate(part)
            ]  # fmt: skip
            noise = torch.cat([
                backbone.noise(*size, own_generator) if own_latents is None
                else own_latents.detach().to(backbone.device, backbone.dtype, copy=True)
                for own_generator, own_latents in part
            ])  # fmt: skip
            if auto_regions:
                generators = [g for g, _ in part]  # of one picture
                found = lay_out(
                    executor, _scheduler(executor, generators, method), noise, generators[0]
                )
                composed.regions = {**given, **{name: [found[name]] for name in lacking}}
                boxes.append({name: found[name].model_dump(mode="json") for name in lacking})
            z, trace = _draw(executor, method, scene, noise, [g for g, _ in part],
                             callback_on_step_end, progress)  # fmt: skip
            drawn, flagged = backbone.decode_checked(z, output_type)
            images.append(drawn)
            flags += flagged or [None] * len(part)
            for n in range(len(part)):
                masks.append(_stacked([step[n] for step in trace.masks]))
                maps.append(_stacked([step[n] for step in trace.maps]))
                losses.append([(i, own[n].item()) for i, own in trace.losses])
            notes += trace.notes
            if pipe._interrupt:
                caveats[-len(part) :] = ["it was interrupted"] * len(part)
                break
        calls = executor.calls
    info = {
        "scene": scene.model_dump(mode="json"),
        "method": method.name,
        "settings": method.settings.model_dump(mode="json"),
        "base": base,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": backbone.device.type,
        "loras": {
            n: {"sha256": a.sha256, **({"dropped": list(a.dropped)} if a.dropped else {})}
            for n, a in adapters.items()
        },
        "conditions": condition_records,
        "versions": versions(),
        "concepts": [concept.name for concept in scene.concepts],
        "seeds": [seed_of(scene, g) for g, _ in sources[: len(masks)]],
        "caveats": caveats,
        "regions": boxes,
        "nsfw": flags,
        "notes": notes,
        "seconds": time.monotonic() - started,
        "calls": calls.forward,
        "rows": calls.rows,
        "backward_rows": calls.backward_rows,
        "texts": composed.texts,
        "losses": losses,
    }
    return ComposeOutput(_joined(images, output_type), masks, maps, info, calls.work)


def _draw(
    executor: Executor, method: Method, scene: Scene, noise: Tensor,
    generators: list[torch.Generator | None], callback, progress: bool,
) -> tuple[Tensor, Trace]:  # fmt: skip
    pipe, scheduler = executor.backbone.pipe, _scheduler(executor, generators, method)
    stages = method.stages(executor.composition, executor, scheduler)

    def on_step(i: int, t: Tensor, z: Tensor) -> Tensor:
        out = callback(pipe, i, t, {"latents": z})
        if not isinstance(out, dict):
            raise MethodError("callback_on_step_end must return a dict, as in diffusers")
        return out.get("latents", z)

    z = denoise(
        stages, scheduler.initial(noise), on_step=on_step if callback else None,
        starting=executor.at, interrupted=lambda: pipe._interrupt, progress=progress,
        description=method.name,
    )  # fmt: skip
    return z, stages[-1].trace


def _scheduler(
    executor: Executor, generators: list[torch.Generator | None], method: Method
) -> StepScheduler:
    """A new one for a run of these pictures, with one generator or one for each picture."""
    backbone, scene = executor.backbone, executor.composition.scene
    generator = generators[0] if len({id(g) for g in generators}) == 1 else generators
    own = scheduler_for(scene.scheduler, backbone.pipe.scheduler)
    moved = method.takes_gradients(executor.composition.placed)
    return StepScheduler(own, scene.num_inference_steps, backbone.device, generator, moved)


def _batches(sources: list, size: int) -> list[list]:
    return [sources[start : start + size] for start in range(0, len(sources), size)]


@contextmanager
def _interruptible(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """`pipe._interrupt` is False at first, whatever an earlier run left; it comes back on exit."""
    former = {"_interrupt": pipe._interrupt} if "_interrupt" in vars(pipe) else {}
    pipe._interrupt = False
    try:
        yield
    finally:
        del pipe._interrupt
        vars(pipe).update(former)


def _check_output(output_type: str, count: int) -> None:
    if output_type not in ("pil", "np", "pt", "latent"):
        raise SceneError(f"output_type {output_type!r} is not one of pil, np, pt, latent")
    if count < 1:
        raise SceneError(f"num_images_per_prompt is {count}; at least 1 is needed")


def _stacked(records: list[Tensor]) -> Tensor:
    return torch.stack(records).cpu() if records else torch.empty(0)


def _joined(images: list, output_type: str):
    if output_type == "pil":
        return [image for batch in images for image in batch]
    if output_type == "np":
        import numpy as np

        return np.concatenate(images)
    return torch.cat(images)
