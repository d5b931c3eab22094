"""Directions in parameter space against NumPy's rows; orthonormal ones in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.keys import named_key
from jdcl_jax.methods.subspace import combine, orthonormal, principal, products, random_directions


def directions(count: int, seed: int = 0, scale=1.0) -> dict:
    generator = np.random.default_rng(seed)
    tree = {"a": generator.normal(size=(count, 3, 4)), "b": {"c": generator.normal(size=(count, 5))}}
    return jax.tree.map(lambda x: jnp.asarray(x * np.reshape(scale, (-1,) + (1,) * (x.ndim - 1)), jnp.float32), tree)


def as_rows(tree) -> np.ndarray:
    return np.concatenate([np.asarray(tree["a"], np.float64).reshape(-1, 12), np.asarray(tree["b"]["c"])], 1)


def test_products_and_combinations_are_over_all_leaves() -> None:
    a, b = directions(2), directions(3, 1)
    np.testing.assert_allclose(products(a, b), as_rows(a) @ as_rows(b).T, rtol=1e-5)
    weights = np.random.default_rng(2).normal(size=(4, 3))
    combined = combine(jnp.asarray(weights, jnp.float32), b)
    assert combined["a"].shape == (4, 3, 4)
    np.testing.assert_allclose(as_rows(combined), weights @ as_rows(b), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (1e-8, 1.0, 1e3), (1e-9, 2e-9, 1e-9)])
def test_orthonormal_directions_have_the_same_span(scale) -> None:
    before = directions(3, scale=scale)
    after = as_rows(orthonormal(before))
    np.testing.assert_allclose(after @ after.T, np.eye(3), atol=1e-5)
    wanted = np.linalg.qr(as_rows(before).T / np.asarray(scale))[0]
    if max(scale) < 1e3 * min(scale):
        np.testing.assert_allclose(after.T @ after, wanted @ wanted.T, atol=1e-4)
    largest = as_rows(before)[np.argmax(scale)]
    np.testing.assert_allclose(after.T @ (after @ largest), largest, atol=1e-4 * np.linalg.norm(largest))


as_one_program = jax.jit(orthonormal)
MULTIPLES = [0.3, -1.0, 2.0, 0.5]


def check_span(rows: np.ndarray) -> np.ndarray:
    """Orthonormal rows or zeros [n, 17], in whose span all of these are."""
    rows = rows.astype(np.float32)
    after = as_rows(as_one_program({"a": rows[:, :12].reshape(-1, 3, 4), "b": {"c": rows[:, 12:]}}))
    gram, rows = after @ after.T, rows.astype(np.float64)
    np.testing.assert_allclose(gram, np.diag(np.round(np.diag(gram))), atol=1e-5)
    lost = rows - (rows @ after.T) @ after
    assert np.max(np.linalg.norm(lost, axis=1) / np.linalg.norm(rows, axis=1)) < 2e-6
    return np.diag(gram)


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-7, 1e-5, 1e-3])
def test_the_common_direction_of_nearly_equal_ones_stays_in_the_span(noise: float) -> None:
    """Gradients of diffusion models nearly share one direction: what is beside it must not push it out."""
    for seed in range(200):
        common, beside = as_rows(directions(1, seed))[0], as_rows(directions(4, 1000 + seed))
        lengths = check_span(np.outer(MULTIPLES, common / np.linalg.norm(common)) + noise * beside)
        if noise >= 1e-5:
            np.testing.assert_allclose(lengths, 1.0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e25])
def test_no_direction_comes_twice_where_rounding_leaves_nothing_beside_it(scale: float) -> None:
    """Of multiples of ones and minus ones rounding leaves a multiple again, which is no direction of its own."""
    for seed in range(50):
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], 17)
        check_span(scale * np.outer(MULTIPLES, signs))
        check_span(scale * np.outer(MULTIPLES, np.ones(17)))
    more_than_there_is_room_for = np.zeros((6, 17))
    more_than_there_is_room_for[:, 3:7] = scale * np.random.default_rng(0).normal(size=(6, 4))
    assert np.sum(check_span(more_than_there_is_room_for)) == pytest.approx(4)


def test_directions_that_are_no_numbers_stay_none() -> None:
    broken = jax.tree.map(lambda x: x.at[1].set(jnp.inf), directions(3))
    assert np.isnan(as_rows(orthonormal(broken))).any()


def test_orthonormal_directions_stay_what_they_are() -> None:
    once = orthonormal(directions(3))
    np.testing.assert_allclose(as_rows(orthonormal(once)), as_rows(once), atol=1e-6)
    assert np.all(as_rows(orthonormal(jax.tree.map(jnp.zeros_like, once))) == 0.0)


def test_products_have_all_digits_of_float32_on_every_device() -> None:
    """Where a matrix product rounds its factors first, as on GPUs and TPUs, the penalty's small differences drown."""
    for function in (lambda x: products(x, x), orthonormal, lambda x: combine(jnp.eye(3), x)):
        text = str(jax.make_jaxpr(function)(directions(3)))
        assert text.count("dot_general[") == text.count("(Precision.HIGHEST, Precision.HIGHEST)") > 0


def test_random_directions_come_from_the_key_alone_and_differ_from_leaf_to_leaf() -> None:
    params = {"a": jnp.zeros((30, 40)), "b": jnp.zeros((30, 40))}
    drawn, again = (random_directions(named_key(3), params, 2) for _ in range(2))
    other = random_directions(named_key(4), params, 2)
    np.testing.assert_array_equal(drawn["a"], again["a"])
    for a, b in ((drawn["a"], drawn["b"]), (drawn["a"][0], drawn["a"][1]), (drawn["a"], other["a"])):
        assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.1
    assert float(jnp.std(drawn["a"])) == pytest.approx(1.0, rel=0.05)


def test_principal_directions_are_sorted_and_none_is_negative() -> None:
    basis, rotation = orthonormal(directions(3)), np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    values, vectors = principal(basis, jnp.asarray(rotation @ np.diag([0.5, 3.0, -1e-6]) @ rotation.T, jnp.float32))
    np.testing.assert_allclose(values, [3.0, 0.5, 0.0], atol=2e-6)
    wanted = rotation.T @ as_rows(basis)
    np.testing.assert_allclose(np.abs(as_rows(vectors) @ wanted.T), np.eye(3)[[1, 0, 2]], atol=1e-5)
