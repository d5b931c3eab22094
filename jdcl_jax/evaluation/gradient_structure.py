"""Is the Fisher information close to rank 1? Cosines and eigenvalues from inner products of per-sample gradients.

arXiv 2509.23593 [paper]: per-sample gradients of a diffusion model are nearly collinear with their mean. With the N x N
matrix of inner products (Gram matrix) both sides of that claim are exact whatever the number of parameters: its
eigenvalues over N are those of the empirical Fisher information (1/N) sum_i g_i g_i^T that are not 0.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Structure:
    """What N gradients have in common.

    Attributes:
      cosine: mean over i of the cosine between g_i and the mean of all others. Without that exception N unrelated
        gradients would have 1 / sqrt(N) instead of 0.
      cosine_std: standard deviation of these cosines.
      ratio: lambda_2 / lambda_1 of the Fisher information; 0 is exactly rank 1.
      share: lambda_1 over the trace.
      norm: root mean square of |g_i|.
    """

    cosine: float
    cosine_std: float
    ratio: float
    share: float
    norm: float


def structure(gram: np.ndarray) -> Structure:
    """From the inner products of N >= 3 gradients, float64 [N, N]; NaN where all gradients are 0."""
    gram = np.asarray(gram, np.float64)
    count = len(gram)
    if gram.shape != (count, count) or count < 3:
        raise ValueError(f"inner products of at least 3 gradients are [N, N], not {gram.shape}")
    squares = np.diag(gram)
    rest = gram.sum(axis=1) - squares  # g_i . (sum of the others)
    rest_squares = gram.sum() - 2.0 * gram.sum(axis=1) + squares  # |sum of the others|^2
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = rest / np.sqrt(squares * np.maximum(rest_squares, 0.0))
        eigenvalues = np.linalg.eigvalsh(gram)[::-1]
        return Structure(
            cosine=float(np.mean(cosines)),
            cosine_std=float(np.std(cosines)),
            ratio=float(max(eigenvalues[1], 0.0) / eigenvalues[0]),
            share=float(eigenvalues[0] / squares.sum()),
            norm=float(np.sqrt(squares.mean())),
        )
