"""Kernel distance: the unbiased squared maximum mean discrepancy with a cubic kernel.

The estimator that is called KID on Inception features [paper, arXiv 1801.01401].
"""

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.samples import PAIRWISE_CAP, feature_matrix, thinned

LEAST = 2
_CHUNK = 1_000


def kernel_distance(first: np.ndarray, second: np.ndarray, cap: int = PAIRWISE_CAP) -> float:
    """Unbiased MMD^2 of features [N1, d] and [N2, d] with k(x, y) = (x.y / d + 1)^3.

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j), zero in
    expectation for equal distributions, so it can come out slightly negative.

    One estimate over all samples up to `cap` a side, beyond that over `cap` rows drawn once
    [ours]. Common KID code instead averages over random subsets of 1,000; that has the same
    expectation, more noise, and depends on the draw.

    Raises:
        UserError: fewer than two rows on a side, different widths, or values that are not finite.
    """
    x = thinned(feature_matrix(first, LEAST, "the kernel distance"), cap)
    y = thinned(feature_matrix(second, LEAST, "the kernel distance"), cap)
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"the kernel distance got features of widths {x.shape[1]} and {y.shape[1]}: take both from one extractor"
        )
    cross = _sum_of_kernels(x, y) / (len(x) * len(y))
    return _mean_within(x) + _mean_within(y) - 2.0 * cross


def _mean_within(x: np.ndarray) -> float:
    diagonal = np.sum(_kernel(np.einsum("nd,nd->n", x, x), x.shape[1]))
    return (_sum_of_kernels(x, x) - float(diagonal)) / (len(x) * (len(x) - 1))


def _sum_of_kernels(x: np.ndarray, y: np.ndarray) -> float:
    """Sum over all pairs, some rows at a time, so that memory stays small."""
    return sum(float(_kernel(x[start : start + _CHUNK] @ y.T, x.shape[1]).sum()) for start in range(0, len(x), _CHUNK))


def _kernel(products: np.ndarray, width: int) -> np.ndarray:
    base = products / width + 1.0
    return base * base * base
