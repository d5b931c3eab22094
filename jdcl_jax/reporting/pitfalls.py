"""What bits/dim hides: the same checkpoints ranked by it and by other scores, and exact demonstrations."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdcl_jax.archives import read_archive
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.pitfalls import bound_share, mixture_demonstration, rank_agreement
from jdcl_jax.reporting import differences, html
from jdcl_jax.reporting.compare import Mean, mean_of
from jdcl_jax.reporting.files import check_page_path, write_bytes
from jdcl_jax.reporting.formats import number
from jdcl_jax.reporting.runs import Labelled, Run, load_run, whole
from jdcl_jax.reporting.table import text_table

BOUNDS = ("bpd_fixed_small", "bpd_fixed_large")
RANKED = (
    *BOUNDS,
    "eps_mse",
    "fid",
    "fd_classifier",
    "kid",
    "kd_classifier",
    "kld",
    "kld_epsilon",
    "ard",
    "recall_classifier",
)
WEIGHTS = (0.5, 0.1, 0.01, 0.001)
LATE = 0.5  # "late" timesteps are t >= T / 2


@dataclass(frozen=True)
class Pitfalls:
    """The study of some runs.

    Attributes:
      scores: those ranked by, likelihoods first.
      methods: the names of what is ranked.
      last: (score, score) -> Kendall's tau between the rankings of the methods after the last task, over seeds.
      every: the same over all checkpoints after the second task and later.
      means: method -> score -> its value on the union after the last task, over seeds.
      late_share: share of the bound that timesteps t >= T / 2 carry, over runs; NaN without curves.
      variance_gap: |bpd_fixed_large - bpd_fixed_small|, mean over runs.
      method_gap: the range of bpd_fixed_small over the methods' means.
      mixture: p -> (rise in bits/dim by the exact mixture, by the formula), in the images' own dimensions.
      dims: pixel values of an image.
    """

    scores: tuple[str, ...]
    methods: tuple[str, ...]
    last: Mapping[tuple[str, str], Mean]
    every: Mapping[tuple[str, str], Mean]
    means: Mapping[str, Mapping[str, Mean]]
    late_share: Mean
    variance_gap: Mean
    method_gap: float
    mixture: Mapping[float, tuple[float, float]]
    dims: int


def label_of(run: Run) -> str:
    """What stands for the method with its options: its name in a study, else the folder's without the seed."""
    return run.label if isinstance(run, Labelled) else run.path.resolve().name.removesuffix(f"-{run.seed}")


def study(runs: Sequence[Run]) -> Pitfalls:
    """Compares finished runs of one data set, several methods with the same seeds.

    Args:
      runs: the runs; those that are not finished are left out.

    Raises:
      UserError: fewer than three methods, two runs of one name and seed, several data sets, several numbers of tasks, a
        single task, or runs without bits/dim.
    """
    finished = [run for run in runs if run.finished]
    if len({run.num_tasks for run in finished}) > 1:
        raise UserError("the runs have different numbers of tasks; give runs of one sequence")
    if finished and finished[0].num_tasks < 2:
        raise UserError("the runs have one task, after which nothing can be forgotten; give runs of two or more")
    if len({run.dataset for run in finished}) > 1:
        raise UserError("the runs are of several data sets; give runs of one")
    common = [name for name in RANKED if finished and all(name in run.scores for run in finished)]
    if not set(common) & set(BOUNDS):
        raise UserError(
            "the runs have no bits/dim; start them with evaluation.likelihood.images=16 and bpd_fixed_small in "
            "evaluation.scores"
        )
    methods = tuple(dict.fromkeys(label_of(run) for run in finished))
    _check_seeds(finished)
    if len(methods) < 3:
        raise UserError(f"{len(methods)} methods can't be ranked; give finished runs of three or more")
    tasks = finished[0].num_tasks
    last = [_agreement(finished, methods, common, seed, tasks - 1) for seed in _seeds(finished)]
    every = [
        _averaged([_agreement(finished, methods, common, seed, task) for task in range(1, tasks)])
        for seed in _seeds(finished)
    ]
    means = {method: _means([run for run in finished if label_of(run) == method], common) for method in methods}
    small = [scores["bpd_fixed_small"].mean for scores in means.values() if "bpd_fixed_small" in scores]
    size = _dims(finished[0])
    return Pitfalls(
        tuple(common),
        methods,
        {pair: mean_of([found[pair] for found in last]) for pair in last[0]},
        {pair: mean_of([found[pair] for found in every]) for pair in every[0]},
        means,
        mean_of([share for run in finished if (share := _late_share(run)) is not None]),
        mean_of([gap for run in finished if (gap := _variance_gap(run)) is not None]),
        max(small) - min(small) if small else float("nan"),
        {p: _mixture(size, p) for p in WEIGHTS},
        size,
    )


def _check_seeds(runs: Sequence[Run]) -> None:
    """Raises `UserError` for two runs of one name and seed, of which a ranking could take only one."""
    first: dict[tuple[str, Any], Run] = {}
    for run in runs:
        other = first.setdefault((label_of(run), run.seed), run)
        if other is not run:
            raise UserError(
                f"{other.path} and {run.path} are both called {label_of(run)}, with the same seed; leave one out, or "
                "rename its folder if its options are others"
            )


def _seeds(runs: Sequence[Run]) -> list[Any]:
    return list(dict.fromkeys(run.seed for run in runs))


def _agreement(
    runs: Sequence[Run], methods: Sequence[str], names: Sequence[str], seed: Any, task: int
) -> dict[tuple[str, str], float]:
    by_method = {label_of(run): run for run in runs if run.seed == seed}
    ranked = [by_method[method] for method in methods if method in by_method]
    values = {name: [float(run.scores[name].union[task]) for run in ranked] for name in names}
    return rank_agreement(values, {name: runs[0].scores[name].lower_is_better for name in names})


def _averaged(found: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    return {pair: mean_of([one[pair] for one in found]).mean for pair in found[0]}


def _means(runs: Sequence[Run], names: Sequence[str]) -> dict[str, Mean]:
    return {name: mean_of([float(run.scores[name].union[-1]) for run in runs]) for name in names}


def _late_share(run: Run) -> float | None:
    file = run.path / "curves" / f"task_{run.num_tasks:02d}.npz"
    if not file.is_file():
        return None
    try:
        bits = np.nanmean(
            np.asarray(read_archive(file, ["bits_fixed_small"])[0]["bits_fixed_small"], np.float64), axis=0
        )
        return bound_share(bits, int(LATE * len(bits)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} can't be read ({error}); remove it, or run again") from error


def _variance_gap(run: Run) -> float | None:
    if not {"bpd_fixed_small", "bpd_fixed_large"} <= run.scores.keys():
        return None
    small, large = (float(run.scores[f"bpd_{name}"].union[-1]) for name in ("fixed_small", "fixed_large"))
    return abs(large - small)


def _dims(run: Run) -> int:
    return math.prod(run.results.get("image_shape") or (32, 32, 3))


def _mixture(dims: int, p: float) -> tuple[float, float]:
    found = mixture_demonstration(dims, p)
    return found.rise, found.formula


def text(found: Pitfalls) -> str:
    """The study as plain text."""
    by_score = text_table(
        ["method", *found.scores],
        [[m, *(found.means[m][s].text("+-") for s in found.scores)] for m in found.methods],
    )
    blocks = [f"scores on the union after the last task\n{by_score}"]
    for title, taus in (("after the last task", found.last), ("after every task from the second on", found.every)):
        rows = [[f"{a} / {b}", tau.text("+-")] for (a, b), tau in taus.items()]
        blocks.append(f"Kendall's tau between rankings of the methods {title}\n{text_table(['scores', 'tau'], rows)}")
    return "\n\n".join([*blocks, *facts(found)])


def facts(found: Pitfalls) -> list[str]:
    """What the numbers say, a sentence each."""
    lines = []
    if found.late_share.n:
        lines.append(f"Timesteps t >= T/2 carry {100 * found.late_share.mean:.2f} % of the bound (without L_prior).")
    if found.variance_gap.n:
        lines.append(
            f"The choice of the model's variance moves bpd by {number(found.variance_gap.mean)}; the best and the "
            f"worst method differ by {number(found.method_gap)}."
        )
    for p, (rise, formula) in found.mixture.items():
        lines.append(
            f"An old mode whose weight falls from 1/2 to {p:g} costs {rise:.6f} bits/dim in {found.dims} dimensions "
            f"(exact mixture; log2(0.5 / p) / dims = {formula:.6f})."
        )
    return lines


def context(found: Pitfalls) -> dict[str, Any]:
    """What the template `_pitfalls.html` shows."""
    return {
        "scores": found.scores,
        "rows": [(method, [found.means[method][name].text() for name in found.scores]) for method in found.methods],
        "taus": [(a, b, found.last[a, b].text(), found.every[a, b].text()) for a, b in found.last],
        "facts": facts(found),
    }


def write_pitfalls(workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> str:
    """Writes one page about some runs and returns the same as text.

    Raises:
      UserError: as `study`; a folder is no run; `out` is no page or can't be written.
    """
    check_page_path(out)
    runs = [load_run(workdir) for workdir in workdirs]
    with whole(*runs):
        return _write([Labelled(run.path, run.results, label_of(run)) for run in runs], out)


def _write(runs: Sequence[Labelled], out: str | os.PathLike[str]) -> str:
    found, warnings = study(runs), differences.warnings(runs)
    title = f"Pitfalls of bits/dim: {len(found.methods)} methods on {runs[0].dataset}"
    write_bytes(out, html.page("pitfalls.html", title=title, pitfalls=context(found), warnings=warnings))
    return "\n".join([*(f"WARNING: {line}" for line in warnings), text(found)])
