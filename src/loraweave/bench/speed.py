"""Seconds, denoiser calls, FLOPs and memory, side by side with a plain picture.

Everything is measured in one process and one run, the methods taking turns, and told as a ratio to
what stock diffusers needs for one picture with one LoRA of the same size, steps, precision and
guidance; CLoRA also as a ratio to the naive way of drawing the same picture (bench/naive.py).
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from ..api import compose
from ..errors import MethodError
from ..evaluate.flops import flop_counter
from ..memory.measured import peak_memory
from ..methods import METHODS
from ..progress import track
from .bases import NOUNS, BaseName, speed_base, speed_loras, speed_prompt
from .engines import made_by
from .flops import CallCosts, work_of
from .naive import naive_picture
from .profile import slowest

PLAIN, NAIVE = "plain", "naive"
GUIDED = ("clora", NAIVE)
"""Methods whose early steps cost many times a plain one: measured over few steps."""
SCHEDULE = {"refinements", "max_update_step", "refinement_steps", "update_at"}
"""Settings of clora that say when the latent is moved."""
BY_VALUE = ("attend_and_excite",)
"""Methods whose calls depend on values."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        size: of the pictures in pixels, (width, height).
        base, device, dtype: of the model.
        methods: names of methods, `plain` and `naive`.
        counts: of LoRAs.
        rank: of each LoRA.
        steps: of denoising; of the methods in GUIDED `guided_steps`.
        guided_steps: see steps.
        updates: extra updates before the first step, of those methods.
        repetitions: timed runs of each.
        settings: by method, where they are not the defaults.
        pass_batch: of `compose`.
        profile: draw once more to see which operations take the time.
    """

    size: tuple[int, int]
    base: BaseName = "miniature"
    device: str = "cpu"
    dtype: str = "float32"
    methods: tuple[str, ...] = ("merge", "clora", NAIVE, "weave")
    counts: tuple[int, ...] = (1, 2, 4, 8)
    rank: int = 8
    steps: int = 50
    guided_steps: int = 50
    updates: int = 20
    repetitions: int = 3
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pass_batch: int | None = None
    profile: bool = False

    def check(self) -> None:
        """Raise MethodError for what cannot be measured."""
        for method in self.methods:
            if method not in (*METHODS, PLAIN, NAIVE):
                known = ", ".join((*METHODS, NAIVE))
                raise MethodError(f"no method {method!r} to measure; there are: {known}")
        if wrong := [n for n in self.counts if not 1 <= n <= len(NOUNS)]:
            raise MethodError(f"{wrong[0]} LoRAs; 1 to {len(NOUNS)} can be measured")
        if max(self.counts) < 2 and (alone := [m for m in self.methods if m in GUIDED]):
            raise MethodError(f"{alone[0]} needs two LoRAs at least to have updates; add 2 to them")
        if NAIVE in self.methods and (own := SCHEDULE & set(self.settings.get("clora", {}))):
            raise MethodError(
                f"clora.{min(own)} would give clora another schedule than naive has; use --updates "
                "for both, or leave naive out"
            )

    def wanted(self) -> list[tuple[str, int]]:
        """Methods with numbers of LoRAs; `plain` has its own, and a single LoRA has no updates."""
        return [
            (method, count) for count in self.counts for method in self.methods
            if method != PLAIN and not (method in GUIDED and count < 2)
        ]  # fmt: skip

    def every_steps(self) -> list[int]:
        """Each number of steps that something is measured over, once."""
        return list(dict.fromkeys(self.steps_of(method) for method in self.methods))

    def steps_of(self, method: str) -> int:
        """How many a method is measured over."""
        return self.guided_steps if method in GUIDED else self.steps

    def settings_of(self, method: str) -> dict[str, Any]:
        """All that is not the method's default."""
        own: dict[str, Any] = {}
        if method == "clora":
            own = {"variant": "faithful", "step_rule": "literal", "gradient": "together"}
            own |= self.schedule()
        if method in METHODS and "layout" in METHODS[method].Settings.model_fields:
            own["layout"] = "strips"
        return own | dict(self.settings.get(method, {}))

    def schedule(self) -> dict[str, Any]:
        """CLoRA's updates: the published ones over 50 steps, else one step with extra ones."""
        if self.guided_steps >= 50:
            return {"refinements": self.updates}
        return {"max_update_step": 1, "refinement_steps": [0], "refinements": self.updates}

    def naive_updates(self) -> list[int]:
        """The same for the naive way: how often the latent is moved at each step."""
        if self.guided_steps >= 50:
            return [
                int(i < 25) + self.updates * (i in (0, 10, 20)) for i in range(self.guided_steps)
            ]
        return [1 + self.updates] + [0] * (self.guided_steps - 1)


@dataclass
class _Case:
    """One method with so many LoRAs, and what was measured of it."""

    method: str
    loras: int
    steps: int
    draw: Callable[[], int] | None = None
    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    mib: float | None = None
    calls: int | None = None
    slowest: list[dict[str, Any]] | None = None


def measure(plan: Plan, progress: bool = False) -> list[dict[str, Any]]:
    """A row for each method and number of LoRAs; `plain` and `naive` have rows of their own.

    Raises:
        MethodError: something in the plan cannot be measured.
    """
    plan.check()
    dtype = getattr(torch, plan.dtype)
    pipe = speed_base(plan.base, plan.device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        loras = speed_loras(pipe, Path(folder), max(plan.counts), plan.rank)
        cases = _cases(plan, pipe, loras)
        # Memory apart from FLOPs, of which the counter keeps something for every call.
        kinds = (_count, _weigh, *[_time] * plan.repetitions)
        turns = [(kind, case) for kind in kinds for case in cases]
        for kind, case in track(turns, "measured", len(turns), progress):
            kind(case, plan.device)
        for case in cases if plan.profile else ():
            assert case.draw is not None
            case.slowest = slowest(case.draw, plan.device)
    weights = sum(p.numel() * p.element_size() for model in (pipe.unet, pipe.text_encoder, pipe.vae)
                  for p in model.parameters()) / 2**20  # fmt: skip
    return [_row(plan, case, cases, weights) for case in cases]


def _count(case: _Case, device: str) -> None:
    assert case.draw is not None
    with flop_counter() as counter:
        case.calls = case.draw()
    case.flops = counter.get_total_flops()


def _weigh(case: _Case, device: str) -> None:
    """And warm up."""
    assert case.draw is not None
    with peak_memory(device) as memory:
        case.draw()
    case.mib = memory.mib


def _time(case: _Case, device: str) -> None:
    assert case.draw is not None
    _settled(device)
    started = time.perf_counter()
    case.draw()
    _settled(device)
    case.seconds.append(time.perf_counter() - started)


def counted(plan: Plan, progress: bool = False) -> list[dict[str, Any]]:
    """FLOPs and calls as `measure` has them, without drawing anything (bench/flops.py).

    Raises:
        MethodError: something in the plan cannot be counted.
    """
    plan.check()
    if by_value := [method for method in plan.methods if method in BY_VALUE]:
        raise MethodError(
            f"{by_value[0]} moves the latent until a value is reached, so its calls cannot be "
            "counted without drawing; measure it instead"
        )
    costs = CallCosts(plan.base, plan.size, max(plan.counts), plan.rank)
    cases = [
        _Case(PLAIN, 1, steps, flops=costs.plain(steps), calls=steps)
        for steps in plan.every_steps()
    ]  # fmt: skip
    wanted = plan.wanted()
    for method, count in track(wanted, "counted", len(wanted), progress):
        steps = plan.steps_of(method)
        if method == NAIVE:
            updates = plan.naive_updates()
            flops = costs.naive(count, updates)
            calls = (count + 1) * sum(max(1, n) for n in updates)
        else:
            work, texts = work_of(method, count, steps, plan.settings_of(method))
            named = {name for kind in work for own in kind.adapters for name in own}
            if not named <= set(costs.adapters):
                raise MethodError(
                    f"{method} makes LoRAs of its own, which are not counted; measure it"
                )
            flops, calls = costs.picture(work, texts), sum(work.values())
        cases.append(_Case(method, count, steps, flops=flops, calls=calls))
    drawn_by = ("device", "dtype", "threads", "made")
    return [_row(plan, case, cases, 0.0) | dict.fromkeys(drawn_by) for case in cases]


def _cases(plan: Plan, pipe: StableDiffusionPipeline, loras: Mapping[str, Path]) -> list[_Case]:
    names = list(loras)
    found = [
        _Case(PLAIN, 1, steps, _plain(plan, pipe, loras[names[0]], steps))
        for steps in plan.every_steps()
    ]
    for method, count in plan.wanted():
        own = {name: loras[name] for name in names[:count]}
        steps = plan.steps_of(method)
        make = _naive if method == NAIVE else _composed
        found.append(_Case(method, count, steps, make(plan, pipe, own, steps, method)))
    return found


def _plain(plan: Plan, pipe: StableDiffusionPipeline, lora: Path, steps: int):
    prompt = f"a sks {NOUNS[0]} in the meadow"

    def draw() -> int:
        with loaded(pipe, {NOUNS[0]: lora}):
            pipe(
                prompt, width=plan.size[0], height=plan.size[1], num_inference_steps=steps,
                guidance_scale=7.5, generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
        return steps

    return draw


def _composed(
    plan: Plan, pipe: StableDiffusionPipeline, loras: dict[str, Path], steps: int, method: str
):
    def draw() -> int:
        out = compose(
            pipe, speed_prompt(len(loras)), loras=loras, method=method,
            settings=plan.settings_of(method), width=plan.size[0], height=plan.size[1],
            num_inference_steps=steps, generator=torch.Generator().manual_seed(0),
            pass_batch=plan.pass_batch, progress=False,
        )  # fmt: skip
        return out.info["calls"]

    return draw


def _naive(
    plan: Plan, pipe: StableDiffusionPipeline, loras: dict[str, Path], steps: int, method: str
):
    updates = plan.naive_updates()

    def draw() -> int:
        with loaded(pipe, loras):
            return naive_picture(
                pipe, speed_prompt(len(loras)), list(loras), plan.size, steps, updates
            )

    return draw


@contextmanager
def loaded(pipe: StableDiffusionPipeline, loras: Mapping[str, Path]):
    """LoRAs as diffusers and peft load them; they are gone afterwards."""
    try:
        with warnings.catch_warnings():  # peft's, about every adapter after the first
            warnings.filterwarnings("ignore", "Already found a .peft_config.", UserWarning)
            for name, path in loras.items():
                pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        yield
    finally:
        pipe.unload_lora_weights()


def _settled(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _row(plan: Plan, case: _Case, cases: Sequence[_Case], weights: float) -> dict[str, Any]:
    seconds = statistics.median(case.seconds) if case.seconds else None
    row: dict[str, Any] = {
        "method": case.method, "loras": case.loras, "calls": case.calls,
        "tflops": round(case.flops / 1e12, 4),
        "seconds": seconds and round(seconds, 3),
        "spread": round(max(case.seconds) - min(case.seconds), 3) if case.seconds else None,
        "mib": None if case.mib is None else round(case.mib + weights, 1),
    }  # fmt: skip
    for name, other in (("", PLAIN), ("naive_", NAIVE)):
        beside = [c for c in cases if c.method == other and c.steps == case.steps]
        if other == NAIVE:
            beside = [c for c in beside if c.loras == case.loras and case.method in GUIDED]
        if beside:
            row |= _ratios(name, case, beside[0], weights)
    if case.slowest is not None:
        row["slowest"] = case.slowest
    return row | {
        "base": plan.base, "device": plan.device, "dtype": plan.dtype,
        "size": f"{plan.size[0]}x{plan.size[1]}", "steps": case.steps, "rank": plan.rank,
        "pass_batch": plan.pass_batch, "repetitions": len(case.seconds),
        "threads": torch.get_num_threads(), "made": made_by(plan.device),
    }  # fmt: skip


def _ratios(prefix: str, case: _Case, other: _Case, weights: float) -> dict[str, float]:
    found = {f"{prefix}flops_ratio": round(case.flops / other.flops, 4)}
    if case.seconds and other.seconds:
        each = [a / b for a, b in zip(case.seconds, other.seconds)]  # of one turn each
        found[f"{prefix}seconds_ratio"] = round(statistics.median(each), 3)
    if case.mib is not None and other.mib is not None:
        ratio = (case.mib + weights) / (other.mib + weights)
        found[f"{prefix}memory_ratio"] = round(ratio, 3)
    return found
