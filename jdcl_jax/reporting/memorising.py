"""Errors on held-out images, and on a buffer's images against old ones that were never seen, at the end of a run."""

import math
from collections.abc import Mapping

from jdcl_jax.reporting.compare import Group, mean_of
from jdcl_jax.reporting.runs import Run

ERRORS = ("validation", "buffer", "held_out")


def last_error(run: Run, name: str) -> float:
    """One of `ERRORS` after the last task; NaN where it was not measured."""
    errors = run.results.get("errors") or [{}]
    value = errors[-1].get(name)
    return math.nan if value is None else float(value)


def rows(groups: Mapping[str, Group]) -> list[tuple[str, list[str]]]:
    """A method and its errors as text each, mean and standard error over the finished runs; [] if none has any."""
    found = []
    for label, group in groups.items():
        means = [mean_of([last_error(run, name) for run in group.finished]) for name in ERRORS]
        if any(mean.n for mean in means):
            found.append((label, [mean.text() for mean in means]))
    return found
