"""From the tensor names of a LoRA file to modules of the model that is loaded.

The trainers write the same thing under many names:

    kohya          lora_unet_down_blocks_0_attentions_0_..._to_k.lora_down.weight  (and .alpha)
    pseudo-kohya   lora_unet_unet_down_blocks_0_..._to_k_lora_down.weight
    diffusers      unet.down_blocks.0....attn1.to_k.lora_A.weight
                   unet.down_blocks.0....attn1.to_k.lora.down.weight
    diffusers old  [unet.]down_blocks.0....attn1.processor.to_k_lora.down.weight
    PEFT           base_model.model.down_blocks.0....attn1.to_k.lora_A.weight, or without prefix
    LDM names      lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_k.lora_down.weight
    ED-LoRA        unet.down_blocks.0....attn1.to_k[.lora_down|_lora.down].weight

Underscores cannot be turned back into dots by rule, so names are looked up in an index of the
model's own module names; that works for any architecture.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from loraweave.lora.ldm import ldm_names

Role = str
"""Which part of an update a tensor is: "down", "up", "mid" (of a Tucker-decomposed LoCon), "alpha",
"magnitude" (peft's DoRA), "dora_scale" (LyCORIS's), or the name that LyCORIS gives it: hada_w1_a,
hada_t1, lokr_w1, lokr_w2_b, lokr_t2, ..."""

_ROLE = re.compile(
    r"""^(?P<stem>.+?)(?:
        [._]lora(?:_linear_layer)?[._](?P<way>down|up)\.weight
      | \.lora_(?P<letter>[AB])(?:\.[^.]+)?\.weight
      | \.lora_(?P<mid>mid)\.weight
      | (?:[._]lora)?\.(?P<alpha>alpha)
      | \.lora_(?P<magnitude>magnitude)_vector(?:\.[^.]+)??(?:\.weight)?
      | \.(?P<other>dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))
        (?:\.default)?
    )$""",
    re.VERBOSE,
)
_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "transformer.": "transformer",
    "base_model.model.": None,
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
}
_KINDS = {  # looked for in this order; the patterns are what the trainers put in the names
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "OFT": re.compile(r"\.oft_|\.oft\.|boft_"),
    "IA3": re.compile(r"ia3_|\.on_input$|\.ia3\."),
    "full weight differences": re.compile(r"\.diff(_b)?$|\.w_norm$|\.b_norm$"),
    "LoRA with bias": re.compile(r"lora_B(\.[^.]+)?\.bias$|lora_up\.bias$"),
}


@dataclass(frozen=True)
class TensorName:
    """A tensor name taken apart.

    Attributes:
        component: "unet", "text_encoder", ... if the name says so, else None.
        stem: the module's part of the name, with dots or with underscores.
        role: which part of the update the tensor is.
    """

    component: str | None
    stem: str
    role: Role


def split_name(name: str) -> TensorName | None:
    """Take a tensor name apart; None if it is not the name of a LoRA tensor."""
    match = _ROLE.match(name)
    if match is None:
        return None
    role = match["way"] or match["mid"] or match["alpha"] or match["magnitude"] or match["other"]
    if role is None:
        role = "down" if match["letter"] == "A" else "up"
    component, stem = None, match["stem"]
    while prefix := next((p for p in _PREFIXES if stem.startswith(p)), None):
        component = _PREFIXES[prefix] or component
        stem = stem.removeprefix(prefix)
    if "." not in stem:  # pseudo-kohya says the component twice
        for doubled in ("unet_", "text_encoder_"):
            if component and doubled == f"{component}_":
                stem = stem.removeprefix(doubled)
    return TensorName(component, stem, role)


def kind_of(name: str) -> str | None:
    """What a tensor of a kind that is not supported looks like ("GLoRA", "OFT", ...), or None."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(name)), None)


def plain_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Module path -> the plain nn.Linear or nn.Conv2d there, as if PEFT had never wrapped it.

    The paths are those of `model.named_modules()` on a model without adapters. On a wrapped model
    the module found is the base layer, the very object that was there before.
    """
    return dict(_walk(model, ""))


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if isinstance(module, nn.Linear | nn.Conv2d):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _walk(child, f"{path}.{name}" if path else name)


class ModuleIndex:
    """Finds the modules of a UNet and a text encoder under all the names that files use.

    Attributes:
        modules: component -> module path -> plain module.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module):
        self.modules = {"unet": plain_modules(unet), "text_encoder": plain_modules(text_encoder)}
        ldm = ldm_names(self.modules["unet"])
        # names[component][path or path with underscores] = path
        self._names: dict[str, dict[str, str]] = {}
        for component, modules in self.modules.items():
            table: dict[str, str] = {}
            for path in modules:
                more = [ldm[path]] if component == "unet" and path in ldm else []
                for alias in (*_aliases(component, path), *more):
                    table.setdefault(alias.replace(".", "_"), path)
                    table[alias] = path
            self._names[component] = table

    def find(self, name: TensorName) -> tuple[str, str] | None:
        """(component, module path) of a tensor, or None if the models have no such module."""
        components = [name.component] if name.component else list(self._names)
        for component in components:
            table = self._names.get(component, {})
            for spelling in _spellings(component, name.stem):
                if spelling in table:
                    return component, table[spelling]
        return None


def _aliases(component: str, path: str) -> list[str]:
    """transformers 5 took `text_model.` out of CLIPTextModel's names; files have both forms."""
    if component != "text_encoder":
        return [path]
    short = path.removeprefix("text_model.")
    return [path, short, f"text_model.{short}"]


_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def _spellings(component: str, stem: str) -> Iterator[str]:
    """The stem, and what it is called today if an old diffusers wrote it."""
    yield stem
    stem = stem.replace(".processor.", ".")
    yield stem
    if component == "text_encoder":
        head, _, last = stem.rpartition(".")
        if last in _OLD_TEXT_NAMES:
            yield f"{head}.{_OLD_TEXT_NAMES[last]}"
    yield f"{stem}.0" if "." in stem else f"{stem}_0"  # to_out became to_out.0
