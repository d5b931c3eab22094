"""What a matrix of scores R[i, j] says of the whole run: averages, forgetting, backward transfer.

R[i, j] is the score on task j after learning task i; forgetting is that of
arXiv 1801.10112, backward transfer (BWT) that of arXiv 1706.08840 [paper]. Every number carries its
formula, because papers use the same names for different ones and different names for the same one:
CLoG (arXiv 2406.04584) calls the average AFQ, the incremental mean AIQ and the mean rise FR, and
arXiv 2509.23593 calls the average of FID AFID and the mean rise F. The rise is BWT with its
sign turned; it has an entry of its own so that a table can stand beside theirs.
"""

from collections.abc import Sequence

import numpy as np

_FORMULAS = {
    "last_union": "U[T], on the test images of all tasks at once after the last task T",
    "average": "A_T = mean_{j<=T} R[T,j]: AFQ of CLoG; of fid, AFID of arXiv 2509.23593",
    "incremental": "mean_{i<=T} A_i, with A_i = mean_{j<=i} R[i,j]: AIQ of CLoG",
}
_HIGHER = {
    "forgetting_max": "mean_{j<T} (max_{i<T} R[i,j] - R[T,j]), higher is better: > 0 got worse",
    "bwt": "mean_{j<T} (R[T,j] - R[j,j]), higher is better: > 0 got better",
    "rise": "mean_{j<T} (R[j,j] - R[T,j]), higher is better, so a fall: > 0 got worse",
}
_LOWER = {
    "forgetting_max": "mean_{j<T} (R[T,j] - min_{i<T} R[i,j]), lower is better: > 0 got worse",
    "bwt": "mean_{j<T} (R[j,j] - R[T,j]), lower is better: > 0 got better",
    "rise": "mean_{j<T} (R[T,j] - R[j,j]), lower is better: FR of CLoG, F of arXiv 2509.23593; > 0 got worse",
}


def summarise(
    matrix: np.ndarray, union: Sequence[float | None] | np.ndarray, lower_is_better: bool
) -> dict[str, dict[str, float | str | None]]:
    """Summary of one score over a run, or over the tasks learned so far.

    Args:
        matrix: [T, T] R[i, j]; entries j > i are ignored. Trailing rows without any known entry are
            tasks that were not learned yet: T is the last row that has one.
        union: [T], the score on the test images of all seen tasks after each task.
        lower_is_better: turns the signs of forgetting, BWT and rise and the max into a min, so that
            positive forgetting and rise mean worse and positive BWT better for every score.

    Returns:
        "last_union", "average", "incremental", "forgetting_max", "bwt" and "rise", each with its
        "value" and the "formula" that was used. A value is None where it is not defined (forgetting,
        BWT and rise of one task) or an entry that it needs is not known (None, NaN or infinite).
    """
    scores = np.array(matrix, np.float64)
    scores[np.triu_indices(len(scores), 1)] = np.nan
    known = np.flatnonzero(np.isfinite(scores).any(axis=1))
    tasks = int(known[-1]) + 1 if len(known) else 0
    values = _values(scores[:tasks, :tasks], np.array(union, np.float64)[:tasks], lower_is_better)
    formulas = _FORMULAS | (_LOWER if lower_is_better else _HIGHER)
    return {name: {"value": _known(values.get(name)), "formula": formula} for name, formula in formulas.items()}


def _values(scores: np.ndarray, union: np.ndarray, lower_is_better: bool) -> dict[str, float]:
    tasks = len(scores)
    if tasks == 0:
        return {}
    averages = [scores[i, : i + 1].mean() for i in range(tasks)]
    values = {
        "last_union": union[-1],
        "average": averages[-1],
        "incremental": np.mean(averages),
    }
    if tasks > 1:
        # With the sign turned, "better" is "higher" for every score.
        goodness = -scores if lower_is_better else scores
        last = goodness[-1, :-1]
        best = np.array([goodness[j:-1, j].max() for j in range(tasks - 1)])
        values["forgetting_max"] = np.mean(best - last)
        first = np.diag(goodness)[:-1]
        values["bwt"] = np.mean(last - first)
        values["rise"] = np.mean(first - last)
    return values


def _known(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
