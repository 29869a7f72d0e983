"""Regions whose words are made to look where they belong, for methods with boxes and gradients.

One confined call a step; before early steps the gradient of a loss over the maps of each region's
text, and over self-attention, moves the latent.

`B` pictures, `M` regions, `K` = M + 1 owners, `L` = h*w places of the level that methods read,
`W` words of a region.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..denoise.composition import Composition, Pass
from ..denoise.confined import Confined
from ..denoise.executor import Executor
from ..denoise.isolated import Isolation, level_regions
from ..denoise.loop import Stage, StepScheduler, guided
from ..layout.masks import concept_strength, softened, with_base
from ..layout.regions import joined, shared
from .masked import Layout, laid_out
from .stepping import Stepper, StepSettings


class GuidedRegionsStage(Stage):
    """One run; subclasses give `loss` and say when the latent is moved (`refine`).

    Args:
        composition, executor, scheduler: of the run.
        passes: the owner of the background, then that of each concept's regions.
        settings: of the step.
        layout: where the concepts are.
        isolated: self-attention does not pass between regions.
        soft_edges: sigma of a Gaussian over the regions' edges in cross-attention, in cells.

    Attributes:
        follows: (B,), which pictures the prediction draws after the scene's conditions; None for
            all.
    """

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        passes: Sequence[Pass], settings: StepSettings, layout: Layout, *,
        isolated: bool = False, soft_edges: float = 0.0,
    ):  # fmt: skip
        super().__init__(scheduler)
        self.executor, self.guidance = executor, composition.scene.guidance_scale
        self.regions, self.whose = laid_out(composition, layout)  # (M, H, W)
        self.passes = [passes[0], *(passes[1 + n] for n in self.whose)]
        self.names = [composition.concepts[n].name for n in self.whose]
        self.confined = Confined(executor, self.passes)
        masks = shared(self.regions)[None]
        if soft_edges:
            masks = softened(masks, soft_edges)
        self.masks = with_base(masks)  # (1, K, H, W)
        apart = self.regions if isolated else self.regions[:0]
        self.isolation = Isolation(executor.backbone.unet, apart, executor.backbone.sites)
        self.stepper = Stepper(settings, composition.backbone)
        self.follows: Tensor | None = None

    def loss(
        self, maps: list[Float[Tensor, "W h w"]], looks: Float[Tensor, "L L"],
        regions: Bool[Tensor, "M h w"], i: int,
    ) -> Float[Tensor, ""]:  # fmt: skip
        """Of one picture, before step i.

        Args:
            maps: for each region those of its concept's words in the region's text.
            looks: self-attention, mean over heads and layers; rows are places that look.
            regions: at the maps' level.
            i: number of the step.
        """
        raise NotImplementedError

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        with self.isolation.acting():
            out = self.confined.evaluate(
                self.masks, self.scheduler.scale(latents, t), t, record=True,
                following=self.follows,
            )  # fmt: skip
        assert out.noise is not None
        assert out.maps is not None
        own = joined(self.masks[0, 1:].float(), self.whose)
        self.trace.masks.append(own.expand(len(latents), *own.shape))
        size = self.executor.backbone.map_size(latents)
        self.trace.maps.append(torch.stack([
            joined(torch.stack([concept_strength(m) for m in self._of_words(maps, size)]),
                   self.whose)
            for maps in out.maps[:, :, -1]
        ]).float())  # fmt: skip
        return guided(out.noise[:, 0], self.guidance)

    def looked_at(self, latents: Tensor, t: Tensor) -> list[list[Float[Tensor, "W h w"]]]:
        """For each picture the maps of each region's words, without a gradient."""
        with self.isolation.acting():
            maps = self._maps(latents, t)
        size = self.executor.backbone.map_size(latents)
        return [self._of_words(own, size) for own in maps[:, :, 0]]

    def gradient(
        self, latents: Tensor, t: Tensor, i: int
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B C h w"]]:
        """Losses and their gradients, one picture after the other."""
        size = self.executor.backbone.map_size(latents)
        regions = level_regions(self.regions, size)
        losses, gradients = [], []
        for one in latents.split(1):
            with torch.enable_grad(), self.isolation.acting(record=True):
                leaf = one.detach().clone().requires_grad_()
                maps = self._of_words(self._maps(leaf, t)[0, :, 0], size)
                loss = self.loss(maps, self.isolation.take()[0], regions, i)
                gradients.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        self.executor.calls.backward_rows += len(latents)
        return torch.stack(losses), torch.cat(gradients)

    def _maps(self, latents: Tensor, t: Tensor) -> Float[Tensor, "B K S L T"]:
        maps = self.confined.evaluate(
            self.masks, self.scheduler.scale(latents, t), t, halves="conditional", maps_only=True
        ).maps
        assert maps is not None
        return maps

    def prepared(self, maps: Float[Tensor, "L T"], size: tuple[int, int]) -> Float[Tensor, "L T"]:
        """The maps of one text as the loss sees them; tokens keep their positions."""
        return maps

    def _of_words(self, maps: Float[Tensor, "K L T"], size: tuple[int, int]) -> list[Tensor]:
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        return [
            self.prepared(maps[k], size)[:, self.passes[k].words.of(name)].T.unflatten(1, size)
            for k, name in enumerate(self.names, 1)
        ]
