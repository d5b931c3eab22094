"""Improved precision and recall on hand-made point sets and against scikit-learn's neighbours."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation import precision_recall
from jdcl_jax.evaluation.precision_recall import manifold, precision_and_recall, share_inside


def line(*positions: float) -> np.ndarray:
    return np.array(positions, np.float32)[:, None]


def test_radius_reaches_to_the_third_nearest_other_point():
    # From 0 the others are 1, 3 and 10 away; from 10 they are 7, 9 and 10 away; ...
    np.testing.assert_array_equal(manifold(line(0, 1, 3, 10, 30)).squared_radii, np.square([10, 9, 7, 10, 29]))


def test_a_point_on_the_edge_is_inside_and_one_beyond_it_is_not():
    balls = manifold(line(0, 1, 2, 3))  # radii 3, 2, 2, 3: they cover -3 to 6
    assert share_inside(line(-3, 6), balls) == 1.0
    assert share_inside(line(-3.1, 6.1), balls) == 0.0
    assert share_inside(line(-3.1, -3, 5, 100), balls) == 0.5


def test_a_generator_of_one_mode_is_precise_and_recalls_that_mode_only():
    mode = np.random.default_rng(0).normal(size=(40, 2))
    real = np.concatenate([mode, mode + 100, mode + 200, mode + 300])
    generated = np.random.default_rng(1).normal(size=(60, 2)) * 0.5
    precision, recall = precision_and_recall(real, generated)
    assert precision == 1.0
    assert 0 < recall <= 0.25
    swapped = precision_and_recall(generated, real)
    assert swapped == (recall, precision)


def test_junk_far_away_is_neither_precise_nor_recalls_anything():
    real = np.random.default_rng(2).normal(size=(30, 3))
    assert precision_and_recall(real, real + 1000) == (0.0, 0.0)
    assert precision_and_recall(real, real) == (1.0, 1.0)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_shares_agree_with_sklearn_neighbours(chunk, monkeypatch):
    monkeypatch.setattr(precision_recall, "_CHUNK", chunk)
    generator = np.random.default_rng(3)
    real = generator.normal(size=(50, 4))
    generated = generator.normal(size=(35, 4)) * 1.3 + 0.5

    def naive(points, support):
        # The nearest of the support to itself is itself, so the 4th neighbour is the 3rd other.
        radii = NearestNeighbors(n_neighbors=4).fit(support).kneighbors(support)[0][:, 3]
        inside = [any(np.linalg.norm(p - s) <= r for s, r in zip(support, radii, strict=True)) for p in points]
        return np.mean(inside)

    precision, recall = precision_and_recall(real, generated)
    assert 0.1 < precision < 0.9 and precision != recall  # the case tells them apart
    assert (precision, recall) == (naive(generated, real), naive(real, generated))


def test_copies_of_a_point_are_on_a_manifold_of_radius_zero():
    point = np.random.default_rng(4).normal(size=(1, 300)) * 50
    balls = manifold(np.repeat(point, 6, axis=0))
    assert (balls.squared_radii == 0).all()
    assert share_inside(np.repeat(point, 3, axis=0), balls) == 1.0
    assert share_inside(point + 1e-3, balls) == 0.0


def test_too_few_points_is_a_clear_error():
    with pytest.raises(UserError, match="at least 4 images"):
        manifold(line(0, 1, 2))
