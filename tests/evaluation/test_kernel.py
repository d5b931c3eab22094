"""The kernel distance against its definition and scikit-learn's polynomial kernel."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation import kernel
from jdcl_jax.evaluation.kernel import kernel_distance
from jdcl_jax.evaluation.samples import thinned


@pytest.fixture
def two_sets() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(11, 5)), generator.normal(size=(8, 5)) + 0.5


def test_distance_is_the_definition_summed_pair_by_pair(two_sets):
    x, y = two_sets

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 5 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(11) for j in range(11) if i != j) / (11 * 10)
    within_y = sum(k(y[i], y[j]) for i in range(8) for j in range(8) if i != j) / (8 * 7)
    between = sum(k(a, b) for a in x for b in y) / (11 * 8)
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_distance_agrees_with_sklearn_whatever_the_chunks(two_sets, monkeypatch):
    x, y = two_sets
    kxx, kyy, kxy = (polynomial_kernel(a, b, degree=3, gamma=1 / 5, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    expected = (kxx.sum() - np.trace(kxx)) / 110 + (kyy.sum() - np.trace(kyy)) / 56 - 2 * kxy.mean()
    for chunk in (1, 3, 8, 1000):
        monkeypatch.setattr(kernel, "_CHUNK", chunk)
        assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_distance_of_the_same_distribution_is_zero_on_average():
    generator = np.random.default_rng(1)
    values = [kernel_distance(*generator.normal(size=(2, 60, 4))) for _ in range(200)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0  # unbiased: a clipped or biased estimate never is


def test_distance_grows_with_the_shift_between_two_sets():
    x = np.random.default_rng(2).normal(size=(200, 4))
    y = np.random.default_rng(3).normal(size=(200, 4))
    near, middle, far = (kernel_distance(x, y + shift) for shift in (0, 0.5, 1))
    assert near < middle < far


def test_beyond_the_cap_no_regular_pattern_of_rows_is_missed():
    # Rows sorted like test images by task, or in turn like labels of a conditional network.
    values = np.arange(100.0)[:, None]
    for rows in (np.repeat(values, 10, axis=0), np.tile(values, (10, 1))):
        part = thinned(rows, 300)
        assert len(part) == 300
        assert len(np.unique(part)) > 90
        assert abs(part.mean() - rows.mean()) < 5
        np.testing.assert_array_equal(part, thinned(rows, 300))
    assert thinned(values, 100) is values


def test_the_cap_thins_both_sides():
    x, y = np.random.default_rng(3).normal(size=(40, 2)), np.random.default_rng(4).normal(size=(30, 2))
    assert kernel_distance(x, y, cap=10) == kernel_distance(thinned(x, 10), thinned(y, 10))


def test_one_row_or_different_widths_is_a_clear_error(two_sets):
    with pytest.raises(UserError, match="at least 2 images"):
        kernel_distance(two_sets[0][:1], two_sets[1])
    with pytest.raises(UserError, match="widths 5 and 4"):
        kernel_distance(two_sets[0], two_sets[1][:, :4])
