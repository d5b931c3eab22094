"""Clipping is optax's, by one factor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.training.optimizer import clip_by_norm

GRADIENTS = {"a": jnp.array([[3.0, -4.0]]), "b": jnp.array(12.0)}  # of norm 13


@pytest.mark.parametrize("most", [0.5, 12.9, 13.1, 100.0])
def test_all_gradients_are_scaled_together(most):
    clipped, _ = clip_by_norm(most).update(GRADIENTS, optax.EmptyState())
    wanted, _ = optax.clip_by_global_norm(most).update(GRADIENTS, optax.EmptyState())
    for ours, theirs in zip(jax.tree.leaves(clipped), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert float(optax.tree.norm(clipped)) == pytest.approx(min(most, 13.0), rel=1e-6)


def test_smaller_gradients_stay_as_they_are_bit_for_bit():
    clipped, _ = clip_by_norm(14.0).update(GRADIENTS, optax.EmptyState())
    assert all(np.array_equal(clipped[name], GRADIENTS[name]) for name in GRADIENTS)


def test_no_gradient_stays_none():
    nothing = jax.tree.map(jnp.zeros_like, GRADIENTS)
    clipped, _ = clip_by_norm(1.0).update(nothing, optax.EmptyState())
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(clipped))
