"""The layers equal their textbook forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models import layers


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def apply(layer, params, x):
    return jax.jit(layer.apply)({"params": params}, x)


def unit_norm(layer, x):
    """The layer with scale 1 and bias 0."""
    channels = x.shape[-1]
    return apply(layer, {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}, x)


def test_conv_module_adds_its_bias_and_pads_like_pytorch():
    layer = layers.Conv(features=4, kernel_size=3, strides=2, padding=1)
    x = normal(0, (2, 8, 8, 3))
    params = layer.init(jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 3, 3, 4), "bias": (4,)}
    params["bias"] = np.arange(4, dtype=np.float32)
    y = apply(layer, params, x)
    # Windows start one pixel outside the image and step by two.
    window = x[:, 1:4, 3:6]
    assert y.shape == (2, 4, 4, 4)
    expected = np.einsum("nhwc,hwco->no", window, params["kernel"]) + np.arange(4)
    np.testing.assert_allclose(y[:, 1, 2], expected, atol=2e-5)


def test_conv_module_computes_in_its_dtype_and_keeps_float32_parameters():
    layer = layers.Conv(features=4, dtype=jnp.bfloat16, kernel_init=nn.initializers.zeros_init())
    x = normal(0, (1, 4, 4, 3))
    y, variables = layer.init_with_output(jax.random.key(1), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert not np.asarray(y, np.float32).any()


def group_norm_oracle(x, scale, bias, groups, epsilon):
    x = np.asarray(x, np.float64)
    batch, channels = x.shape[0], x.shape[-1]
    grouped = x.reshape(batch, -1, groups, channels // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return y * np.asarray(scale, np.float64) + np.asarray(bias, np.float64)


def test_conv_upsamples_first_if_told_to():
    x = normal(0, (2, 3, 4, 2))
    params = {"kernel": normal(1, (3, 3, 2, 5)), "bias": normal(2, (5,))}
    large = apply(layers.Conv(features=5), params, x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(apply(layers.Conv(features=5, upsample=True), params, x), large, atol=1e-5)
    with pytest.raises(ValueError, match="strides=1 and padding=1 only"):
        apply(layers.Conv(features=5, upsample=True, strides=2), params, x)


@pytest.mark.parametrize("groups,channels", [(32, 32), (32, 64), (8, 24), (1, 6)])
def test_group_norm_is_its_definition(groups, channels):
    x = normal(0, (3, 5, 7, channels)) * 2 + normal(1, (1, 1, 1, channels))
    params = {"scale": normal(2, (channels,)), "bias": normal(3, (channels,))}
    y = apply(layers.GroupNorm(groups), params, x)
    expected = group_norm_oracle(x, params["scale"], params["bias"], groups, 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_epsilon_is_inside_the_root():
    """Two pixels at +-1e-3 have variance 1e-6: the value is 1e-3 / sqrt(1e-6 + epsilon)."""
    x = np.array([1e-3, -1e-3], np.float32).reshape(1, 2, 1, 1)
    y = unit_norm(layers.GroupNorm(1), x)
    np.testing.assert_allclose(y.ravel(), [0.30151134, -0.30151134], rtol=1e-5)


def test_a_constant_image_gives_the_bias():
    x = np.full((1, 4, 4, 6), 1234.567, np.float32)
    bias = np.arange(6, dtype=np.float32)
    y = apply(layers.GroupNorm(1), {"scale": np.ones(6, np.float32), "bias": bias}, x)
    np.testing.assert_allclose(y, np.broadcast_to(bias, x.shape), atol=1e-5)


@pytest.mark.parametrize("mean", [10.0, 1000.0])
def test_a_large_mean_does_not_cancel_the_variance(mean):
    """Half a float32 step at `mean` is the input's own error; E[x^2] - E[x]^2 would be off by 1."""
    x = normal(0, (2, 8, 8, 32)) + mean
    y = unit_norm(layers.GroupNorm(8), x)
    expected = group_norm_oracle(x, np.ones(32), np.zeros(32), 8, 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5 + 4e-7 * mean)


def test_group_norm_gradients_equal_flax():
    x, weights = normal(0, (2, 5, 5, 16)) + 0.5, normal(1, (2, 5, 5, 16))
    params = {"scale": normal(2, (16,)), "bias": normal(3, (16,))}

    def gradient(apply):
        loss = jax.grad(lambda params, x: jnp.sum(weights * apply(params, x)), (0, 1))
        return jax.jit(loss)(params, x)

    theirs = nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False)
    expected = gradient(lambda params, x: nn.silu(theirs.apply({"params": params}, x)))
    ours = layers.GroupNorm(4, act=nn.silu)
    actual = gradient(lambda params, x: ours.apply({"params": params}, x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, expected)


@pytest.mark.parametrize("mean,tolerance", [(10.0, 1e-5), (1000.0, 1e-3)])
def test_gradients_survive_a_large_mean(mean, tolerance):
    """The gradients do not depend on the mean: those of the centred input are the oracle."""
    x, weights = normal(0, (2, 8, 8, 16)), normal(1, (2, 8, 8, 16))
    params = {"scale": normal(2, (16,)), "bias": normal(3, (16,))}
    layer = layers.GroupNorm(4, act=nn.silu)

    @jax.jit
    def gradient(x):
        return jax.grad(lambda p, x: jnp.sum(weights * layer.apply({"params": p}, x)), (0, 1))(params, x)

    moved = x + np.float32(mean)
    found, wanted = gradient(moved), gradient(moved - np.float32(mean))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max()), found, wanted)


def test_group_norm_of_bfloat16_computes_in_float32():
    x = (normal(0, (2, 6, 6, 32)) + 3).astype(jnp.bfloat16)
    y = unit_norm(layers.GroupNorm(8, act=nn.silu), x)
    assert y.dtype == jnp.bfloat16
    expected = group_norm_oracle(x, np.ones(32), np.zeros(32), 8, 1e-5)
    expected = expected / (1 + np.exp(-expected))
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=1e-4, rtol=2**-8)


@pytest.mark.parametrize("groups,channels", [(32, 24), (32, 48), (0, 8)])
def test_groups_that_do_not_divide_are_refused(groups, channels):
    with pytest.raises(ValueError, match=f"{groups} groups do not divide {channels} channels"):
        layers.GroupNorm(groups).init(jax.random.key(0), jnp.zeros((1, 2, 2, channels)))
