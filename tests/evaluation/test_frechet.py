"""The Frechet distance against analytic Gaussians and scipy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation import frechet
from jdcl_jax.evaluation.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_distance_of_features,
    statistics,
)


def rotation(size: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(size, size)))[0]


def test_statistics_are_those_of_the_rows_with_the_unbiased_covariance():
    # Columns (1, 3, 5) and (0, 0, 6): means 3 and 2, variances 8/2 and 24/2, covariance 12/2.
    result = statistics(np.array([[1, 0], [3, 0], [5, 6]], np.uint8))
    np.testing.assert_allclose(result.mean, [3, 2])
    np.testing.assert_allclose(result.cov, [[4, 6], [6, 12]])
    assert result.cov.dtype == np.float64


@pytest.mark.parametrize("rows", [1, 7, 20, 64])
def test_statistics_do_not_depend_on_how_many_rows_are_taken_at_a_time(monkeypatch, rows):
    features = np.random.default_rng(0).normal(1e3, 1.0, (20, 5)).astype(np.float32)
    monkeypatch.setattr(frechet, "ROWS", rows)
    found = frechet.statistics(features)
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)


def test_distance_of_diagonal_gaussians_is_the_sum_over_axes():
    # Per axis (m1 - m2)^2 + (s1 - s2)^2: (1 + 4) + (4 + 1) + (0 + 9).
    first = FeatureStatistics(np.array([0.0, 2, 5]), np.diag([1.0, 4, 16]))
    second = FeatureStatistics(np.array([1.0, 0, 5]), np.diag([9.0, 1, 1]))
    assert frechet_distance(first, second) == pytest.approx(5 + 5 + 9, rel=1e-12)


def test_distance_does_not_change_when_both_sides_are_rotated():
    turn = rotation(3)
    first = FeatureStatistics(turn @ [0.0, 2, 5], turn @ np.diag([1.0, 4, 16]) @ turn.T)
    second = FeatureStatistics(turn @ [1.0, 0, 5], turn @ np.diag([9.0, 1, 1]) @ turn.T)
    assert frechet_distance(first, second) == pytest.approx(19, rel=1e-10)


def test_distance_of_gaussians_that_do_not_commute_agrees_with_scipy():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 6, 6))
    m1, m2 = generator.normal(size=(2, 6))
    s1, s2 = a @ a.T, b @ b.T
    root = scipy.linalg.sqrtm(s1 @ s2)
    expected = np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * root.real)
    naive_roots = np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1) @ scipy.linalg.sqrtm(s2)).real
    assert abs(naive_roots + np.sum((m1 - m2) ** 2) - expected) > 0.1  # the case tells them apart
    got = frechet_distance(FeatureStatistics(m1, s1), FeatureStatistics(m2, s2))
    assert got == pytest.approx(expected, rel=1e-8)
    back = frechet_distance(FeatureStatistics(m2, s2), FeatureStatistics(m1, s1))
    assert back == pytest.approx(expected, rel=1e-8)


def test_fewer_samples_than_dimensions_agree_with_the_nuclear_norm():
    # tr (S1 S2)^{1/2} is the nuclear norm of X1c X2c^T / sqrt((n1-1)(n2-1)): no root of S needed.
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(7, 40)), 2 * generator.normal(size=(9, 40)) + 1
    xc, yc = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(xc @ yc.T, "nuc") / np.sqrt(6 * 8)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + (xc**2).sum() / 6 + (yc**2).sum() / 8 - 2 * cross
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-6)


def test_a_shift_of_the_same_features_costs_its_squared_length():
    features = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    assert frechet_distance_of_features(features, features) == pytest.approx(0, abs=1e-6)
    moved = features + np.array([3, 0, 4, 0], np.float32)
    assert frechet_distance_of_features(features, moved) == pytest.approx(25, rel=1e-4)


def test_estimate_from_samples_approaches_the_distance_of_their_distributions():
    generator = np.random.default_rng(3)
    x = generator.normal(0, 1, size=(40_000, 2))
    y = generator.normal(0, 1, size=(40_000, 2)) * [3, 1] + [0, 2]
    assert frechet_distance_of_features(x, y) == pytest.approx(4 + 4, rel=0.03)


def test_one_row_or_nan_is_a_clear_error():
    with pytest.raises(UserError, match="at least 2 images"):
        statistics(np.zeros((1, 3)))
    with pytest.raises(UserError, match="NaN"):
        statistics(np.array([[0.0, np.nan], [1.0, 2.0]]))
    with pytest.raises(UserError, match="one row per image"):
        statistics(np.zeros(4))
