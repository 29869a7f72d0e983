"""Schedulers by the names that users know, made of the base model's own settings.

Names are those of A1111 and ComfyUI; capitals, spaces, `_`, `-` and `pp` for `++` make no
difference, so `DPM++ 2M Karras` and `dpmpp_2m_karras` are the same.
"""

import re
from typing import Any

from .errors import SceneError
from .messages import close_match

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Diffusers' class of each, and settings other than the base's."""
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
    """A scheduler of diffusers: that of the name with the settings of the base's own.

    Args:
        name: see `SCHEDULERS`; None for the base's own, which is given back.
        own: the base's.
    """
    if name is None:
        return own
    import diffusers

    kind, settings = SCHEDULERS[scheduler_name(name)]
    return getattr(diffusers, kind).from_config(own.config, **settings)
