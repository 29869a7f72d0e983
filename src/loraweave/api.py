"""The public call: one scene, one method, one pipeline."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from .backbone.sd1 import StableDiffusion1
from .backbone.tokens import joint_embeddings
from .denoise.composition import composition
from .denoise.executor import Executor, executing
from .denoise.loop import StepScheduler, Trace, denoise
from .errors import MethodError, SceneError
from .loading import base_identity, with_shipped_loras
from .lora.pipeline import gather_adapters
from .methods import Method, MethodSettings, get_method
from .output import ComposeOutput, versions
from .scene import LoraRef, Region, Scene

LoraSource = str | Path | LoraRef
Generator = torch.Generator | Sequence[torch.Generator] | None
STEPS = Scene.model_fields["num_inference_steps"].default
GUIDANCE = Scene.model_fields["guidance_scale"].default


def compose(
    pipe: StableDiffusionPipeline,
    prompt: str | Scene,
    *,
    loras: Mapping[str, LoraSource] | None = None,
    method: str | Method = "clora",
    settings: MethodSettings | Mapping[str, Any] | None = None,
    negative_prompt: str = "",
    num_inference_steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    height: int | None = None,
    width: int | None = None,
    num_images_per_prompt: int = 1,
    generator: Generator = None,
    latents: Tensor | None = None,
    regions: Mapping[str, Region] | None = None,
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
        loras: file of each LoRA that the prompt names; names already loaded in `pipe` need none.
        method: name or instance; `loraweave.METHODS` has them all.
        settings: of the method, if `method` is a name.
        negative_prompt: what to steer away from, plain words.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance, as in diffusers.
        height, width: pixels; the model's own size if not given.
        num_images_per_prompt: pictures to draw, one after the other.
        generator: one for all pictures or one for each; without it the scene's seed is used,
            counted up from picture to picture.
        latents: initial noise (num_images_per_prompt, C, h, w) instead of drawing it; standard
            normal, the scheduler's own scale is applied here as in diffusers.
        regions: reserved for methods that take regions; an error for those that do not.
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
    if isinstance(prompt, Scene):
        scene = prompt
        given = {
            "loras": loras, "regions": regions, "negative_prompt": negative_prompt,
            "height": height, "width": width,
            "num_inference_steps": num_inference_steps != STEPS,
            "guidance_scale": guidance_scale != GUIDANCE,
        }  # fmt: skip
        if twice := [name for name, value in given.items() if value]:
            raise SceneError(
                f"a Scene has its own {', '.join(twice)}; use scene.replace(...) to change that"
            )
    else:
        scene = Scene(
            prompt=prompt, negative_prompt=negative_prompt, width=width, height=height,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            loras=dict(loras or {}), regions=dict(regions or {}),  # type: ignore[arg-type]
        )  # fmt: skip
    if isinstance(method, Method):
        if settings is not None:
            raise MethodError(f"this {method.name} has its settings already; give one of the two")
    else:
        method = get_method(method, settings if isinstance(settings, MethodSettings) else
                            dict(settings or {}))  # fmt: skip
    if scene.regions:
        raise MethodError(f"{method.name} takes no regions; leave them out")
    _check_output(output_type, num_images_per_prompt)
    backbone = StableDiffusion1(pipe)
    size = backbone.size(scene.width, scene.height)
    sources = _noise_sources(scene, generator, latents, num_images_per_prompt)
    shape = backbone.latent_shape(*size)
    for _, own in sources:
        if own is not None and own.shape != shape:
            raise SceneError(
                f"latents of shape {tuple(own.shape[1:])} where a picture of {size[0]}x{size[1]} "
                f"has {shape[1:]} (channels, height, width)"
            )

    images, masks, maps, losses = [], [], [], []
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # methods take gradients
        stack.enter_context(_interruptible(pipe))
        adapters = stack.enter_context(
            gather_adapters(pipe, with_shipped_loras(scene), allow_pickle, allow_partial)
        )
        stack.enter_context(backbone.tokens(joint_embeddings(adapters, backbone.tokenizer)))
        composed = stack.enter_context(composition(scene, backbone, adapters))
        executor = stack.enter_context(executing(composed))
        method.check(composed)
        for own_generator, own_latents in sources:
            if own_latents is None:
                noise = backbone.noise(*size, own_generator)
            else:
                noise = own_latents.detach().to(backbone.device, backbone.dtype, copy=True)
            z, trace = _draw(executor, method, scene, noise, own_generator, callback_on_step_end,
                             progress)  # fmt: skip
            images.append(backbone.decode(z, output_type))
            masks.append(_stacked(trace.masks))
            maps.append(_stacked(trace.maps))
            losses.append(trace.losses)
            if pipe._interrupt:
                break
        calls = executor.calls
    info = {
        "scene": scene.model_dump(mode="json"),
        "method": method.name,
        "settings": method.settings.model_dump(mode="json"),
        "base": base_identity(pipe),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": backbone.device.type,
        "loras": {
            n: {"sha256": a.sha256, **({"dropped": list(a.dropped)} if a.dropped else {})}
            for n, a in adapters.items()
        },
        "versions": versions(),
        "concepts": [concept.name for concept in scene.concepts],
        "seeds": [_seed(scene, g) for g, _ in sources[: len(images)]],
        "seconds": time.monotonic() - started,
        "calls": calls.forward,
        "rows": calls.rows,
        "backward_rows": calls.backward_rows,
        "losses": losses,
    }
    return ComposeOutput(_joined(images, output_type), masks, maps, info)


def _draw(
    executor: Executor, method: Method, scene: Scene, noise: Tensor,
    generator: torch.Generator | None, callback, progress: bool,
) -> tuple[Tensor, Trace]:  # fmt: skip
    pipe = executor.backbone.pipe
    scheduler = StepScheduler(
        pipe.scheduler, scene.num_inference_steps, executor.backbone.device, generator
    )
    stages = method.stages(executor.composition, executor, scheduler)

    def on_step(i: int, t: Tensor, z: Tensor) -> Tensor:
        out = callback(pipe, i, t, {"latents": z})
        if not isinstance(out, dict):
            raise MethodError("callback_on_step_end must return a dict, as in diffusers")
        return out.get("latents", z)

    z = denoise(
        stages, scheduler, scheduler.initial(noise), on_step=on_step if callback else None,
        interrupted=lambda: pipe._interrupt, progress=progress, description=method.name,
    )  # fmt: skip
    return z, stages[-1].trace


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


def _noise_sources(
    scene: Scene, generator: Generator, latents: Tensor | None, count: int
) -> list[tuple[torch.Generator | None, Tensor | None]]:
    """Per picture: where its noise comes from."""
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise SceneError(f"{len(generator)} generators for {count} pictures; give one for each")
        generators = list(generator)
    elif generator is not None:
        generators = [generator] * count
    else:
        generators = [torch.Generator().manual_seed(scene.seed + n) for n in range(count)]
    if latents is None:
        return [(g, None) for g in generators]
    if len(latents) != count:
        raise SceneError(f"latents for {len(latents)} pictures where {count} are asked for")
    return list(zip(generators, latents.split(1)))


def _seed(scene: Scene, generator: torch.Generator | None) -> int:
    return scene.seed if generator is None else generator.initial_seed()


def _check_output(output_type: str, count: int) -> None:
    if output_type not in ("pil", "np", "pt", "latent"):
        raise SceneError(f"output_type {output_type!r} is not one of pil, np, pt, latent")
    if count < 1:
        raise SceneError(f"num_images_per_prompt is {count}; at least 1 is needed")


def _stacked(records: list[Tensor]) -> Tensor:
    return torch.stack(records) if records else torch.empty(0)


def _joined(images: list, output_type: str):
    if output_type == "pil":
        return [image for batch in images for image in batch]
    if output_type == "np":
        import numpy as np

        return np.concatenate(images)
    return torch.cat(images)
