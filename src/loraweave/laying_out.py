"""Where the concepts of a picture are: as the caller says, or as the base model would have them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .denoise.executor import Executor
from .denoise.looking import attention_of_nouns
from .denoise.loop import StepScheduler
from .errors import MethodError, RegionError, SceneError
from .layout.auto import SHARE, boxes_of
from .layout.regions import as_masks
from .methods import Method
from .region import Region, in_order
from .scene import Scene


def sorted_regions(
    regions: Mapping[str, Any] | Sequence[Any] | None, scene: Scene
) -> tuple[dict[str, tuple[Region, ...]], dict[str, list[Tensor]]]:
    """The regions that a scene can hold, and the masks that are at hand, by concept.

    Args:
        regions: see `compose`.
        scene: whose concepts they are for.

    Raises:
        RegionError: something that is no region, or not one for each concept without names.
    """
    plain: dict[str, tuple[Region, ...]] = {}
    masks: dict[str, list[Tensor]] = {}
    named = regions or {}
    if not isinstance(named, Mapping):
        named = in_order(named, [concept.name for concept in scene.concepts])
    for name, given in named.items():
        try:
            found = as_masks(name, given)
        except RegionError as error:
            raise RegionError(f"regions.{name}: {error}") from None
        if own := tuple(region for region in found if isinstance(region, Region)):
            plain[name] = own
        if at_hand := [mask for mask in found if isinstance(mask, Tensor)]:
            masks[name] = at_hand
    return plain, masks


def check_auto(wanted: bool, method: Method, lacking: Sequence[str]) -> None:
    """Raise if a layout is asked for where it makes no sense.

    Args:
        wanted: whether it is.
        method: that draws.
        lacking: the concepts without a region.

    Raises:
        MethodError: the method takes no regions, or cuts the picture itself.
        SceneError: every concept has a region already.
    """
    if not wanted:
        return
    if method.regions == "no":
        raise MethodError(f"{method.name} takes no regions; leave auto_regions out")
    if getattr(method.settings, "layout", "regions") != "regions":
        raise MethodError(f"{method.name} with layout 'strips' cuts the picture itself; leave out "
                          "auto_regions or the setting")  # fmt: skip
    if not lacking:
        raise SceneError("every concept has a region already; leave out auto_regions")


def lay_out(
    executor: Executor, scheduler: StepScheduler, noise: Tensor, generator: torch.Generator | None
) -> dict[str, Region]:
    """By concept a box where the base model's attention puts it, for one picture.

    Args:
        executor: of the scene.
        scheduler: used up here.
        noise: the picture's, standard normal.
        generator: that the scheduler draws from; the run itself draws as if not looked at.
    """
    state = None if generator is None else generator.get_state()
    maps = attention_of_nouns(executor, scheduler, scheduler.initial(noise), SHARE)
    if generator is not None and state is not None:
        generator.set_state(state)
    concepts = executor.composition.concepts
    boxes = boxes_of(maps[0].cpu(), [concept.noun for concept in concepts])
    return {c.name: Region(box=box) for c, box in zip(concepts, boxes)}
