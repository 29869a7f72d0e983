"""What has to be given up so that a picture fits into so much memory.

What the denoiser and the autoencoder need at this size is found by running them on fake tensors,
which takes seconds and no memory. Then the fastest way that fits is chosen: first fewer rows at
once, graphs pass by pass, blocks computed twice for their gradients and a picture decoded in tiles;
then models that wait on the host until they work; then their layers. Pictures stay the same, but
for the seams that tiles may leave.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_submodules
from accelerate.utils.modeling import convert_file_size_to_int
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..backbone.sd1 import StableDiffusion1, models_of
from ..denoise.checkpointing import checkpointing
from ..denoise.composition import Composition
from ..denoise.executor import MemoryMode
from ..denoise.recorder import recording
from ..errors import SceneError
from ..lora.adapter import Adapter
from .live_bytes import LiveBytes
from .measured import memory_in_use

MaxMemory = float | str
Offload = Literal["no", "models", "layers"]
ROWS = 2
"""Fewest of a call: both halves of a picture; what is needed by more is in proportion."""
RESIDUALS = 2
"""Outputs of a layer that adapters may hold beside its own: their sum, and what is gathered."""
GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """Bytes beyond the weights.

    Attributes:
        call: of a denoiser call, per row.
        graph: of the gradient of a call's maps, per row.
        lean: the same with checkpointing.
        decoding, tiled: of one picture's decoding, whole and in tiles.
    """

    call: int
    graph: int
    lean: int
    decoding: int
    tiled: int


ALLOWANCE: Mapping[str, Mapping[str, tuple[float, int]]] = {
    "cpu": {
        "call": (1.2, 250), "graph": (1.2, 250), "lean": (2.5, 300), "decoding": (2.2, 100),
        "tiled": (2.2, 100),
    },
    "other": dict.fromkeys(("call", "graph", "lean", "decoding", "tiled"), (1.1, 256)),
}  # fmt: skip
"""A factor and MiB for what libraries take beyond the tensors: on the CPU what oneDNN was measured
to take with Stable Diffusion 1.5 at 256x256 and 512x512, elsewhere room for cuDNN."""


@dataclass(frozen=True)
class Plan:
    """How a run is kept under its limit.

    Attributes:
        mode: of the executor.
        tiling: decode in tiles.
        offload: models or layers that wait on the host until they work.
        expected: bytes at the peak, weights and all that was there before included.
    """

    mode: MemoryMode
    tiling: bool
    offload: Offload
    expected: int

    def sentence(self, limit: int) -> str:
        """What was chosen, in words."""
        mode, chosen = self.mode, []
        if self.offload != "no":
            chosen.append(f"{self.offload} wait on the host until they work")
        if mode.pass_batch is not None:
            chosen.append(f"at most {mode.pass_batch} rows a call")
        if mode.graph_rows is not None:
            chosen.append(f"gradients of at most {mode.graph_rows} rows")
        if mode.checkpointing:
            chosen.append("with checkpointing")
        if self.tiling:
            chosen.append("decoded in tiles")
        what = ", ".join(chosen) or "nothing has to be given up"
        return f"max_memory {limit / GIB:.2f} GiB: {what}; {self.expected / GIB:.2f} GiB expected"


def read_bytes(limit: MaxMemory) -> int:
    """Bytes from a number, or from `6GB` (powers of 1000) or `6GiB` (of 1024).

    Raises:
        SceneError: not of this form.
    """
    try:
        found = convert_file_size_to_int(
            limit.strip().upper() if isinstance(limit, str) else int(limit)  # a small b is bits
        )
    except (ValueError, OverflowError):
        found = -1
    if found <= 0:
        raise SceneError(f"max_memory {limit!r} is no size; write 6GB, 5.5GiB or 800MB")
    return found


def needs(
    backbone: StableDiffusion1, width: int, height: int, states: Float[Tensor, "T D"]
) -> Needs:
    """What the models need for a picture of this size in pixels.

    Args:
        backbone: with its models as they are.
        width, height: of the picture.
        states: a text as the denoiser gets it; of its shape are all.
    """
    shape = (ROWS, *backbone.latent_shape(width, height)[1:])
    dtype, device = backbone.dtype, backbone.device

    def call(graph: bool, lean: bool = False) -> int:
        with ExitStack() as stack:
            recorder = stack.enter_context(recording(backbone.sites))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(torch.set_grad_enabled(graph))
            z = torch.empty(shape, dtype=dtype, device=device, requires_grad=graph)
            text = torch.empty(ROWS, *states.shape, dtype=dtype, device=device)
            t = torch.zeros((), dtype=torch.long, device=device)
            if lean:
                stack.enter_context(checkpointing(backbone.unet, recorder.deaf))
            with LiveBytes() as seen:
                if graph:
                    with recorder.stopping_early():
                        backbone.denoise(z, t, text)
                    maps = recorder.take()
                    torch.autograd.grad(maps, z, torch.ones_like(maps))
                else:
                    backbone.denoise(z, t, text)
                    recorder.take()
        return (seen.peak + RESIDUALS * seen.largest) // ROWS

    def decoding(tiles: bool) -> int:
        with tiling(backbone.vae, tiles), FakeTensorMode(allow_non_fake_inputs=True):
            z = torch.empty(1, *shape[1:], dtype=backbone.vae.dtype, device=device)
            with torch.no_grad(), LiveBytes() as seen:
                backbone.vae.decode(z)
        return seen.peak

    return Needs(call(False), call(True), call(True, lean=True), decoding(False), decoding(True))


def choose(
    limit: int, found: Needs, *, pipe: StableDiffusionPipeline, device: torch.device, rows: int,
    gradients: bool, in_use: int, pictures: int = 1,
) -> Plan:  # fmt: skip
    """The fastest plan that fits.

    Layers do not wait on the host where there are gradients: a graph would keep their weights.

    Args:
        limit: bytes.
        found: see `needs`.
        pipe: whose weights may wait on the host, if the device is another.
        device: where it runs.
        rows: of all that may be asked for in one call.
        gradients: whether the method takes any.
        in_use: bytes before the run, the weights that are on the device included.
        pictures: that are decoded at once.

    Raises:
        SceneError: nothing fits.
    """
    levels: tuple[Offload, ...] = ("no",)
    if device.type != "cpu":
        levels = ("no", "models") if gradients else ("no", "models", "layers")
    found = replace(found, decoding=found.decoding * pictures, tiled=found.tiled * pictures)
    least = None
    for offload in levels:
        # Of the picture before, the autoencoder is still there when the denoiser begins.
        denoising = in_use - _away(pipe, offload, pipe.unet, pipe.vae)
        decoding = in_use - _away(pipe, offload, pipe.vae)
        plan = _plan(limit, found, device, rows, gradients, denoising, decoding, offload)
        if plan.expected <= limit:
            return plan
        least = min(plan.expected, least or plan.expected)
    assert least is not None
    raise SceneError(
        f"max_memory {limit / GIB:.2f} GiB is too little: this picture needs about "
        f"{least / GIB:.2f} GiB when everything is given up that can be; draw it smaller, "
        "in half precision (dtype), or allow more"
    )


def _plan(
    limit: int, found: Needs, device: torch.device, rows: int, gradients: bool, denoising: int,
    decoding: int, offload: Offload,
) -> Plan:  # fmt: skip
    """The fastest plan with the weights where they are; it may not fit."""
    allowed = ALLOWANCE["cpu" if device.type == "cpu" else "other"]

    def needed(what: str, count: int = 1) -> int:
        factor, more = allowed[what]
        return int(getattr(found, what) * count * factor) + more * 2**20

    def fitting(what: str) -> int:
        most = [n for n in range(ROWS, rows + 1) if denoising + needed(what, n) <= limit]
        return max(most, default=ROWS)

    lean = gradients and denoising + needed("graph", ROWS) > limit
    of_graph = "lean" if lean else "graph"
    calls, graphs = fitting("call"), fitting(of_graph)
    tiles = decoding + needed("decoding") > limit and found.tiled < found.decoding
    peaks = [
        denoising + needed("call", calls),
        denoising + needed(of_graph, graphs) if gradients else 0,
        decoding + needed("tiled" if tiles else "decoding"),
    ]
    mode = MemoryMode(
        calls if calls < rows else None, graphs if gradients and graphs < rows else None, lean,
        limited=True,
    )  # fmt: skip
    return Plan(mode, tiles, offload, max(peaks))


def _away(pipe: StableDiffusionPipeline, offload: Offload, *working: nn.Module) -> int:
    """Bytes of weights that are on the host while some models work."""
    if offload == "no":
        return 0
    every = sum(map(_weights, models_of(pipe).values()))
    if offload == "models":  # a safety checker stays beside the autoencoder
        checker = getattr(pipe, "safety_checker", None)
        return every - sum(_weights(m) for m in (*working, checker) if m is not None)
    layers = (layer for m in working for layer in m.modules() if not [*layer.children()])
    return every - max(map(_weights, layers))


def _weights(model: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))


def _of_adapter(adapter: Adapter) -> int:
    """Bytes of its factors, which are put together on the device."""
    tensors = [x for update in adapter.unet.values() for x in vars(update).values()]
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


@contextmanager
def kept_to(plan: Plan, backbone: StableDiffusion1) -> Iterator[None]:
    """The models as the plan wants them; they are where they were on exit."""
    pipe, device = backbone.pipe, backbone.device
    with ExitStack() as stack:
        stack.enter_context(tiling(backbone.vae, plan.tiling or backbone.vae.use_tiling))
        if plan.offload != "no":
            stack.enter_context(offloaded(pipe, plan.offload, device))
        yield


@contextmanager
def offloaded(
    pipe: StableDiffusionPipeline, offload: Literal["models", "layers"], device: torch.device
) -> Iterator[None]:
    """Weights wait on the host and come to the device to work; they are there again on exit."""
    parts = models_of(pipe)
    order = [parts.pop(name) for name in ("text_encoder", "unet", "vae")]  # as they work
    models = [*order, *parts.values()]
    owned: list[tuple[dict[str, Any], str, Tensor]] = [
        (own, name, tensor)
        for model in models for module in model.modules()
        for own in (module._parameters, module._buffers)
        for name, tensor in own.items() if tensor is not None
    ]  # fmt: skip
    try:
        before = None
        for model in models:
            if offload == "models":
                _, before = cpu_offload_with_hook(model, device, before)
            else:
                model.to("cpu")
                cpu_offload(model, device, offload_buffers=True)
        yield
    finally:
        for model in models:
            remove_hook_from_submodules(model)
        for where, name, tensor in owned:  # accelerate made new ones in their places
            where[name] = tensor
        for model in models:
            model.to(device)


@contextmanager
def tiling(vae: nn.Module, on: bool) -> Iterator[None]:
    """Decoding in tiles or whole; the autoencoder's own setting comes back on exit."""
    former = vae.use_tiling
    vae.use_tiling = on  # type: ignore[assignment]
    try:
        yield
    finally:
        vae.use_tiling = former


def planned(
    limit: MaxMemory, composition: Composition, width: int, height: int, *, rows: int,
    gradients: bool, pictures: int,
) -> tuple[Plan, str]:  # fmt: skip
    """The plan for a picture, and what it chose in words; see `choose`.

    Models that a method has beside the base, such as a segmenter, are not foreseen.

    Raises:
        SceneError: the limit is no size, too little, or the weights are somewhere else already.
    """
    most, backbone = read_bytes(limit), composition.backbone
    models = models_of(backbone.pipe).values()
    if any(hasattr(m, "_hf_hook") for model in models for m in model.modules()):
        raise SceneError(
            "the pipeline is offloaded already, so max_memory has nothing to choose from; use one "
            "of the two"
        )
    device = backbone.device
    plan = choose(
        most, needs(backbone, width, height, composition.text_like()), pipe=backbone.pipe,
        device=device, rows=rows, gradients=gradients, pictures=pictures,
        in_use=memory_in_use(device) + sum(map(_of_adapter, composition.adapters.values())),
    )  # fmt: skip
    return plan, plan.sentence(most)
