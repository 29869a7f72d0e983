"""Schedulers by the names that users know, with the noise schedule of the base model.

Names are those of A1111 and ComfyUI; capitals, spaces, `_`, `-` and `pp` for `++` make no
difference, so `DPM++ 2M Karras` and `dpmpp_2m_karras` are the same. What a name means does not
depend on the sampler that the base came with.
"""

import re
from typing import Any, NamedTuple

from .errors import SceneError
from .messages import close_match


class Known(NamedTuple):
    """One that has a name.

    Attributes:
        label: as A1111 writes it.
        kind: diffusers' class.
        settings: where they are not the class's own.
    """

    label: str
    kind: str
    settings: dict[str, Any]


_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_DPM = "DPMSolverMultistepScheduler"
SCHEDULERS: dict[str, Known] = {
    # Latents are not in [-1, 1], whatever the class says by itself.
    "ddim": Known("DDIM", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "pndm": Known("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
    "lms": Known("LMS", "LMSDiscreteScheduler", {}),
    "euler": Known("Euler", "EulerDiscreteScheduler", {}),
    "euler_karras": Known("Euler Karras", "EulerDiscreteScheduler", _KARRAS),
    "euler_a": Known("Euler a", "EulerAncestralDiscreteScheduler", {}),
    "heun": Known("Heun", "HeunDiscreteScheduler", {}),
    "dpm++_2m": Known("DPM++ 2M", _DPM, {}),
    "dpm++_2m_karras": Known("DPM++ 2M Karras", _DPM, _KARRAS),
    "dpm++_2m_sde": Known("DPM++ 2M SDE", _DPM, _SDE),
    "dpm++_2m_sde_karras": Known("DPM++ 2M SDE Karras", _DPM, _SDE | _KARRAS),
    "deis": Known("DEIS", "DEISMultistepScheduler", {}),
    "unipc": Known("UniPC", "UniPCMultistepScheduler", {}),
}
OF_THE_BASE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "steps_offset",
)  # fmt: skip
"""Settings that are the model's, not the sampler's."""
_ALSO = {"eulerancestral": "euler_a", "unipcmultistep": "unipc", "plms": "pndm"}


def scheduler_name(name: str) -> str:
    """The name in `SCHEDULERS` that is meant.

    Raises:
        SceneError: none is.
    """
    short = re.sub(r"[\s_-]", "", name.lower()).replace("dpmpp", "dpm++")
    found = {re.sub("_", "", known): known for known in SCHEDULERS} | _ALSO
    if short not in found:
        raise SceneError(
            f"no scheduler {name!r}{close_match(name, SCHEDULERS)}; there are: "
            f"{', '.join(SCHEDULERS)}; leave it out for the base model's own"
        )
    return found[short]


def scheduler_for(name: str | None, own: Any) -> Any:
    """A scheduler of diffusers: that of the name with the noise schedule of the base's own.

    Args:
        name: see `SCHEDULERS`; None for the base's own, which is given back.
        own: the base's.
    """
    if name is None:
        return own
    import diffusers

    known = SCHEDULERS[scheduler_name(name)]
    schedule = {key: own.config[key] for key in OF_THE_BASE if key in own.config}
    return getattr(diffusers, known.kind).from_config(schedule, **known.settings)
