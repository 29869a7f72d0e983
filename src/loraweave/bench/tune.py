"""A search over a method's settings, on tuning scenes only.

What is found is then drawn on report scenes and on `heldout`, beside the defaults: a gain on the
scenes that were searched says nothing by itself. Every trial is a set of ordinary jobs, so a search
that was stopped goes on where it was.
"""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ..data_file import read_data, read_yaml
from ..errors import MethodError
from ..methods import METHODS, get_method
from .jobs import suite_jobs
from .rates import Row, differences, share_right
from .report import finished_rows
from .run import run_jobs

HELD_OUT = "heldout"
SEARCHES = Path(__file__).parent / "searches.yaml"


@dataclass(frozen=True)
class Dimension:
    """What is searched of one setting.

    Attributes:
        choices: values to choose from, or
        low, high: a range, whole numbers if both are;
        log: by its logarithm.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    def suggested(self, trial: Any, name: str) -> Any:
        """A value by an optuna trial."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


def read_search(method: str, given: Mapping[str, str]) -> dict[str, Dimension]:
    """What `KEY=LOW:HIGH`, `KEY=LOW:HIGH:log` and `KEY=A,B,C` mean.

    Args:
        method: whose settings these are.
        given: text after the equals sign by key; if empty, what `searches.yaml` has for the method.

    Raises:
        MethodError: no such method or setting, a range that cannot be, or nothing to search.
    """
    settings = get_method(method, {}).settings
    given = given or read_data(SEARCHES).get(method, {})
    if not given:
        known = ", ".join(type(settings).model_fields) or "no settings"
        raise MethodError(f"say what to search with --search KEY=LOW:HIGH; {method} has: {known}")
    found = {}
    for key, text in given.items():
        if key not in type(settings).model_fields:
            get_method(method, {key: None})  # says which there are
        parts = text.split(":")
        if len(parts) == 1:
            dimension = Dimension(tuple(_value(key, part) for part in text.split(",")))
            ends = dimension.choices
        else:
            ends = tuple(_value(key, part) for part in parts[:2])
            numbers = all(
                isinstance(end, int | float) and not isinstance(end, bool) for end in ends
            )
            if not numbers or ends[0] >= ends[1] or parts[2:] not in ([], ["log"]):
                raise MethodError(f"--search {key}={text} is no range; write LOW:HIGH[:log]")
            if parts[2:] and ends[0] <= 0:
                raise MethodError(f"--search {key}={text}: a logarithm needs a range above 0")
            dimension = Dimension((), *ends, log=bool(parts[2:]))
        for end in ends:
            get_method(method, {key: end})
        found[key] = dimension
    return found


class JobsFailed(MethodError):
    """Jobs that a search needs; `jobs` are as in `run_jobs`."""

    def __init__(self, jobs: Sequence[Mapping[str, str]]):
        super().__init__(f"{len(jobs)} jobs failed, the first: {jobs[0]['fault']}")
        self.jobs = jobs


def _value(key: str, text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError:
        raise MethodError(f"--search {key}: {text!r} is no value") from None


def tune(
    method: str, search: Mapping[str, Dimension], folder: Path, *, suite: str = "pairs",
    trials: int = 20, scenes: int = 12, steps: int = 50, seed: int = 0, workers: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The best settings found, and what they are worth on scenes that were not searched.

    Args:
        method: of `METHODS`.
        search: from `read_search`.
        folder: where the jobs' results are.
        suite: whose tuning scenes are searched, and whose report scenes are drawn then.
        trials: how many settings are tried.
        scenes: scene-seeds of each trial, and of each comparison at the end.
        steps: of denoising.
        seed: of the search.
        workers: jobs at a time.

    Returns:
        `settings`, the share of concepts that are right on `tuning` scenes by `default` and `best`,
        and on `report` and `heldout` these and their paired `difference` with its interval.

    Raises:
        MethodError: optuna is not installed.
        JobsFailed: some did; their trial has no value.
    """
    try:
        import optuna
    except ImportError:
        raise MethodError("optuna is not installed; use pip install 'loraweave[tune]'") from None
    if method not in METHODS:
        raise MethodError(f"no method {method!r}; there are: {', '.join(METHODS)}")
    optuna.logging.set_verbosity(logging.CRITICAL)  # its tracebacks are no message of ours
    suite_jobs(suite, [method], "full", split="tuning", steps=steps)  # what is wrong is said now

    def drawn(name: str, split: Any, own: Mapping[str, Any]) -> list[Row]:
        jobs = list(itertools.islice(suite_jobs(
            name, [method], "full", split=split, steps=steps, settings={method: own},
        ), scenes))  # fmt: skip
        failed = run_jobs(jobs, folder, workers=workers)["failed"]
        if failed:
            raise JobsFailed(failed)
        return finished_rows(jobs, folder)

    def objective(trial: Any) -> float:
        own = {name: one.suggested(trial, name) for name, one in search.items()}
        return _right(drawn(suite, "tuning", own))

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=trials)
    best = dict(study.best_params)
    found: dict[str, Any] = {"method": method, "settings": best, "trials": len(study.trials)}
    found["tuning"] = {"default": _right(drawn(suite, "tuning", {})), "best": study.best_value}
    for name, where in (("report", suite), (HELD_OUT, HELD_OUT)):
        own, default = drawn(where, "report", best), drawn(where, "report", {})
        gain = differences(list(zip(own, default)))
        found[name] = {
            "default": _right(default), "best": _right(own), "difference": gain["right"],
            "difference_ci": gain["right_ci"],
        }  # fmt: skip
    return found


def _right(rows: Sequence[Row]) -> float:
    return round(mean(map(share_right, rows)), 4)
