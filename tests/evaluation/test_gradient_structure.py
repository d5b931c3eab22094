"""Cosines and eigenvalues of gradients whose structure is known."""

import numpy as np
import pytest

from jdcl_jax.evaluation.gradient_structure import structure


def of(gradients: np.ndarray):
    return structure(gradients @ gradients.T)


def test_parallel_gradients_are_rank_1_whatever_their_lengths() -> None:
    found = of(np.outer([1.0, 2.0, 3.0, 0.5], np.arange(1.0, 8.0)))
    assert found.cosine == pytest.approx(1.0)
    assert found.cosine_std == pytest.approx(0.0, abs=1e-7)
    assert found.ratio == pytest.approx(0.0, abs=1e-12)
    assert found.share == pytest.approx(1.0)
    assert found.norm == pytest.approx(np.sqrt(np.mean([1, 4, 9, 0.25]) * 140))


def test_orthogonal_gradients_have_nothing_in_common() -> None:
    found = of(np.eye(5))
    assert found.cosine == 0.0
    assert found.ratio == pytest.approx(1.0)
    assert found.share == pytest.approx(0.2)


def test_one_against_the_others_is_a_cosine_of_minus_1() -> None:
    line = np.array([[1.0, 0.0]] * 3 + [[-1.0, 0.0]])
    # Each of the three sees the sum 1 + 1 - 1, the fourth 3 against itself.
    assert of(line).cosine == pytest.approx((3 * 1 - 1) / 4)


def test_eigenvalues_are_those_of_the_fisher_information() -> None:
    gradients = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1] + [2, 0, 0, 0, 0, 0]
    values = np.linalg.eigvalsh(gradients.T @ gradients / 40)[::-1]
    found = of(gradients)
    assert found.ratio == pytest.approx(values[1] / values[0])
    assert found.share == pytest.approx(values[0] / values.sum())


def test_cosines_leave_the_gradient_itself_out_of_the_mean() -> None:
    gradients = np.random.default_rng(1).normal(size=(7, 3))
    by_hand = []
    for i in range(7):
        mean = np.delete(gradients, i, axis=0).mean(axis=0)
        by_hand.append(gradients[i] @ mean / np.linalg.norm(gradients[i]) / np.linalg.norm(mean))
    assert of(gradients).cosine == pytest.approx(np.mean(by_hand))
    assert of(gradients).cosine_std == pytest.approx(np.std(by_hand))


def test_two_gradients_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        of(np.eye(2))
