"""Frechet distance between two sets of features, each taken as a Gaussian.

|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^{1/2}) [paper, arXiv 1706.08500], which is called FID only on
Inception features.
"""

import dataclasses
import functools

import numpy as np

from jdcl_jax.evaluation.samples import checked_features

LEAST = 2
ROWS = 4096
"""Features that are turned into float64 at a time: 64 MiB of Inception's."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean float64 [d] and unbiased covariance float64 [d, d] of a set of features."""

    mean: np.ndarray
    cov: np.ndarray

    @functools.cached_property
    def root(self) -> np.ndarray:
        """The symmetric root of the covariance: root @ root == cov. Computed once."""
        values, vectors = np.linalg.eigh(self.cov)
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def statistics(features: np.ndarray) -> FeatureStatistics:
    """Statistics of features [N, d], computed in float64 of some rows at a time; N may be smaller than d.

    Raises:
        UserError: fewer than two rows, or values that are not finite.
    """
    matrix = checked_features(features, LEAST, "the Frechet distance")
    mean, width = matrix.mean(axis=0, dtype=np.float64), matrix.shape[1]
    scatter = np.zeros((width, width))
    for start in range(0, len(matrix), ROWS):
        centred = matrix[start : start + ROWS] - mean
        scatter += centred.T @ centred
    return FeatureStatistics(mean, scatter / (len(matrix) - 1))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Frechet distance of two Gaussians, squared units of the features, never negative.

    With R the symmetric root of S1, the eigenvalues of S1 S2 are those of the symmetric R S2 R, so
    the trace of the matrix root is the sum of the roots of its eigenvalues; rounding below zero is
    cut off, and covariances of less than full rank need no regularisation. Symmetric in value; put
    the side that is used again first, because its root is kept.

    The estimate from few samples is biased upwards: compare only distances of equal sample counts.
    """
    product = first.root @ second.cov @ first.root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    cross = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    shift = first.mean - second.mean
    distance = shift @ shift + np.trace(first.cov) + np.trace(second.cov) - 2.0 * cross
    return max(float(distance), 0.0)


def frechet_distance_of_features(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features [N1, d] and [N2, d]."""
    return frechet_distance(statistics(first), statistics(second))
