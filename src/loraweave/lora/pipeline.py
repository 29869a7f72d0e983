"""The adapters of a scene: from files, or from those already loaded in the pipeline."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import LoraError
from ..prompt import full_prompt
from ..scene import PLAIN, Scene
from .adapter import Adapter, adapter_from_peft, load_adapter


@contextmanager
def gather_adapters(
    pipe: StableDiffusionPipeline,
    scene: Scene,
    allow_pickle: bool = False,
    allow_partial: bool = False,
) -> Iterator[dict[str, Adapter]]:
    """Every LoRA that the scene names, by name.

    LoRAs that the scene gives come from their files; other names must be adapters of the
    pipeline. The pipeline's own adapters of these names are switched off inside this context,
    because they act through the passes that name them, and come back on exit; all other active
    adapters go on acting.

    Args:
        pipe: the base model, with adapters of its own or without.
        scene: names the LoRAs.
        allow_pickle, allow_partial: see `load_adapter`.

    Raises:
        LoraError: a name that is nowhere, a LoRA that the prompt does not use, a bad file, an
            embedding whose token the prompt does not have, or an adapter that is fused into the
            weights.
    """
    loaded = {name for names in pipe.get_list_adapters().values() for name in names}
    scene.check_loras(loaded)
    used = [c.name for c in scene.concepts] + [s.name for s in scene.styles]
    adapters = {}
    for name in used:
        lora = scene.loras.get(name)
        if lora is not None and str(lora.path) == PLAIN:
            adapters[name] = Adapter(name, {}, {}, PLAIN)
        elif lora is not None and lora.path is not None:
            adapters[name] = load_adapter(
                name, lora.path, unet=pipe.unet, text_encoder=pipe.text_encoder,
                allow_pickle=allow_pickle, allow_partial=allow_partial,
            )  # fmt: skip
            _check_tokens(adapters[name], scene)
        else:
            adapters[name] = adapter_from_peft(name, pipe.unet, pipe.text_encoder)
    own = [name for name in used if name in loaded]
    if fused := sorted(_fused(pipe).intersection(own)):
        raise LoraError(
            f"{', '.join(fused)}: fused into the pipeline's weights, so it would act twice; call "
            "pipe.unfuse_lora() first"
        )
    with _without(pipe, own):
        yield adapters


def _check_tokens(adapter: Adapter, scene: Scene) -> None:
    """A textual inversion alone acts only through its token, which must be in the prompt."""
    if adapter.unet or adapter.text_encoder or not adapter.tokens:
        return
    text = full_prompt(scene.parsed).text.lower()
    if not any(token.lower() in text for token in adapter.tokens):
        tokens = " ".join(re.sub(r"([<>()|\[\]])", r"\\\1", token) for token in adapter.tokens)
        raise LoraError(
            f"{adapter.name!r} is a textual inversion and acts through its token, which is not in "
            f"the prompt; write [{tokens} noun]({adapter.name})"
        )


def _fused(pipe: StableDiffusionPipeline) -> set[str]:
    """Names of the adapters that `pipe.fuse_lora()` has added to the weights."""
    return {
        name
        for model in (pipe.unet, pipe.text_encoder)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for name in module.merged_adapters
    }


@contextmanager
def _without(pipe: StableDiffusionPipeline, names: list[str]) -> Iterator[None]:
    """Switch some of the pipeline's adapters off."""
    former: list[tuple[Any, list[str], dict[str, bool]]] = []
    try:
        for model in (pipe.unet, pipe.text_encoder) if names else ():
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    layer = cast(nn.Module, module)  # every tuner layer is a module too
                    active = list(module.active_adapters)
                    grads = {n: p.requires_grad for n, p in layer.named_parameters()}
                    former.append((module, active, grads))
                    module.set_adapter([n for n in active if n not in names])
        yield
    finally:
        for module, active, grads in former:
            module.set_adapter(active)
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(grads[name])
