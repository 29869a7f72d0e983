"""A LoRA file as low-rank updates, one per module of the loaded model.

Inference never puts layers into the model: an `Adapter` maps module paths to updates, and the
engine adds each update's residual to that module's output, for the samples of the batch that
should have it. Nothing of the model changes, so nothing has to be undone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from loraweave.errors import LoraError, UnsupportedLoraFormat
from loraweave.lora.file import LoraFile, read_lora, tensors_sha256
from loraweave.lora.keys import ModuleIndex
from loraweave.lora.match import match_tensors
from loraweave.lora.updates import Dora, LowRank, Update


@dataclass(frozen=True)
class Adapter:
    """A LoRA ready to be applied to one base model.

    Attributes:
        name: what the scene calls it.
        unet: path in `unet.named_modules()` -> update.
        text_encoder: the same for the text encoder; empty if the LoRA has no part there.
        sha256: of the file, or of the tensors if they came from no file.
        metadata: the file's texts.
        embeddings: token -> (n, D), the n vectors that the text encoder reads for that token.
        layered: token -> (X, D), of an ED-LoRA: the vector that the text encoder reads for that
            token where it makes the text for cross-attention layer x, in the order of a forward
            pass.
        dropped: names of the file's tensors that were left out because the caller allowed it.
        tensors: how many the file has.
    """

    name: str
    unet: dict[str, Update]
    text_encoder: dict[str, Update]
    sha256: str
    metadata: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    layered: dict[str, Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    tensors: int = 0

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens that it brings."""
        return (*self.embeddings, *self.layered)

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
    allow_partial: bool = False,
) -> Adapter:
    """Map a LoRA file onto a loaded model. The model is only read, and may be PEFT-wrapped.

    Args:
        name: the adapter's name in the scene.
        source: file, adapter folder, or tensors by name (alpha then only from the tensors).
        unet: the denoiser; its module names and shapes decide what fits.
        text_encoder: the first text encoder.
        allow_pickle: see `read_lora`.
        allow_partial: leave out tensors that have no place in the model, or that are of a kind
            that is not supported, instead of refusing the file; see `Adapter.dropped`.

    Returns:
        An adapter whose tensors have the device and dtype of their modules and no gradient (on
        the meta device: those of the file). A module without an alpha gets alpha = rank, so
        scale 1.

    Raises:
        UnsupportedLoraFormat: damaged, no LoRA, of another kind, or with tensors left over.
        BaseModelMismatch: made for another base model.
        LoraError: no such file.
    """
    if isinstance(source, Mapping):
        tensors = dict(source)
        file = LoraFile(Path(repr(name)), tensors, {}, tensors_sha256(tensors))
    else:
        file = read_lora(source, allow_pickle)
    return adapter_from_file(
        name, file, unet=unet, text_encoder=text_encoder, allow_partial=allow_partial
    )


def adapter_from_file(
    name: str,
    file: LoraFile,
    *,
    unet: nn.Module,
    text_encoder: nn.Module,
    allow_partial: bool = False,
) -> Adapter:
    """`load_adapter` for a file that has been read."""
    words = text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    matched = match_tensors(
        file.path.name, file.tensors, file.metadata, ModuleIndex(unet, text_encoder), unet,
        words.shape[1], allow_partial,
    )  # fmt: skip
    updates: dict[str, dict[str, Update]] = {"unet": {}, "text_encoder": {}}
    for (component, path), update in matched.updates.items():
        updates[component][path] = update
    place = {} if words.is_meta else {"device": words.device, "dtype": words.dtype}
    return Adapter(
        name, updates["unet"], updates["text_encoder"], file.sha256, file.metadata,
        {token: vectors.to(**place) for token, vectors in matched.vectors.items()},
        {token: vectors.to(**place) for token, vectors in matched.layered.items()},
        matched.dropped, len(file.tensors),
    )  # fmt: skip


def adapter_from_peft(name: str, unet: nn.Module, text_encoder: nn.Module) -> Adapter:
    """Read an adapter that `pipe.load_lora_weights(..., adapter_name=name)` has put into a model.

    The scale is PEFT's `scaling`: alpha / rank times the weight last given to `set_adapters`.
    Tensors are shared with the PEFT layers, without gradient. The PEFT layers stay active; use
    `pipe.disable_lora()` so that the update is not added twice.

    Raises:
        LoraError: the model has no adapter of that name.
        UnsupportedLoraFormat: the adapter is neither LoRA nor DoRA, or has biases.
    """
    updates: dict[str, dict[str, Update]] = {"unet": {}, "text_encoder": {}}
    tensors: dict[str, Tensor] = {}
    loaded: set[str] = set()
    for component, model in (("unet", unet), ("text_encoder", text_encoder)):
        for path, layer in model.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            loaded |= layer.scaling.keys()
            if name not in layer.scaling:
                continue
            if name not in layer.lora_A:
                raise UnsupportedLoraFormat(
                    f"Adapter {name!r} is not a LoRA at {component} {path}."
                )
            down, up = layer.lora_A[name], layer.lora_B[name]
            if getattr(up, "bias", None) is not None:
                raise UnsupportedLoraFormat(f"Adapter {name!r} has biases, which is not supported.")
            update = LowRank(_plain(down.weight), _plain(up.weight), float(layer.scaling[name]))
            parts = {"down": update.down, "up": update.up}
            if layer.use_dora.get(name):
                parts["magnitude"] = _plain(layer.lora_magnitude_vector[name].weight)
                base = _plain(layer.get_base_layer().weight)
                update = Dora.on(update, parts["magnitude"].flatten(), "out", base)
            updates[component][path] = update
            tensors |= {f"{component}.{path}.{part}": t for part, t in parts.items()}
    if not any(updates.values()):
        known = ", ".join(sorted(loaded)) or "none"
        raise LoraError(f"The pipeline has no adapter {name!r}; loaded are: {known}.")
    return Adapter(
        name, updates["unet"], updates["text_encoder"], tensors_sha256(tensors),
        tensors=len(tensors),
    )  # fmt: skip


def _plain(weight: object) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight.detach()
