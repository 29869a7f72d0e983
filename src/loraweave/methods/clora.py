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

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from ..denoise.composition import Composition, Pass
from ..denoise.confined import Confined
from ..denoise.executor import Evaluation, Executor, GradientMode
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
from .stepping import Stepper, StepSettings, falling


class CLoRASettings(StepSettings):
    """Settings of CLoRA; the defaults are the paper's where it states them.

    The step is that of `StepSettings`.

    Attributes:
        variant: `improved` or `faithful`, see the top of this file; the four after it are its
            parts, for ablations, and as it has them if they are None.
        halves: whose maps are read, the `conditional` half's or the mean of `both`.
        overlaps: places that several concepts claim go to the `strongest` or are `averaged`.
        noise: predicted after the last update (`fresh`) or before it (`stale`).
        decay: of the step, to .7 over the run (`root`), or `none`.
        max_update_step: the latent is updated at steps before this one; 0 for no update at all.
        update_at: `every` step before that, as the authors' code does, or `listed`: only the
            refinement steps, as the paper's text can be read.
        update_every: an update at the first of these steps and at every k-th after it only; the
            refinement steps stay.
        refinement_steps: steps with extra updates.
        refinements: how many extra updates there.
        temperature: of InfoNCE.
        masks: join the passes by masks; without, by their mean.
        mask_from: the first step with masks; before it the passes are averaged.
        mask_threshold: lambda, a fraction of each map's maximum.
        mask_smoothing: sigma of a Gaussian over the maps before thresholding, in positions.
        mask_memory: share of the former steps' maps in the maps that masks are cut from.
        soft_edges: sigma of a Gaussian over the masks, in cells of the latent; 0 for hard edges.
        instances: concepts of one noun get an instance each (see layout/instances.py); the
            `improved` variant only.
        base_pass: with the base model's pass; without it every place goes to some concept.
        mask_until: the first step that takes the masks of the step before, as all after it do;
            None for new masks at each step.
        frozen: how steps with such masks are drawn: by all `passes`, joined as before, or in one
            call in which every place is drawn by its `owner` (denoise/confined.py).
        unconditional: each pass's `own` prediction without the prompt, or the base pass's,
            `shared` by all.
        gradient: one graph for all passes, one pass at a time, or whichever suits the size.
    """

    variant: Literal["improved", "faithful"] = "improved"
    halves: Literal["conditional", "both"] | None = None
    overlaps: Literal["strongest", "averaged"] | None = None
    noise: Literal["fresh", "stale"] | None = None
    decay: Literal["root", "none"] | None = None
    max_update_step: int = Field(25, ge=0)
    update_at: Literal["every", "listed"] = "every"
    update_every: int = Field(1, ge=1)
    refinement_steps: tuple[int, ...] = Field((0, 10, 20), strict=False)  # lists too
    refinements: int = Field(20, ge=0)
    temperature: float = Field(0.5, gt=0)
    masks: bool = True
    mask_from: int = Field(0, ge=0)
    mask_threshold: float = Field(0.4, gt=0, lt=1)
    mask_smoothing: float = Field(0.0, ge=0)
    mask_memory: float = Field(0.0, ge=0, lt=1)
    soft_edges: float = Field(0.0, ge=0)
    base_pass: bool = True
    mask_until: int | None = Field(None, ge=1)
    frozen: Literal["passes", "owner"] = "passes"
    unconditional: Literal["own", "shared"] = "own"
    instances: bool = True
    gradient: GradientMode = "auto"

    def does(self, part: str) -> str:
        """What `halves`, `overlaps`, `noise` or `decay` are, by the variant where not given."""
        return getattr(self, part) or _PARTS[part][self.variant == "faithful"]


_PARTS = {
    "halves": ("conditional", "both"), "overlaps": ("strongest", "averaged"),
    "noise": ("fresh", "stale"), "decay": ("root", "none"),
}  # fmt: skip
"""Of the improved variant and of the faithful one."""


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

    @property
    def takes_gradients(self) -> bool:
        assert isinstance(self.settings, CLoRASettings)
        return self.settings.max_update_step > 0

    def check(self, composition: Composition) -> None:
        super().check(composition)
        assert isinstance(self.settings, CLoRASettings)
        behind = [style.name for style in composition.scene.styles if style.on == BACKGROUND]
        if behind and not self.settings.base_pass:
            raise MethodError(
                f"without the base pass nothing draws the background, on which "
                f"{', '.join(behind)} should act; use base_pass=true"
            )
        self._check_frozen(composition)
        if self.settings.unconditional == "shared":
            if not self.settings.base_pass:
                raise MethodError(
                    "unconditional=shared takes the base pass's; use base_pass=true with it"
                )
            negative = composition.scene.negative_prompts
            if own := [c.name for c in composition.concepts if negative.get(c.name)]:
                raise MethodError(
                    f"unconditional=shared has one negative prompt for all, but {own[0]!r} has one "
                    "of its own; use unconditional=own"
                )

    def _check_frozen(self, composition: Composition) -> None:
        """Raise MethodError for settings that would have no effect, or half a picture drawn."""
        settings = self.settings
        assert isinstance(settings, CLoRASettings)
        until, owner = settings.mask_until, settings.frozen == "owner"
        if settings.update_every > 1 and settings.update_at == "listed":
            raise MethodError(
                "update_at=listed updates at refinement_steps only, so update_every has nothing to "
                "leave out; use one of the two"
            )
        if owner and until is None:
            raise MethodError(
                "frozen=owner is for steps with frozen masks; say from which step on with "
                "mask_until, for example mask_until=25"
            )
        if until is not None and (not settings.masks or until <= settings.mask_from):
            raise MethodError(
                f"there are no masks yet that could freeze at step {until}; use masks=true and a "
                "mask_until above mask_from"
            )
        if owner and settings.unconditional == "shared":
            raise MethodError(
                "with frozen=owner the halves without a prompt are one call already; use "
                "unconditional=own"
            )
        if owner and settings.does("noise") == "stale" and (until or 0) < settings.max_update_step:
            raise MethodError(
                "frozen=owner predicts the noise after the updates; use noise=fresh, or a "
                f"mask_until from max_update_step={settings.max_update_step} up"
            )
        for concept in composition.concepts if owner else ():
            for path in composition.adapters[concept.name].unet:
                if path.startswith("time_embedding."):
                    raise MethodError(
                        f"the LoRA {concept.name!r} changes {path}, which has no place in the "
                        "picture, so no owner of a place can have it; use frozen=passes"
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
        self._confined = Confined(executor, self.passes)

    # -- section 3.2: the update of the latent ------------------------------------------------

    def refine(self, latents: Tensor, i: int, t: Tensor) -> Float[Tensor, "B C h w"]:
        self._stale, self.size = None, self.executor.backbone.map_size(latents)
        updates = self._updates(i)
        for n in range(updates):
            stale = self.settings.does("noise") == "stale" and n == updates - 1
            at_once = stale and self.settings.does("halves") == "both"
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
                halves=self.settings.does("halves"),  # type: ignore[arg-type]
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
        labels = torch.tensor([label for *_, label in self.groups] + alike, device=maps.device)
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
        if frozen and self.settings.frozen == "owner":
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
        self.trace.masks.append(self._masks[:, self.first_concept :].float().cpu())
        return guided(noise, self.guidance)

    def _evaluate(self, latents: Tensor, t: Tensor) -> Evaluation:
        return self.executor.evaluate(
            self.passes, self.scheduler.scale(latents, t), t,
            halves="both" if self.settings.unconditional == "own" else "shared",
        )  # fmt: skip

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
        both = settings.does("halves") == "both"
        now = self._own_words(out.maps.mean(2) if both else out.maps[:, :, -1])
        if memory is not None and settings.mask_memory:
            now = settings.mask_memory * memory + (1 - settings.mask_memory) * now
        self._memory = now
        pictures = [self._claims(b, own) for b, own in enumerate(now)]
        found, strong = (torch.stack(kind) for kind in zip(*pictures))
        self.trace.maps.append(strong.float().cpu())
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


def concept_groups(
    passes: list[Pass], names: list[str], first: int = 1
) -> list[tuple[int, int, int]]:
    """(pass, token, label) of every embedding of the loss.

    Group j: the noun of concept j in every pass, and its trigger in pass j + `first`
    (section 3.2).
    """
    groups = []
    for label, name in enumerate(names):
        for k, one in enumerate(passes):
            own = one.words.of(name) if k == label + first else one.words.nouns[name]
            groups += [(k, token, label) for token in own]
    return groups


def info_nce(
    embeddings: Float[Tensor, "E L"], labels: Int[Tensor, " E"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over ordered positive pairs of -log(e^(s_ap/tau) / (e^(s_ap/tau) + sum_n e^(s_an/tau))).

    `s` is the cosine; negatives are all embeddings of other labels than the anchor's, and the
    other positives are not in the denominator. Zero if there is no positive or no negative pair.
    """
    unit = F.normalize(embeddings, dim=1)
    scores = unit @ unit.T / temperature  # (E, E)
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not positive.any() or same.all():
        return (scores * 0).sum()
    negatives = scores.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)  # (E, 1)
    terms = torch.logaddexp(scores, negatives) - scores
    return terms[positive].mean()
