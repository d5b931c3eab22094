"""The product of features and a kernel is its definition, forward and backward, in every form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models.product import Dense, product

FORMS = ("plain", "rows")


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 5, 7)])
def test_value_and_gradients_are_sums_over_rows(form, shape):
    x, kernel, weights = normal(0, shape), normal(1, (7, 4)), normal(2, (*shape[:-1], 4))
    value, pullback = jax.vjp(lambda x, kernel: product(x, kernel, form=form), x, kernel)
    dx, dkernel = pullback(weights)
    rows, slopes = x.reshape(-1, 7).astype(np.float64), weights.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(value, (rows @ kernel).reshape(weights.shape), atol=1e-5)
    np.testing.assert_allclose(dx, (slopes @ kernel.T).reshape(shape), atol=1e-5)
    np.testing.assert_allclose(dkernel, sum(np.outer(r, s) for r, s in zip(rows, slopes, strict=True)), atol=1e-5)


def test_bfloat16_stays_bfloat16():
    x, kernel = jnp.asarray(normal(0, (5, 8)), jnp.bfloat16), jnp.asarray(normal(1, (8, 8)), jnp.bfloat16)
    found = [jax.vjp(lambda x, k, form=form: product(x, k, form=form), x, kernel) for form in FORMS]
    assert found[0][0].dtype == found[1][0].dtype == jnp.bfloat16
    for ours, theirs in zip(found[1][1](x), found[0][1](x), strict=True):
        assert ours.dtype == theirs.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=0.02, atol=0.1)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'plain' and 'rows', not 'fast'"):
        product(jnp.ones((2, 3)), jnp.ones((3, 4)), form="fast")


def test_a_precision_that_would_do_nothing_is_refused():
    with pytest.raises(ValueError, match="default_matmul_precision"):
        Dense(4, precision="highest").init(jax.random.key(0), jnp.ones((2, 3)))


@pytest.mark.parametrize("use_bias", [True, False])
def test_the_layer_is_flax_s_own(use_bias):
    x = normal(0, (2, 6, 7))
    ours, theirs = (layer(4, use_bias=use_bias) for layer in (Dense, nn.Dense))
    params = ours.init(jax.random.key(0), x)
    for mine, other in zip(jax.tree.leaves(params), jax.tree.leaves(theirs.init(jax.random.key(0), x)), strict=True):
        np.testing.assert_array_equal(mine, other)
    slopes = [jax.grad(lambda p, layer=layer: jnp.sum(jnp.sin(layer.apply(p, x))))(params) for layer in (ours, theirs)]
    assert jax.tree.structure(slopes[0]) == jax.tree.structure(slopes[1])
    for mine, other in zip(*map(jax.tree.leaves, slopes), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
