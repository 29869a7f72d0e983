"""One LoRA's values under the names and in the layout of every program that writes LoRAs."""

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from loraweave.lora.keys import plain_modules
from loraweave.lora.ldm import ldm_names

RANK, ALPHA = 4, 4.0
"""alpha = rank, since not every format can say an alpha"""

Values = dict[str, dict[str, tuple[Tensor, Tensor]]]
"""component -> module path -> (down, up)"""

TEXT = ("k_proj", "v_proj", "q_proj", "out_proj")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
OLD_ORDER = (
    *(f"attn1.{n}" for n in _ATTENTION), "ff.net.0.proj", *(f"attn2.{n}" for n in _ATTENTION)
)  # fmt: skip
NEW_ORDER = (
    *(f"attn1.{n}" for n in _ATTENTION), *(f"attn2.{n}" for n in _ATTENTION), "ff.net.0.proj"
)  # fmt: skip


def values(pipe: StableDiffusionPipeline, text: bool = True, seed: int = 0) -> Values:
    """Random updates of the layers that every format can hold: attention and GEGLU."""
    generator = torch.Generator().manual_seed(seed)
    made: Values = {"unet": {}, "text_encoder": {}}
    for component, model in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        for path, module in plain_modules(model).items():
            wanted = path.endswith((*_ATTENTION, "ff.net.0.proj") if component == "unet" else TEXT)
            if (
                not wanted
                or not isinstance(module, nn.Linear)
                or (not text and component != "unet")
            ):
                continue
            made[component][path] = (
                torch.randn(RANK, module.in_features, generator=generator) * 0.1,
                torch.randn(module.out_features, RANK, generator=generator) * 0.1,
            )
    return made


def deltas(found: Values) -> dict[tuple[str, str], Tensor]:
    return {(c, p): up @ down for c, part in found.items() for p, (down, up) in part.items()}


def write(kind: str, found: Values, pipe: StableDiffusionPipeline, folder: Path) -> Path:
    """Write the values as `kind`; the path to give to the loader."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind.startswith("ED-LoRA"):
        return _write_edlora(kind, found, folder)
    if kind.startswith("PEFT folder"):
        return _write_peft(kind, found, folder)
    path = folder / "lora.safetensors"
    metadata = {}
    if kind == "PEFT bare, alpha in the header":
        metadata["lora_adapter_metadata"] = json.dumps({"lora_alpha": ALPHA, "r": RANK})
    if kind.startswith("cloneofsimo"):
        tensors = _numbered(found, OLD_ORDER if "old" in kind else NEW_ORDER)
    else:
        ldm = ldm_names(plain_modules(pipe.unet))
        tensors = {}
        for component, part in found.items():
            for place, (down, up) in part.items():
                down_name, up_name = _names(kind, component, place, ldm)
                tensors |= {down_name: down, up_name: up}
                if kind.startswith("kohya"):
                    tensors[down_name.rpartition(".lora_down")[0] + ".alpha"] = torch.tensor(ALPHA)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)
    return path


def _names(kind: str, component: str, place: str, ldm: dict[str, str]) -> tuple[str, str]:
    old = f"text_model.{place}" if component == "text_encoder" else place
    prefix = "lora_unet_" if component == "unet" else "lora_te_"
    if kind.startswith("kohya"):
        stem = ldm[place] if kind == "kohya, LDM names" and component == "unet" else old
        stem = prefix + stem.replace(".", "_")
        return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"
    if kind == "pseudo-kohya":
        stem = f"{prefix}{component}_{place}".replace(".", "_")
        return f"{stem}_lora_down.weight", f"{stem}_lora_up.weight"
    if kind == "diffusers":
        stem = f"{component}.{old}"
        return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
    if kind == "diffusers, lora.down":
        stem = f"{component}.{old}"
        return f"{stem}.lora.down.weight", f"{stem}.lora.up.weight"
    if kind.startswith("diffusers old"):
        head, _, last = place.replace(".to_out.0", ".to_out").rpartition(".")
        if component == "text_encoder":
            stem = f"{component}.{old}.lora_linear_layer."
        elif "attn" in place:
            stem = f"{component}.{head}.processor.{last}_lora."
        else:
            stem = f"{component}.{place}.lora."
        if kind.endswith("without prefix"):
            stem = stem.removeprefix("unet.")
        return f"{stem}down.weight", f"{stem}up.weight"
    assert kind.startswith("PEFT bare"), kind
    return f"{old}.lora_A.weight", f"{old}.lora_B.weight"


def _numbered(found: Values, inside: tuple[str, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    blocks = dict.fromkeys(p[: p.index(".transformer_blocks.0.") + 21] for p in found["unet"])
    order = [f"{b}.{n}" for way in ("down", "up", "mid") for b in blocks if b.startswith(way)
             for n in inside]  # fmt: skip
    text = [f"encoder.layers.{n}.self_attn.{name}" for n in range(2) for name in TEXT]
    for component, paths in (("unet", order), ("text_encoder", text)):
        for number, place in enumerate(paths if found[component] else ()):
            down, up = found[component][place]
            tensors |= {f"{component}:{number}:down": down, f"{component}:{number}:up": up}
    return tensors


def _write_peft(kind: str, found: Values, folder: Path) -> Path:
    joint = kind == "PEFT folder"
    for component, part in found.items():
        own = folder if joint or not found["unet"] else folder / component
        if not part:
            continue
        own.mkdir(exist_ok=True)
        old = "text_model." if component == "text_encoder" else ""
        tensors = {f"base_model.model.{old}{place}.lora_{half}.weight": t
                   for place, pair in part.items() for half, t in zip("AB", pair)}  # fmt: skip
        path = own / "adapter_model.safetensors"
        if joint and path.exists():
            from safetensors.torch import load_file

            tensors |= load_file(path)
        save_file(tensors, path)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
        (own / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _write_edlora(kind: str, found: Values, folder: Path) -> Path:
    down, up = (
        (".lora_down.weight", ".lora_up.weight") if kind.endswith("main")
        else ("_lora.down.weight", "_lora.up.weight")
    )  # fmt: skip
    params: dict[str, dict[str, Tensor]] = {}
    for component, part in found.items():
        old = "text_model." if component == "text_encoder" else ""
        params[component] = {f"{old}{p}{half}": t for p, pair in part.items()
                             for half, t in zip((down, up), pair)}  # fmt: skip
    path = folder / "edlora.pth"
    torch.save({"params": params} if kind.endswith("main") else params, path)
    return path


KINDS = [
    "kohya", "kohya, LDM names", "pseudo-kohya", "diffusers", "diffusers, lora.down",
    "diffusers old, with prefix", "diffusers old, without prefix", "PEFT folder",
    "PEFT folder for each model", "PEFT bare", "PEFT bare, alpha in the header",
    "cloneofsimo, old order", "cloneofsimo, new order", "ED-LoRA main", "ED-LoRA research",
]  # fmt: skip
