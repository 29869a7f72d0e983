"""Suites of scenes, runs that resume, and what came out of them."""

from .agreement import agreement
from .jobs import Job, suite_jobs
from .report import NothingFinished, finished, methods_there, report
from .run import run_jobs
from .suites import read_suite, suite_names

__all__ = [
    "Job",
    "NothingFinished",
    "agreement",
    "finished",
    "methods_there",
    "read_suite",
    "report",
    "run_jobs",
    "suite_jobs",
    "suite_names",
]
