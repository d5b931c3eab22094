"""The layers equal their textbook forms, and their gradients stay fast inside a scan on CPU."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models import layers

CANONICAL = "b01f_01io->b01f"
GEOMETRIES = [
    (kernel, strides, padding, size)
    for kernel, strides, size in itertools.product((1, 3), (1, 2), ((8, 6), (5, 7)))
    for padding in ((0, 1) if kernel == 3 else (0,))
]


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def apply(layer, params, x):
    return jax.jit(layer.apply)({"params": params}, x)


def unit_norm(layer, x):
    """The layer with scale 1 and bias 0."""
    channels = x.shape[-1]
    return apply(layer, {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}, x)


def loop_convolution(x, kernel, strides, padding):
    """The definition, in float64: one sum per output pixel."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    kernel = np.asarray(kernel, np.float64)
    kh, kw = kernel.shape[:2]
    rows = (x.shape[1] - kh) // strides + 1
    columns = (x.shape[2] - kw) // strides + 1
    y = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i, j in itertools.product(range(rows), range(columns)):
        window = x[:, i * strides : i * strides + kh, j * strides : j * strides + kw]
        y[:, i, j] = np.einsum("nhwc,hwco->no", window, kernel)
    return y


def gradients(form, x, kernel, strides, padding, weights):
    def loss(x, kernel):
        y = layers.conv2d(x, kernel, strides, padding, form=form)
        return jnp.sum((y * weights).astype(jnp.float32))

    return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)


@pytest.mark.parametrize("form", ["plain", "canonical"])
@pytest.mark.parametrize("kernel_size,strides,padding,size", GEOMETRIES)
def test_convolution_is_its_definition(form, kernel_size, strides, padding, size):
    x = normal(0, (2, *size, 3))
    kernel = normal(1, (kernel_size, kernel_size, 3, 4))
    y = layers.conv2d(x, kernel, strides, padding, form=form)
    np.testing.assert_allclose(y, loop_convolution(x, kernel, strides, padding), atol=2e-5)


@pytest.mark.parametrize("kernel_size,strides,padding,size", GEOMETRIES)
@pytest.mark.parametrize("channels", [(3, 4), (5, 2)])
def test_canonical_gradients_equal_the_plain_ones(kernel_size, strides, padding, size, channels):
    x = normal(0, (2, *size, channels[0]))
    kernel = normal(1, (kernel_size, kernel_size, *channels))
    weights = normal(2, loop_convolution(x, kernel, strides, padding).shape)
    plain = gradients("plain", x, kernel, strides, padding, weights)
    canonical = gradients("canonical", x, kernel, strides, padding, weights)
    for ours, theirs in zip(canonical, plain, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=3e-5)


@pytest.mark.parametrize("strides", [1, 2])
def test_bfloat16_gradients_keep_the_dtype_and_agree(strides):
    x = normal(0, (2, 7, 7, 8), jnp.bfloat16)
    kernel = normal(1, (3, 3, 8, 8), jnp.bfloat16)
    weights = jnp.ones(loop_convolution(x, kernel, strides, 1).shape, jnp.bfloat16)
    plain = gradients("plain", x, kernel, strides, 1, weights)
    canonical = gradients("canonical", x, kernel, strides, 1, weights)
    for ours, theirs in zip(canonical, plain, strict=True):
        assert ours.dtype == theirs.dtype == jnp.bfloat16
        scale = np.abs(np.asarray(theirs, np.float32)).max()
        difference = np.asarray(ours, np.float32) - np.asarray(theirs, np.float32)
        assert np.abs(difference).max() <= 2**-7 * scale


def test_canonical_gradients_of_one_example_at_a_time_agree():
    """Importance estimates take `vmap(grad)`: the custom rule must survive it."""
    x, kernel = normal(0, (4, 6, 6, 3)), normal(1, (3, 3, 3, 5))

    def per_example(form):
        def loss(kernel, image):
            return jnp.sum(jnp.sin(layers.conv2d(image[None], kernel, 2, 1, form=form)))

        return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(kernel, x)

    assert per_example("canonical").shape == (4, 3, 3, 3, 5)
    np.testing.assert_allclose(per_example("canonical"), per_example("plain"), atol=2e-5)


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'plain' and 'canonical', not 'fast'"):
        layers.conv2d(normal(0, (1, 4, 4, 1)), normal(1, (3, 3, 1, 1)), form="fast")


@pytest.mark.parametrize("backend,form", [("cpu", "canonical"), ("gpu", "plain"), ("tpu", "plain")])
def test_the_backend_chooses_the_form(monkeypatch, backend, form):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1))
    jaxpr = str(jax.make_jaxpr(lambda x, kernel: layers.conv2d(x, kernel))(x, kernel))
    assert ("custom_vjp" in jaxpr) == (form == "canonical")


def scanned_gradient_layouts(form):
    """`dim_labels` of every convolution in a compiled scan over steps of gradient descent."""
    x = normal(0, (4, 9, 9, 8))

    def step(kernels, _):
        def loss(kernels, x):
            hidden = jnp.tanh(layers.conv2d(x, kernels[0], 1, 1, form=form))
            return jnp.sum(jnp.tanh(layers.conv2d(hidden, kernels[1], 2, 1, form=form)))

        return jax.tree.map(lambda k, g: k - 0.1 * g, kernels, jax.grad(loss)(kernels, x)), None

    def train(kernels):
        return jax.lax.scan(step, kernels, None, length=3)[0]

    kernels = (normal(1, (3, 3, 8, 8)), normal(2, (3, 3, 8, 8)))
    text = jax.jit(train).lower(kernels).compile().as_text()
    assert " while(" in text, "the scan was unrolled: this test would show nothing"
    layouts = re.findall(r" convolution\(.*?dim_labels=([^,\s]+)", text)
    custom_calls = re.findall(r"custom-call\(.*?custom_call_target=\"([^\"]*conv[^\"]*)\"", text)
    return layouts, custom_calls


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA:CPU's own trap")
def test_scanned_gradients_hold_no_convolution_that_cpu_would_run_by_naive_loops():
    layouts, custom_calls = scanned_gradient_layouts("canonical")
    # Two values, two kernel gradients and one input gradient.
    assert len(layouts) + len(custom_calls) == 5
    assert set(layouts) <= {CANONICAL}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA:CPU's own trap")
def test_plain_scanned_gradients_do_fall_into_the_trap():
    """When this fails, XLA:CPU has learnt to do it alone and the canonical form can go."""
    assert set(scanned_gradient_layouts("plain")[0]) - {CANONICAL}


def test_conv_module_adds_its_bias_and_pads_like_pytorch():
    layer = layers.Conv(features=4, kernel_size=3, strides=2, padding=1)
    x = normal(0, (2, 8, 8, 3))
    params = layer.init(jax.random.key(1), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 3, 3, 4), "bias": (4,)}
    params["bias"] = np.arange(4, dtype=np.float32)
    y = apply(layer, params, x)
    assert y.shape == (2, 4, 4, 4)
    expected = loop_convolution(x, params["kernel"], 2, 1) + np.arange(4)
    np.testing.assert_allclose(y, expected, atol=2e-5)


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
