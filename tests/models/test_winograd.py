"""Winograd's convolution is the convolution, in its value and in both gradients, and is chosen where it pays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models import winograd
from jdcl_jax.models.convolution import conv2d


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def definition(x, kernel):
    """In float64: one product of matrices for each of the kernel's nine places."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    places = ((i, j) for i in range(3) for j in range(3))
    return sum(padded[:, i : i + height, j : j + width] @ np.asarray(kernel[i, j], np.float64) for i, j in places)


SHAPES = [(2, 2, 2, 1, 1), (1, 4, 6, 3, 5), (3, 8, 2, 5, 2)]


@pytest.mark.parametrize(("batch", "height", "width", "inputs", "outputs"), SHAPES)
def test_it_is_the_definition(batch, height, width, inputs, outputs):
    x, kernel = normal(0, (batch, height, width, inputs)), normal(1, (3, 3, inputs, outputs))
    np.testing.assert_allclose(winograd.winograd_conv(x, kernel), definition(x, kernel), atol=2e-5)


@pytest.mark.parametrize(("batch", "height", "width", "inputs", "outputs"), SHAPES)
def test_its_gradients_are_those_of_the_plain_form(batch, height, width, inputs, outputs):
    x, kernel = normal(0, (batch, height, width, inputs)), normal(1, (3, 3, inputs, outputs))
    weights = normal(2, (batch, height, width, outputs))
    ours, plain = (
        jax.grad(lambda x, k, form=form: jnp.sum(weights * conv2d(x, k, 1, 1, form=form)), (0, 1))(x, kernel)
        for form in ("winograd", "plain")
    )
    for mine, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, other, atol=5e-5)


def test_a_single_pixel_sees_the_kernel_the_right_way_round():
    x = np.zeros((1, 6, 6, 1), np.float32)
    x[0, 2, 3] = 1.0
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    seen = np.asarray(winograd.winograd_conv(x, kernel))[0, :, :, 0]
    np.testing.assert_allclose(seen[1:4, 2:5], kernel[::-1, ::-1, 0, 0], atol=1e-6)
    assert np.abs(seen).sum() == pytest.approx(kernel.sum(), abs=1e-5)


def test_rounding_is_that_of_float32():
    x, kernel = normal(0, (2, 16, 16, 256)), normal(1, (3, 3, 256, 128))
    expected = definition(x, kernel)
    errors = [
        np.abs(np.asarray(conv2d(x, kernel, 1, 1, form=form)) - expected).max() / np.abs(expected).max()
        for form in ("winograd", "plain")
    ]
    assert errors[0] < 2e-6
    assert errors[0] < 8 * errors[1]


def products(x, kernel, **options):
    """Names of the operations that multiply."""
    equations = jax.make_jaxpr(lambda x, k: conv2d(x, k, **options))(x, kernel).jaxpr
    return {word for word in ("conv_general_dilated", "dot_general") if word in str(equations)}


LARGE, KERNEL = (2, 16, 16, 128), (3, 3, 128, 128)


@pytest.mark.parametrize(
    ("image", "kernel", "options", "dtype"),
    [
        ((2, 14, 14, 128), KERNEL, {"padding": 1}, np.float32),
        ((2, 17, 16, 128), KERNEL, {"padding": 1}, np.float32),
        ((2, 16, 16, 64), (3, 3, 64, 128), {"padding": 1}, np.float32),
        (LARGE, (3, 3, 128, 64), {"padding": 1}, np.float32),
        (LARGE, (1, 1, 128, 128), {}, np.float32),
        (LARGE, KERNEL, {}, np.float32),
        (LARGE, KERNEL, {"padding": 1, "strides": 2}, np.float32),
        (LARGE, KERNEL, {"padding": 1}, jnp.bfloat16),
        (LARGE, KERNEL, {"padding": 1, "form": "canonical"}, np.float32),
    ],
)
def test_it_is_not_chosen_where_it_does_not_fit_or_pay(image, kernel, options, dtype):
    assert products(jnp.zeros(image, dtype), jnp.zeros(kernel, dtype), **options) == {"conv_general_dilated"}


def test_it_is_chosen_for_large_convolutions_on_a_cpu_alone(monkeypatch):
    x, kernel = jnp.zeros(LARGE), jnp.zeros(KERNEL)
    assert products(x, kernel, padding=1) == {"dot_general"}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert products(x, kernel, padding=1) == {"conv_general_dilated"}


@pytest.mark.parametrize("options", [{}, {"padding": 1, "strides": 2}, {"padding": ((1, 0), (1, 1))}])
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(ValueError, match="'winograd' is for 3x3 kernels"):
        conv2d(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2)), form="winograd", **options)


def test_it_may_be_mapped_over_examples():
    x, kernel = normal(0, (3, 1, 4, 4, 2)), normal(1, (3, 3, 2, 3))

    def gradient(image):
        return jax.grad(lambda k: jnp.sum(winograd.winograd_conv(image, k) ** 2))(kernel)

    apart = np.stack([gradient(image) for image in x])
    np.testing.assert_allclose(jax.vmap(gradient)(x), apart, atol=1e-4)
