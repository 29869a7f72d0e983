"""cloneofsimo's LoRA files, whose tensors are numbered instead of named: `unet:7:down`.

The numbers follow the order in which the trainer met the layers: the blocks of the UNet down, up,
mid, and inside a transformer block either attn1, feed-forward, attn2 (older) or attn1, attn2,
feed-forward (newer). Which of the two it was only the shapes tell. The text encoder's layers are
counted in the order of registration, k, v, q, out; their shapes are all equal.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from loraweave.errors import BaseModelMismatch, UnsupportedLoraFormat
from loraweave.lora.keys import ModuleIndex, TensorName

NUMBERED = re.compile(r"^(?P<component>unet|text_encoder):(?P<number>\d+):(?P<role>up|down)$")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_OLD = (*(f"attn1.{n}" for n in _ATTENTION), "ff.net.0.proj", *(f"attn2.{n}" for n in _ATTENTION))
_NEW = (*(f"attn1.{n}" for n in _ATTENTION), *(f"attn2.{n}" for n in _ATTENTION), "ff.net.0.proj")
_TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")
_BLOCK = re.compile(r"^(down|up|mid)_block.*\.transformer_blocks\.\d+(?=\.)")


def numbered_names(
    label: str, tensors: Mapping[str, Tensor], index: ModuleIndex
) -> dict[str, TensorName]:
    """Key -> module, for every numbered tensor of a file.

    Args:
        label: what messages call the file.
        tensors: all tensors of the file; those with other names are left alone.
        index: the modules of the loaded model.

    Raises:
        UnsupportedLoraFormat: other layers are numbered than those of the transformer blocks.
        BaseModelMismatch: neither order fits the model's shapes.
    """
    found = {key: match for key in tensors if (match := NUMBERED.match(key))}
    named: dict[str, TensorName] = {}
    for component in ("unet", "text_encoder"):
        own = {key: match for key, match in found.items() if match["component"] == component}
        if not own:
            continue
        modules = index.modules[component]
        orders = [_unet_order(modules, _OLD), _unet_order(modules, _NEW)]
        if component == "text_encoder":
            orders = [_text_order(modules)]
        numbers = {int(match["number"]) for match in own.values()}
        if numbers != set(range(len(orders[0]))):
            raise UnsupportedLoraFormat(
                f"{label} numbers {len(numbers)} layers of the {component}, up to {max(numbers)}; "
                f"the model's attention and GEGLU layers are {len(orders[0])}. Its numbers cannot "
                "be turned into names. Train or convert it with named layers."
            )
        paths = next((paths for paths in orders if _fit(tensors, own, paths, index)), None)
        if paths is None:
            raise BaseModelMismatch(
                f"{label} numbers the layers of the {component}, and their shapes fit the loaded "
                "model in neither of the two known orders. Use a LoRA for this base."
            )
        for key, match in own.items():
            role = "down" if match["role"] == "down" else "up"
            named[key] = TensorName(component, paths[int(match["number"])], role)
    return named


def _unet_order(modules: Mapping[str, object], inside: tuple[str, ...]) -> list[str]:
    blocks = dict.fromkeys(match[0] for path in modules if (match := _BLOCK.match(path)))
    ordered = [b for way in ("down", "up", "mid") for b in blocks if b.startswith(way)]
    return [f"{block}.{name}" for block in ordered for name in inside]


def _text_order(modules: Mapping[str, object]) -> list[str]:
    layers = [path.removesuffix(".k_proj") for path in modules if path.endswith("self_attn.k_proj")]
    return [f"{layer}.{name}" for layer in layers for name in _TEXT]


def _fit(
    tensors: Mapping[str, Tensor], own: Mapping[str, re.Match[str]], paths: list[str],
    index: ModuleIndex,
) -> bool:  # fmt: skip
    for key, match in own.items():
        module = index.modules[match["component"]].get(paths[int(match["number"])])
        if module is None:
            return False
        # A linear layer's (out, in); a 1x1 convolution has the same two first.
        weight = module.weight
        assert isinstance(weight, Tensor)
        size = weight.shape[0 if match["role"] == "up" else 1]
        shape = tensors[key].shape
        if len(shape) != 2 or shape[0 if match["role"] == "up" else 1] != size:
            return False
    return True
