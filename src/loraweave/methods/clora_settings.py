"""Settings of CLoRA, and which of them do not fit together."""

from typing import Literal

from pydantic import Field

from ..denoise.executor import GradientMode
from ..errors import MethodError
from .stepping import StepSettings


class CLoRASettings(StepSettings):
    """Settings of CLoRA; the defaults are the paper's where it states them.

    The step is that of `StepSettings`.

    Attributes:
        variant: `faithful` does what the authors' code does, `improved` differs in five ways
            (docs/decisions/0004); the four after it are its parts, for ablations, and as it has
            them if they are None.
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
        temperature: of InfoNCE, by which similarities are divided; lower is stricter.
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

    @property
    def takes_gradients(self) -> bool:
        return self.max_update_step > 0

    def check(self) -> None:
        """Raise MethodError for settings that would have no effect together."""
        until, owner = self.mask_until, self.frozen == "owner"
        if self.update_every > 1 and self.update_at == "listed":
            raise MethodError(
                "update_at=listed updates at refinement_steps only, so update_every has nothing to "
                "leave out; use one of the two"
            )
        if owner and until is None:
            raise MethodError(
                "frozen=owner is for steps with frozen masks; say from which step on with "
                "mask_until, for example mask_until=25"
            )
        if until is not None and (not self.masks or until <= self.mask_from):
            raise MethodError(
                f"there are no masks yet that could freeze at step {until}; use masks=true and a "
                "mask_until above mask_from"
            )
        if owner and self.unconditional == "shared":
            raise MethodError(
                "with frozen=owner the halves without a prompt are one call already; use "
                "unconditional=own"
            )
        if owner and self.does("noise") == "stale" and (until or 0) < self.max_update_step:
            raise MethodError(
                "frozen=owner predicts the noise after the updates; use noise=fresh, or a "
                f"mask_until from max_update_step={self.max_update_step} up"
            )
        if self.unconditional == "shared" and not self.base_pass:
            raise MethodError(
                "unconditional=shared takes the base pass's; use base_pass=true with it"
            )


_PARTS = {
    "halves": ("conditional", "both"), "overlaps": ("strongest", "averaged"),
    "noise": ("fresh", "stale"), "decay": ("root", "none"),
}  # fmt: skip
"""Of the improved variant and of the faithful one."""
