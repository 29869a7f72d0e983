"""A training run on disk: a log of figures, checkpoints that survive a crash, averaged weights.

Every random choice of a step is drawn from a generator seeded by (seed, stage, step), so a run
that was interrupted goes on exactly as if it had not been, and what a step learns from can be made
by other processes before it is that step's turn.
"""

import json
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...progress import track
from .matrices import MatrixOptimizer, adamw

SECONDS_BETWEEN_CHECKPOINTS = 60
T = TypeVar("T")
Moved = TypeVar("Moved", bound=Tensor | nn.Module)


class Run:
    """A folder with `log.jsonl` and one `<stage>.pt` checkpoint for each unfinished stage.

    Args:
        folder: that it is.
        seed: of everything random.
        device: that trains.
        workers: processes that make ahead what the next steps learn from; with 0 each step does so
            itself, which is best where the processor trains.
    """

    def __init__(
        self, folder: Path, seed: int = 0, device: str | torch.device = "cpu", workers: int = 0
    ):
        self.folder, self.seed = Path(folder), seed
        self.device, self.workers = torch.device(device), workers
        self.folder.mkdir(parents=True, exist_ok=True)

    def part(self, name: str, seed: int) -> "Run":
        """A run in a folder of this one, on the same device."""
        return Run(self.folder / name, seed, self.device, self.workers)

    def there(self, what: Moved) -> Moved:
        """A tensor or a module on the device that trains."""
        return what.to(self.device)  # type: ignore[return-value]

    def autocast(self) -> torch.autocast:
        """Matrix products in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextmanager
    def compiled(self, *modules: nn.Module) -> Iterator[None]:
        """Modules compiled in place on a GPU, where a small model's time is that of its launches;
        they come out as they went in. On a processor compiling takes longer than it saves."""
        own = modules if self.device.type == "cuda" else ()
        for module in own:
            module.compile(dynamic=False)  # there are two shapes at most
        try:
            yield
        finally:
            for module in own:
                module._compiled_call_impl = None

    def noise(self, stage: str, step: int, like: Tensor) -> Tensor:
        """Normal, of the shape of `like`, drawn where it is needed."""
        g = self.generator(f"{stage} noise", step, self.device)
        return torch.randn(like.shape, generator=g, device=self.device)

    def made(self, make: Callable[[int], T], numbers: range) -> Iterator[T]:
        """`make(number)` for each number in turn, ahead of its use if there are workers."""
        if not numbers:
            return iter(())
        loader = DataLoader(
            _Made(make, numbers), batch_size=None, num_workers=self.workers, collate_fn=_as_it_is,
            # What makes is a local function, which only a fork takes along.
            multiprocessing_context="fork" if self.workers else None,
            generator=torch.Generator(),  # else it would take a number from everybody's
        )  # fmt: skip
        return iter(loader)

    def log(self, stage: str, **figures: Any) -> None:
        """Append one line of figures to the log."""
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
        line = json.dumps({"stage": stage, **rounded})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(f"{line}\n")
        if not sys.stderr.isatty():  # where there is no progress bar
            print(line, file=sys.stderr, flush=True)

    def save(self, stage: str, state: dict[str, Any]) -> None:
        """Write a checkpoint; a crash while writing leaves the previous one."""
        temporary = self.folder / f"{stage}.pt.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / f"{stage}.pt")

    def load(self, stage: str) -> dict[str, Any] | None:
        """The stage's checkpoint on the processor, if there is one."""
        path = self.folder / f"{stage}.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def save_light(self, stage: str, step: int, weights: Mapping[str, Tensor]) -> None:
        """Write a model's weights in half precision: a fraction of a checkpoint, to be taken to
        another machine."""
        half = {
            key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
            for key, value in weights.items()
        }
        save_tensors(half, self.folder / f"{stage}.light.safetensors", {"step": str(step)})

    def load_light(self, stage: str) -> tuple[int, dict[str, Tensor]] | None:
        """What `save_light` wrote, the step and the weights in full precision."""
        path = self.folder / f"{stage}.light.safetensors"
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
        found = load_file(path)
        return step, {k: v.float() if v.is_floating_point() else v for k, v in found.items()}

    def generator(
        self, stage: str, step: int, device: str | torch.device = "cpu"
    ) -> torch.Generator:
        """The source of all randomness of one step."""
        key = zlib.crc32(f"{self.seed}/{stage}/{step}".encode())
        return torch.Generator(device).manual_seed(key)

    def steps(self, stage: str, first: int, total: int, every: int = 50) -> Iterator["Step"]:
        """Count steps from `first` to `total`, with a progress bar and the figures logged."""
        clock = time.monotonic()
        sums: dict[str, float | Tensor] = {}
        seen = 0  # a run that goes on may start between two lines
        for number in track(range(first, total), f"miniature: {stage}", total=total - first):
            step = Step(number)
            yield step
            for key, value in step.figures.items():
                sums[key] = sums.get(key, 0.0) + value
            seen += 1
            if (number + 1) % every == 0:
                figures = {key: float(value) / seen for key, value in sums.items()}
                seconds = time.monotonic() - clock
                self.log(stage, step=number + 1, seconds=seconds, **figures)
                sums, seen, clock = {}, 0, time.monotonic()


def save_tensors(
    tensors: dict[str, Tensor], path: Path, texts: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; a crash while writing leaves none, or the previous one."""
    temporary = path.with_name(f"{path.name}.tmp")
    save_file(tensors, temporary, texts)
    temporary.replace(path)


def save_model(model: Any, path: Path) -> None:
    """Write a model's folder with `save_pretrained`; a crash while writing leaves none."""
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    temporary.rename(path)


class _Made(Dataset[T]):
    """What is made for each of some numbers."""

    def __init__(self, make: Callable[[int], T], numbers: range):
        self.make, self.numbers = make, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> T:
        return self.make(self.numbers[index])


def _as_it_is(made: T) -> T:
    return made


class Step:
    """One step of a stage; figures put into it are averaged into the log.

    They may be tensors, which are looked at when the log is written: a GPU need not be waited for
    in every step.
    """

    def __init__(self, number: int):
        self.number = number
        self.figures: dict[str, float | Tensor] = {}


class Average:
    """Exponential moving average of a module's parameters, with a warm-up or without."""

    def __init__(self, module: nn.Module, decay: float, warm: bool = True):
        self.decay, self.warm = decay, warm
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module's present parameters."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[key].lerp_(value, 1 - decay)
            else:
                self.values[key].copy_(value)


def ramp(step: int, total: int, warmup: int = 100, flat: float = 0.5) -> float:
    """Learning-rate factor: warm-up, a plateau to `flat` of the run, then linear to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - flat * total) / max(1.0, (1 - flat) * total)
    return 1.0 if progress <= 0 else max(0.02, 1 - progress)


class Fit:
    """A model in training: its optimiser, averaged weights, learning rate and checkpoints.

    Beside a checkpoint lie the averaged weights alone (`Run.save_light`). Where only they are, the
    training goes on from them with a new optimiser.

    Args:
        run: where checkpoints go.
        stage: their name.
        model: trained in place on the run's device, where it stays; a checkpoint's weights are
            loaded at once.
        steps: of the whole training.
        rate: the highest learning rate.
        average: decay of the moving average.
        warm: that begins with a smaller one.
        weight_decay: of the optimiser.
        compiled: its parts that are compiled meanwhile, see `Run.compiled`.
        matrices: by `MatrixOptimizer` instead of AdamW.
    """

    def __init__(
        self, run: Run, stage: str, model: nn.Module, *, steps: int, rate: float,
        average: float, weight_decay: float, warm: bool = True,
        compiled: Sequence[nn.Module] = (), matrices: bool = False,
    ):  # fmt: skip
        self.run, self.stage, self.model, self.total = run, stage, run.there(model), steps
        self.rate, self.first, self.compiled = rate, 0, compiled
        self.average = Average(model, average, warm)
        self.optimizer = (
            MatrixOptimizer(model, rate, weight_decay)
            if matrices
            else adamw(model.parameters(), rate, weight_decay)
        )
        if state := run.load(stage):
            self.first = state["step"]
            model.load_state_dict(state["model"])
            self.average.values = {k: run.there(v) for k, v in state["average"].items()}
            self.optimizer.load_state_dict(state["optimizer"])
        elif light := run.load_light(stage):
            self.first, weights = light
            model.load_state_dict(weights)
            self.average.values = {k: run.there(v) for k, v in weights.items()}
        self._saved = time.monotonic()

    def steps(self) -> Iterator[Step]:
        """The steps that are left."""
        with self.run.compiled(*self.compiled):
            yield from self.run.steps(self.stage, self.first, self.total)

    def fed(self, make: Callable[[int], T]) -> Iterator[tuple[Step, T]]:
        """The steps that are left, each with what `make` gives for its number; see `Run.made`."""
        return zip(self.steps(), self.run.made(make, range(self.first, self.total)))

    def update(self, step: Step, loss: Tensor) -> None:
        """One optimiser step, and a checkpoint at times."""
        i = step.number
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * ramp(i, self.total)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        step.figures["norm"] = norm.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model, i)
        if i + 1 == self.total or time.monotonic() - self._saved > SECONDS_BETWEEN_CHECKPOINTS:
            self.run.save(self.stage, {
                "step": i + 1, "model": self.model.state_dict(), "average": self.average.values,
                "optimizer": self.optimizer.state_dict(),
            })  # fmt: skip
            self.run.save_light(self.stage, i + 1, self.average.values)
            self._saved = time.monotonic()

    def finish(self) -> None:
        """Give the model its averaged weights."""
        self.model.load_state_dict(self.average.values)
