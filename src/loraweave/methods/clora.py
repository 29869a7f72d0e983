"""CLoRA: contrastive test-time composition (arXiv 2403.19776, ICCV 2025).

Every concept gets a pass of its own: pass k has LoRA k and the prompt with trigger k, pass 0 has
neither. Two things keep the concepts apart:

1. the shared latent is moved so that the attention maps of one concept agree over all passes and
   differ from those of the other concepts (an InfoNCE loss over maps, section 3.2);
2. the passes' noise predictions are joined with masks cut from their own maps (section 3.3).

Two variants. `improved`, the default: maps of the conditional half only, noise predicted after
the last update, step size that falls as in Attend-and-Excite, places that several concepts claim
given to the strongest, concepts of one noun kept to an instance each. `faithful`: what the authors'
code does, which averages the conditional and the unconditional half, takes noise and masks from
before the last update, keeps the step size and averages overlaps. (Its wrong token positions, its
failure on an empty adapter list and its confusion of width and height are not reproduced.)

`B` pictures, `P` = N + 1 passes, `S` halves, `L` = h*w positions, `T` tokens, `E` embeddings.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoise.composition import Composition
from ..denoise.confined import Confined
from ..denoise.executor import Evaluation, Executor, Halves
from ..denoise.loop import Stage, StepScheduler, guided
from ..errors import MethodError
from ..layout.instances import Instances
from ..layout.masks import (
    concept_strength,
    exclusive,
    fused,
    normalized,
    resized,
    smoothed,
    softened,
    threshold_mask,
    with_base,
)
from ..scene import BACKGROUND
from .base import Method
from .clora_settings import CLoRASettings
from .contrast import concept_groups, info_nce
from .stepping import Stepper, falling


class CLoRA(Method):
    """Contrastive attention and masks, one pass per concept."""

    name = "clora"
    summary = "attention maps pulled apart at test time, noise joined by masks"
    source = "Meral et al., CLoRA, arXiv 2403.19776"
    passes = "N + 1, and gradients in the first half"
    refuses = (
        "LoRAs on the background without the base pass",
        "LoRAs of layers without places (time embedding), with frozen=owner",
    )
    Settings = CLoRASettings

    def check(self, composition: Composition) -> None:
        super().check(composition)
        assert isinstance(self.settings, CLoRASettings)
        behind = [style.name for style in composition.scene.styles if style.on == BACKGROUND]
        if behind and not self.settings.base_pass:
            raise MethodError(
                f"without the base pass nothing draws the background, on which "
                f"{', '.join(behind)} should act; use base_pass=true"
            )
        self.settings.check()
        if self.settings.unconditional == "shared":
            negative = composition.scene.negative_prompts
            if own := [c.name for c in composition.concepts if negative.get(c.name)]:
                raise MethodError(
                    f"unconditional=shared has one negative prompt for all, but {own[0]!r} has one "
                    "of its own; use unconditional=own"
                )

    def stages(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler
    ) -> list["CLoRAStage"]:
        return [CLoRAStage(composition, executor, scheduler, self.settings)]  # type: ignore[arg-type]


class CLoRAStage(Stage):
    """The whole method is one run over the timesteps."""

    def __init__(
        self, composition: Composition, executor: Executor, scheduler: StepScheduler,
        settings: CLoRASettings,
    ):  # fmt: skip
        super().__init__(scheduler)
        self.passes = composition.passes()
        self.first_concept = 1  # its pass
        if not settings.base_pass:
            self.passes, self.first_concept = self.passes[1:], 0
        self.names = [concept.name for concept in composition.concepts]
        self.guidance = composition.scene.guidance_scale
        self.executor, self.settings = executor, settings
        self.halves: Halves = settings.does("halves")  # type: ignore[assignment]
        if executor.halves == "conditional":
            self.halves = "conditional"
        self.faithful = settings.variant == "faithful"
        self.groups = concept_groups(self.passes, self.names, self.first_concept)
        nouns = [concept.noun for concept in composition.concepts]
        apart = settings.instances and not self.faithful
        self.instances = Instances(nouns if apart else ())
        self.words = [  # each concept's pass, and the tokens of its words there
            (k, self.passes[k].words.of(n)) for k, n in enumerate(self.names, self.first_concept)
        ]
        self.stepper = Stepper(settings, composition.backbone)
        self.size = (0, 0)  # of the maps
        self._stale: Evaluation | None = None
        self._memory: Tensor | None = None
        self._masks = torch.empty(0)  # (B, P, H, W)
        self._owned: Tensor | None = None
        self._confined = Confined(executor, self.passes) if settings.frozen == "owner" else None

    # -- section 3.2: the update of the latent ------------------------------------------------

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        self._stale, self.size = None, self.executor.backbone.map_size(latents)
        updates = self._updates(i)
        for n in range(updates):
            stale = self.settings.does("noise") == "stale" and n == updates - 1
            at_once = stale and self.halves == self.executor.halves
            if self.settings.unconditional == "shared" or self.executor.mode.limited:
                at_once = False  # its graph would be of the whole forward pass
            if stale and not at_once:
                self._stale = self._evaluate(latents, t)
            losses, gradient, seen = self.executor.gradient(
                self.passes,
                latents,
                lambda z: self.scheduler.scale(z, t),
                t,
                self.loss,
                halves=self.halves,
                mode=self.settings.gradient,
                noise=at_once,
            )
            self._stale = seen or self._stale
            latents = latents - self._step(latents, gradient, i)
            self.trace.losses.append((i, losses))
        return latents

    def _updates(self, i: int) -> int:
        """How often the latent is updated at step i."""
        settings = self.settings
        if i >= settings.max_update_step or len(self.names) < 2:
            return 0  # one group has no negatives: the loss is zero
        if i in settings.refinement_steps:
            return 1 + settings.refinements
        return int(settings.update_at == "every" and i % settings.update_every == 0)

    def loss(self, maps: Float[Tensor, "B P S L T"]) -> Float[Tensor, " B"]:
        """InfoNCE over the concepts' words in all passes of a picture (equation 2)."""
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))  # half is too coarse here
        maps = maps.mean(2)  # over the halves that were evaluated
        alike = [k for group in self.instances.groups for k in group]
        labels = [label for *_, label in self.groups] + alike
        losses = []
        for b, own in enumerate(maps):
            embeddings = normalized(torch.stack([own[k, :, token] for k, token, _ in self.groups]))
            if alike:
                with torch.no_grad():
                    masks, _ = self._claims(b, self._own_words(own[None])[0])
                embeddings = torch.cat([embeddings, masks[alike].flatten(1)])
            losses.append(info_nce(embeddings, labels, self.settings.temperature))
        return torch.stack(losses)

    def _step(self, latents: Tensor, gradient: Tensor, i: int) -> Float[Tensor, "B C h w"]:
        """The displacement; it falls to .7 over the run, but not in the authors' code."""
        if self.settings.does("decay") == "none":
            return self.stepper(latents, gradient)
        fall = falling(i, len(self.scheduler.timesteps)) ** 0.5
        return self.stepper(latents, gradient, fall)

    # -- section 3.3: masks and fusion --------------------------------------------------------

    def predict(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        until = self.settings.mask_until
        frozen = until is not None and i >= until
        if frozen and self._confined is not None:
            if self._owned is None:
                self._owned = self._masks / self._masks.sum(1, keepdim=True)
            out = self._confined.evaluate(self._owned, self.scheduler.scale(latents, t), t)
            noise = None if out.noise is None else out.noise[:, 0]
        else:
            out = self._evaluate(latents, t) if self._stale is None else self._stale
            if not frozen:
                self._masks = self._joining(out, latents, i)
            noise = None if out.noise is None else fused(out.noise, self._masks)
        assert noise is not None
        self.trace.masks.append(self._masks[:, self.first_concept :].float())
        return guided(noise, self.guidance)

    def _evaluate(self, latents: Tensor, t: Tensor) -> Evaluation:
        shared = self.settings.unconditional == "shared" and self.executor.halves == "both"
        return self.executor.evaluate(
            self.passes, self.scheduler.scale(latents, t), t, halves="shared" if shared else None
        )

    def _joining(self, out: Evaluation, latents: Tensor, i: int) -> Float[Tensor, "B P H W"]:
        """The masks by which the passes are joined at step i, at the latents' size."""
        masks = self.masks(out, latents)
        if not self.settings.masks or i < self.settings.mask_from:
            masks = torch.ones_like(masks)
        masks = resized(masks, latents.shape[-2:])
        return softened(masks, self.settings.soft_edges) if self.settings.soft_edges else masks

    def masks(self, out: Evaluation, latents: Tensor) -> Float[Tensor, "B P h w"]:
        """One mask per pass, from the words of each concept in its own pass."""
        assert out.maps is not None
        self.size = self.executor.backbone.map_size(latents)
        settings, memory = self.settings, self._memory
        both = self.halves == "both"
        now = self._own_words(out.maps.mean(2) if both else out.maps[:, :, -1])
        if memory is not None and settings.mask_memory:
            now = settings.mask_memory * memory + (1 - settings.mask_memory) * now
        self._memory = now
        pictures = [self._claims(b, own) for b, own in enumerate(now)]
        found, strong = (torch.stack(kind) for kind in zip(*pictures))
        self.trace.maps.append(strong.float())
        averaged = settings.does("overlaps") == "averaged"
        owned = found if averaged else exclusive(found, strong)
        if settings.base_pass:
            owned = with_base(owned)
        else:  # what nobody claims goes to the strongest; in the authors' code to the first
            unclaimed = exclusive(torch.ones_like(strong), strong)
            if self.faithful:
                unclaimed = torch.zeros_like(strong)
                unclaimed[:, 0] = 1
            owned = torch.where(owned.sum(1, keepdim=True) == 0, unclaimed, owned)
        return owned

    def _own_words(self, maps: Float[Tensor, "B P L T"]) -> Float[Tensor, "B W L"]:
        """The maps of every concept's words in its own pass, one after the other."""
        return torch.cat([maps[:, k, :, own].transpose(1, 2) for k, own in self.words], 1)

    def _claims(
        self, picture: int, maps: Float[Tensor, "W L"]
    ) -> tuple[Float[Tensor, "N h w"], Float[Tensor, "N h w"]]:
        """Where each concept's words are strong enough, and how strong they are."""
        found, strong = [], []
        for part in maps.split([len(own) for _, own in self.words]):
            part = smoothed(part.unflatten(1, self.size), self.settings.mask_smoothing)
            found.append(threshold_mask(part, self.settings.mask_threshold))
            strong.append(concept_strength(part))
        strengths = torch.stack(strong)
        return self.instances.shared_out(picture, torch.stack(found), strengths), strengths
