"""Suites of scenes, runs that resume, and what came out of them."""

from .jobs import SIZES, SUITES, Job, suite_jobs
from .report import NothingFinished, finished, report
from .run import run_jobs

__all__ = [
    "SIZES",
    "SUITES",
    "Job",
    "NothingFinished",
    "finished",
    "report",
    "run_jobs",
    "suite_jobs",
]
