"""FLOPs of a picture without drawing it: what is called is noted on a tiny base, and counted once.

A run notes down what every denoiser call computes (`Work`). What is called does not depend on the
base (but by methods that refine until a value is reached, which are refused), so a tiny one with
random weights tells it in seconds; each kind of call is then counted on the base in question, on
torch's meta device, and multiplied. Not counted: what a method does with maps outside of the
denoiser. tests/test_speed.py compares with a real run.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..api import compose
from ..backbone.sd1 import StableDiffusion1
from ..backbone.sites import reading_sites
from ..denoise.attention import replaced
from ..denoise.composition import Composition, Pass, Words, composition
from ..denoise.confined import Confined, Place
from ..denoise.executor import Executor, Work, executing
from ..denoise.hooks import adapter_hooks
from ..evaluate.flops import flop_counter
from ..lora.pipeline import gather_adapters
from ..scene import LoraRef, Scene
from .bases import BaseName, speed_base, speed_loras, speed_prompt
from .naive import Recording

STEP = torch.tensor(1)


class CallCosts:
    """Counts kinds of denoiser calls on one base of pictures of one size.

    Args:
        base: whose shapes count.
        size: (width, height) in pixels.
        count: of LoRAs.
        rank: of each.
    """

    def __init__(self, base: BaseName, size: tuple[int, int], count: int, rank: int):
        self.pipe = speed_base(base, "meta", torch.float32)
        self.size, self.known = size, {}
        # Each is counted once: all LoRAs have the same shapes.
        self.text, self.decoding = cache(self._text), cache(self._decoding)
        self._stock = cache(self._stock_call)
        with tempfile.TemporaryDirectory() as folder:
            files = speed_loras(self.pipe, Path(folder), count, rank)
            refs = {name: LoraRef(path=path) for name, path in files.items()}
            scene = Scene(
                prompt=speed_prompt(count), loras=refs, width=size[0], height=size[1]
            )  # fmt: skip
            with gather_adapters(self.pipe, scene) as adapters:
                self.scene, self.adapters = scene, dict(adapters)

    def picture(self, work: Mapping[Work, int], texts: Sequence[Sequence[str]]) -> int:
        """FLOPs of all calls, of reading the texts and their negative ones, and of decoding.

        Args:
            work: the calls.
            texts: whose LoRAs read each.
        """
        calls = sum(self.call(kind) * count for kind, count in work.items())
        return calls + sum(self.text(len(readers)) for readers in texts) + self.decoding()

    def call(self, kind: Work) -> int:
        """One call."""
        if kind not in self.known:
            used = {name: self.adapters[name] for own in kind.adapters for name in own}
            with (
                composition(self.scene, StableDiffusion1(self.pipe), used) as composed,
                executing(composed) as executor,
                torch.set_grad_enabled(kind.differentiated),
            ):
                first, later = self._counted(kind, composed, executor)
                self.known[kind._replace(fresh=True)] = first
                self.known[kind._replace(fresh=False)] = later
        return self.known[kind]

    def plain(self, steps: int) -> int:
        """A picture by stock diffusers with one LoRA, unfused as peft adds it."""
        return steps * self._stock(1) + self.text(1) + self.decoding()

    def naive(self, loras: int, updates: Sequence[int]) -> int:
        """A picture by `naive_picture`."""
        still = sum(not count for count in updates)

        def one_pass(own: int) -> int:
            moving = sum(updates) * self._stock(own, recorded=True, differentiated=True)
            return self.text(own) + still * self._stock(own, recorded=True) + moving

        return self.decoding() + one_pass(0) + loras * one_pass(1)

    def _stock_call(self, loras: int, recorded: bool = False, differentiated: bool = False) -> int:
        """One call on both halves without our parts, with so many LoRAs."""
        leaf = torch.zeros(self._shape(), device="meta", requires_grad=differentiated)
        own = [*self.adapters.values()][:loras]
        recorder = Recording() if recorded else None
        sites = reading_sites(self.pipe.unet) if recorder else []
        with (
            adapter_hooks(self.pipe.unet, "unet", own) as hooks, replaced(sites, recorder),
            hooks.rows([[(adapter, 1.0) for adapter in own]] * 2), _fused_attention(),
            torch.set_grad_enabled(differentiated), flop_counter() as counter,
        ):  # fmt: skip
            self.pipe.unet(leaf.expand(2, -1, -1, -1), STEP, self._states())
            if recorder and differentiated:
                torch.autograd.grad(torch.cat(recorder.kept).sum(), leaf)
        return counter.get_total_flops()

    def _text(self, loras: int) -> int:
        """Two texts through the text encoder with so many LoRAs."""
        ids = torch.zeros(2, self.pipe.tokenizer.model_max_length, dtype=torch.long, device="meta")
        own = [*self.adapters.values()][:loras]
        rows = [[(adapter, 1.0) for adapter in own]] * 2
        with (
            adapter_hooks(self.pipe.text_encoder, "text_encoder", own) as hooks,
            hooks.rows(rows), flop_counter() as counter, torch.no_grad(),
        ):  # fmt: skip
            self.pipe.text_encoder(ids)
        return counter.get_total_flops()

    def _decoding(self) -> int:
        """The latents of one picture through the autoencoder."""
        latents = torch.zeros(self._shape(), device="meta")
        with flop_counter() as counter, torch.no_grad():
            self.pipe.vae.decode(latents)
        return counter.get_total_flops()

    def _shape(self) -> tuple[int, int, int, int]:
        return StableDiffusion1(self.pipe).latent_shape(*self.size)

    def _states(self) -> Tensor:
        config = self.pipe.text_encoder.config
        return torch.zeros(2, config.max_position_embeddings, config.hidden_size, device="meta")

    def _counted(self, kind: Work, composed: Composition, executor: Executor) -> tuple[int, int]:
        """Of the first such call, which reads the texts, and of a later one."""
        passes = [
            Pass("", tuple((self.adapters[name], 1.0) for name in own), Words({}, {}),
                 self._states())
            for own in kind.adapters
        ]  # fmt: skip
        latents = torch.zeros((kind.pictures, *self._shape()[1:]), device="meta")
        leaf = latents.requires_grad_(kind.differentiated)
        halves = "both" if kind.halves == 2 else "conditional"
        if kind.confined:
            confined = _Counted(executor, passes, kind.by_query)
            confined.each = kind.owners
            masks = torch.ones((1, len(passes), *leaf.shape[-2:]), device="meta")
            evaluate = lambda: confined.evaluate(  # noqa: E731
                masks, leaf, STEP, halves=halves, maps_only=kind.stopped, record=kind.recorded
            )
        else:
            evaluate = lambda: executor.evaluate(  # noqa: E731
                passes, leaf, STEP, halves="conditional", maps_only=kind.stopped
            )
        with _fused_attention():
            with torch.no_grad(), flop_counter() as first:
                evaluate()
            with flop_counter() as later:
                out = evaluate()
                reading = first.get_total_flops() - later.get_total_flops()
                if kind.differentiated:
                    assert out.maps is not None
                    torch.autograd.grad(out.maps.sum(), leaf)
        return later.get_total_flops() + reading, later.get_total_flops()


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as it is computed where there are values; without, torch takes it apart, and its
    gradient needs one product less."""
    former = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = former


class _Counted(Confined):
    """Whoever owns what: together the owners' attention has so many queries for each position.

    Attributes:
        each: owners of a position.
    """

    each = 1

    def _places(self, positions: int) -> list[list[Place]]:
        return [[(k, None, None) for k in range(self.each)] for _ in range(len(self._masks))]


def work_of(
    method: str, count: int, steps: int, settings: Mapping[str, Any]
) -> tuple[Counter[Work], list[list[str]]]:
    """What the calls of a picture are, and whose LoRAs read each text.

    Args:
        method: of `loraweave.METHODS`.
        count: of LoRAs.
        steps: of denoising.
        settings: of the method.
    """
    pipe = speed_base("tiny", "cpu", torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        files = speed_loras(pipe, Path(folder), count, 1, few=True)
        out = compose(
            pipe, speed_prompt(count), loras=dict(files), method=method, settings=dict(settings),
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=steps, output_type="latent", progress=False, width=64, height=64,
        )  # fmt: skip
    return Counter(out.work), out.info["texts"]
