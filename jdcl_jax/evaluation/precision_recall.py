"""Improved precision and recall: how much of one set lies on the other's manifold.

A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest
other point, k = 3 [paper, arXiv 1904.06991]. Precision is the share of generated images on the real
manifold, recall the share of real images on the generated one.
"""

import dataclasses

import numpy as np

from jdcl_jax.evaluation.samples import PAIRWISE_CAP, feature_matrix, thinned

NEIGHBOURS = 3
LEAST = NEIGHBOURS + 1
_CHUNK = 1_000
# Squared distances below this share of the squared norms are rounding, not distance.
_ROUNDING = 1e-13


@dataclasses.dataclass(frozen=True, eq=False)
class Manifold:
    """Points float64 [N, d] and the squared radius float64 [N] of the ball around each."""

    points: np.ndarray
    squared_radii: np.ndarray


def manifold(features: np.ndarray, neighbours: int = NEIGHBOURS, cap: int = PAIRWISE_CAP) -> Manifold:
    """The manifold of features [N, d]; beyond `cap` rows, that of `cap` drawn ones [ours].

    Raises:
        UserError: not more rows than `neighbours`, or values that are not finite.
    """
    matrix = feature_matrix(features, neighbours + 1, "precision and recall")
    points = thinned(matrix, cap)
    radii = np.empty(len(points))
    for rows in _chunks(len(points)):
        distances = _squared_distances(points[rows], points)
        # A point's distance to itself is exactly 0 and so always sorts first: skip one.
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = 0.0
        radii[rows] = np.partition(distances, neighbours, axis=1)[:, neighbours]
    return Manifold(points, radii)


def share_inside(features: np.ndarray, target: Manifold, cap: int = PAIRWISE_CAP) -> float:
    """Share, in [0, 1], of rows [N, d] within at least one ball of `target`; the edge is inside."""
    points = thinned(feature_matrix(features, 1, "precision and recall"), cap)
    inside = 0
    for rows in _chunks(len(points)):
        distances = _squared_distances(points[rows], target.points)
        inside += int((distances <= target.squared_radii).any(axis=1).sum())
    return inside / len(points)


def precision_and_recall(real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """(precision, recall), each in [0, 1], of features real [N1, d] and generated [N2, d]."""
    precision = share_inside(generated, manifold(real, neighbours))
    return precision, share_inside(real, manifold(generated, neighbours))


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK)]


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """All pairs [len(x), len(y)]; equal rows are exactly 0 apart."""
    norms = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y)[None]
    distances = norms - 2.0 * (x @ y.T)
    distances[distances < _ROUNDING * norms] = 0.0
    return distances
