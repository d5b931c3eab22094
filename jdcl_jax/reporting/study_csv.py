"""A study as study.csv."""

import csv
import functools
import io
import math
from collections.abc import Callable, Mapping

from jdcl_jax.reporting import costs, memorising
from jdcl_jax.reporting.comparable import PUBLISHED_SUMMARIES, published_cell
from jdcl_jax.reporting.compare import Group, mean_of
from jdcl_jax.reporting.runs import Run
from jdcl_jax.reporting.study_runs import SUMMARIES, Study


def csv_text(study: Study) -> str:
    """A row per method, score and summary: mean, standard error, n, each seed's value, what is published, and costs.

    What is unknown is empty. Costs are those of all phases but evaluation, a method's drawing and estimates included:
    passes in forward passes of one batch, a backward pass counting as two; seconds are wall time with compilation.
    """
    seeds = sorted({run.seed for run in study.members})
    header = [
        "method",
        "score",
        "summary",
        "mean",
        "standard_error",
        "n",
        *(f"seed_{seed}" for seed in seeds),
        "published",
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*header, *_COSTS])
    for label, group in study.groups.items():
        spent = [_cell(mean_of([amount(run) for run in group.finished]).mean) for amount in _COSTS.values()]
        for score in study.scores:
            for summary in SUMMARIES:
                mean = group.summary(score, summary)
                values = {run.seed: value_of(run, score, summary) for run in group.finished}
                own = [_cell(values.get(seed, math.nan)) for seed in seeds]
                numbers = [_cell(mean.mean), _cell(mean.error), mean.n, *own]
                writer.writerow([label, score, summary, *numbers, _published(group, score, summary), *spent])
    return stream.getvalue()


_COSTS: Mapping[str, Callable[[Run], float]] = {
    "training_passes": costs.passes,
    "training_model_flops": lambda run: costs.total(run, "model_flops"),
    "training_images": lambda run: costs.total(run, "images"),
    "training_seconds": lambda run: costs.total(run, "seconds"),
    "evaluation_seconds": lambda run: costs.total(run, "seconds", *costs.EVALUATION),
    **{f"eps_mse_{name}": functools.partial(memorising.last_error, name=name) for name in memorising.ERRORS},
}


def _published(group: Group, score: str, summary: str) -> str:
    if summary not in PUBLISHED_SUMMARIES or not group.finished:
        return ""
    return published_cell(group.finished[0].results, score, summary)


def value_of(run: Run, score: str, summary: str) -> float:
    """A summary of a finished run's score, NaN where there is none."""
    found = run.scores[score].summary if score in run.scores else {}
    return found[summary].value if summary in found else math.nan


def _cell(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ""
