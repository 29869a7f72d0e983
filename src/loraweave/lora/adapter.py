"""A LoRA file as low-rank updates, one per module of the loaded model.

Inference never puts layers into the model: an `Adapter` maps module paths to updates, and the
engine adds each update's residual to that module's output, for the samples of the batch that
should have it. Nothing of the model changes, so nothing has to be undone.

Shapes: r rank, in/out the module's features or channels, (kh, kw) the convolution's kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from loraweave.errors import LoraError, UnsupportedLoraFormat
from loraweave.lora.alphas import Alphas
from loraweave.lora.file import read_lora, tensors_sha256
from loraweave.lora.keys import ModuleIndex
from loraweave.lora.match import match_tensors


@dataclass(frozen=True)
class LowRank:
    """One module's update: delta W = scale * up @ down.

    Attributes:
        down: (r, in), or (r, in, kh, kw) for a convolution.
        up: (out, r), or (out, r, 1, 1) for a convolution.
        scale: alpha / r, as in the file; the weight that a user gives multiplies this.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, x: Tensor, module: nn.Module) -> Tensor:
        """What this update adds to `module(x)`; same shape as that output.

        Args:
            x: the module's input, of the update's dtype: (..., in), or (B, in, h, w).
            module: the plain module, for the stride, padding and dilation of a convolution.
        """
        if isinstance(module, nn.Conv2d):
            low = F.conv2d(
                x, self.down, None, module.stride, module.padding, module.dilation
            )  # (B, r, h', w')
            return F.conv2d(low, self.up) * self.scale
        return F.linear(F.linear(x, self.down), self.up) * self.scale

    def weight(self) -> Tensor:
        """The whole delta W, of the shape of the module's weight."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).reshape(
            self.up.shape[0], *self.down.shape[1:]
        )

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> "LowRank":
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


@dataclass(frozen=True)
class Adapter:
    """A LoRA ready to be applied to one base model.

    Attributes:
        name: what the scene calls it.
        unet: path in `unet.named_modules()` -> update.
        text_encoder: the same for the text encoder; empty if the LoRA has no part there.
        sha256: of the file, or of the tensors if they came from no file.
        metadata: the file's texts.
    """

    name: str
    unet: dict[str, LowRank]
    text_encoder: dict[str, LowRank]
    sha256: str
    metadata: dict[str, str] = field(default_factory=dict)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Adapter":
        """A copy on another device or in another type; tensors already there are shared."""
        return replace(
            self,
            unet={path: update.to(device, dtype) for path, update in self.unet.items()},
            text_encoder={p: update.to(device, dtype) for p, update in self.text_encoder.items()},
        )


def load_adapter(
    name: str,
    source: str | Path | Mapping[str, Tensor],
    *,
    unet: nn.Module,
    text_encoder: nn.Module,
    allow_pickle: bool = False,
) -> Adapter:
    """Map a LoRA file onto a loaded model. The model is only read, and may be PEFT-wrapped.

    Args:
        name: the adapter's name in the scene.
        source: file, adapter folder, or tensors by name (alpha then only from the tensors).
        unet: the denoiser; its module names and shapes decide what fits.
        text_encoder: the first text encoder.
        allow_pickle: see `read_lora`.

    Returns:
        An adapter whose tensors have the device and dtype of their modules and no gradient.
        A module without an alpha gets alpha = rank, so scale 1.

    Raises:
        UnsupportedLoraFormat: damaged, no LoRA, of another kind, or with tensors left over.
        BaseModelMismatch: made for another base model.
        LoraError: no such file.
    """
    if isinstance(source, Mapping):
        label, tensors, metadata = repr(name), dict(source), {}
        sha256 = tensors_sha256(tensors)
    else:
        file = read_lora(source, allow_pickle)
        label, tensors, metadata, sha256 = file.path.name, file.tensors, file.metadata, file.sha256

    index = ModuleIndex(unet, text_encoder)
    alphas = Alphas(label, metadata)
    updates: dict[str, dict[str, LowRank]] = {"unet": {}, "text_encoder": {}}
    for (component, path), (down, up, alpha) in match_tensors(label, tensors, index, unet).items():
        rank = down.shape[0]
        scale = alphas.scale(component, path, rank) if alpha is None else alpha / rank
        update = LowRank(down.detach(), up.detach(), scale)
        weight = index.modules[component][path].weight
        assert isinstance(weight, Tensor)
        if weight.is_floating_point():  # a quantised module keeps the file's own type
            update = update.to(weight.device, weight.dtype)
        updates[component][path] = update
    return Adapter(name, updates["unet"], updates["text_encoder"], sha256, metadata)


def adapter_from_peft(name: str, unet: nn.Module, text_encoder: nn.Module) -> Adapter:
    """Read an adapter that `pipe.load_lora_weights(..., adapter_name=name)` has put into a model.

    The scale is PEFT's `scaling`: alpha / rank times the weight last given to `set_adapters`.
    Tensors are shared with the PEFT layers, without gradient. The PEFT layers stay active; use
    `pipe.disable_lora()` so that the update is not added twice.

    Raises:
        LoraError: the model has no adapter of that name.
        UnsupportedLoraFormat: the adapter is not a plain LoRA (DoRA, bias, embeddings).
    """
    updates: dict[str, dict[str, LowRank]] = {"unet": {}, "text_encoder": {}}
    loaded: set[str] = set()
    for component, model in (("unet", unet), ("text_encoder", text_encoder)):
        for path, layer in model.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            loaded |= layer.scaling.keys()
            if name not in layer.scaling:
                continue
            if name not in layer.lora_A or layer.use_dora.get(name):
                raise UnsupportedLoraFormat(
                    f"Adapter {name!r} is not a plain LoRA at {component} {path}."
                )
            down, up = layer.lora_A[name], layer.lora_B[name]
            if getattr(up, "bias", None) is not None:
                raise UnsupportedLoraFormat(f"Adapter {name!r} has biases, which is not supported.")
            updates[component][path] = LowRank(
                _plain(down.weight), _plain(up.weight), float(layer.scaling[name])
            )
    if not any(updates.values()):
        known = ", ".join(sorted(loaded)) or "none"
        raise LoraError(f"The pipeline has no adapter {name!r}; loaded are: {known}.")
    tensors = {
        f"{component}.{path}.{half}": getattr(update, half)
        for component, part in updates.items()
        for path, update in part.items()
        for half in ("down", "up")
    }
    return Adapter(name, updates["unet"], updates["text_encoder"], tensors_sha256(tensors))


def _plain(weight: object) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight.detach()
