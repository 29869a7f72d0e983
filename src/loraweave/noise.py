"""Where the noise of each picture comes from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backbone.sd1 import StableDiffusion1
from .errors import SceneError
from .scene import Scene

Generator = torch.Generator | Sequence[torch.Generator] | None


def noise_sources(
    scene: Scene, generator: Generator, latents: Tensor | None, count: int
) -> list[tuple[torch.Generator | None, Tensor | None]]:
    """Per picture: where its noise comes from.

    Args:
        scene: whose seed counts without a generator, counted up from picture to picture.
        generator, latents: see `compose`.
        count: of pictures.

    Raises:
        SceneError: generators or latents for another number of pictures.
    """
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


def check_latents(
    backbone: StableDiffusion1, size: tuple[int, int], given: Sequence[Tensor | None]
) -> None:
    """Raise SceneError if noise that was given is of another shape than the picture's."""
    shape = backbone.latent_shape(*size)
    for own in given:
        if own is not None and own.shape != shape:
            raise SceneError(
                f"latents of shape {tuple(own.shape[1:])} where a picture of {size[0]}x{size[1]} "
                f"has {shape[1:]} (channels, height, width)"
            )


def seed_of(scene: Scene, generator: torch.Generator | None) -> int:
    """The seed that a picture's record has."""
    return scene.seed if generator is None else generator.initial_seed()
