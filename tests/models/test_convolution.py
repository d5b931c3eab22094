"""The convolution is its definition, and its gradients stay fast inside a scan on CPU."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models import convolution

CANONICAL = "b01f_01io->b01f"
GEOMETRIES = [
    (kernel, strides, padding, size)
    for kernel, strides, size in itertools.product((1, 3), (1, 2), ((8, 6), (5, 7)))
    for padding in ((0, 1) if kernel == 3 else (0,))
]


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


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
        y = convolution.conv2d(x, kernel, strides, padding, form=form)
        return jnp.sum((y * weights).astype(jnp.float32))

    return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)


@pytest.mark.parametrize("form", ["plain", "canonical", "columns"])
@pytest.mark.parametrize("kernel_size,strides,padding,size", GEOMETRIES)
def test_convolution_is_its_definition(form, kernel_size, strides, padding, size):
    x = normal(0, (2, *size, 3))
    kernel = normal(1, (kernel_size, kernel_size, 3, 4))
    y = convolution.conv2d(x, kernel, strides, padding, form=form)
    np.testing.assert_allclose(y, loop_convolution(x, kernel, strides, padding), atol=2e-5)


@pytest.mark.parametrize("form", ["canonical", "columns"])
@pytest.mark.parametrize("kernel_size,strides,padding,size", GEOMETRIES)
@pytest.mark.parametrize("channels", [(3, 4), (5, 2)])
def test_gradients_equal_the_plain_ones(form, kernel_size, strides, padding, size, channels):
    x = normal(0, (2, *size, channels[0]))
    kernel = normal(1, (kernel_size, kernel_size, *channels))
    weights = normal(2, loop_convolution(x, kernel, strides, padding).shape)
    plain = gradients("plain", x, kernel, strides, padding, weights)
    found = gradients(form, x, kernel, strides, padding, weights)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=3e-5)


@pytest.mark.parametrize("channels", [(3, 4), (5, 2)])
@pytest.mark.parametrize("pads", [((1, 0), (0, 1)), ((0, 1), (2, 1))])
def test_padding_may_differ_from_side_to_side(pads, channels):
    x, kernel = normal(0, (2, 5, 7, channels[0])), normal(1, (2, 3, *channels))
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    wanted = loop_convolution(padded, kernel, 1, 0)
    weights = normal(2, wanted.shape)
    plain = gradients("plain", x, kernel, 1, pads, weights)
    for form in ("plain", "canonical", "columns"):
        np.testing.assert_allclose(convolution.conv2d(x, kernel, 1, pads, form=form), wanted, atol=2e-5)
        for ours, theirs in zip(gradients(form, x, kernel, 1, pads, weights), plain, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=3e-5)


@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((1, 0), (0, 1)), ((0, 1), (2, 1))])
@pytest.mark.parametrize("channels", [(3, 32), (40, 32)])
def test_gradients_agree_where_there_are_fewer_pixels_than_channels(pads, channels, monkeypatch):
    x, kernel = normal(0, (1, 4, 5, channels[0])), normal(1, (2, 3, *channels))
    weights = normal(2, loop_convolution(np.pad(x, ((0, 0), *pads, (0, 0))), kernel, 1, 0).shape)
    assert weights[..., 0].size <= channels[1]
    by_taps, calls = convolution._input_gradient_by_taps, []
    monkeypatch.setattr(convolution, "_input_gradient_by_taps", lambda *args: calls.append(1) or by_taps(*args))
    found = [gradients(form, x, kernel, 1, pads, weights) for form in ("canonical", "plain")]
    assert calls
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("channels", [(3, 4), (5, 2)])
@pytest.mark.parametrize("size", [(4, 4), (1, 3), (5, 2)])
def test_a_convolution_after_upsampling_is_its_definition_in_both_forms(size, channels):
    x, kernel = normal(0, (2, *size, channels[0])), normal(1, (3, 3, *channels))
    wanted = loop_convolution(x.repeat(2, axis=1).repeat(2, axis=2), kernel, 1, 1)
    weights = normal(2, wanted.shape)

    def loss(x, kernel, form):
        return jnp.sum(weights * convolution.upsampled_conv2d(x, kernel, form=form))

    forms = ("plain", "phases")
    for form in forms:
        np.testing.assert_allclose(convolution.upsampled_conv2d(x, kernel, form=form), wanted, atol=3e-5)
    found = [jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(x, kernel, form) for form in forms]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)


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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [(4, 4), (2, 2)], ids=["fewer pixels than channels", "maps smaller than the kernel"])
def test_gradients_in_sixteen_bits_are_as_exact_as_the_plain_ones(dtype, size):
    """Nine parts of a gradient that are rounded before they are added up would make it half as exact."""
    x, dy = normal(0, (1, *size, 64)), normal(1, (1, *size, 64))
    kernel = normal(2, (3, 3, 64, 64))
    x, dy, kernel = (jnp.asarray(a, dtype) for a in (x, dy, kernel))
    exact = loop_convolution(dy, np.flip(np.asarray(kernel, np.float64), (0, 1)).swapaxes(2, 3), 1, 1)

    def error(form):
        dx, _ = gradients(form, x, kernel, 1, 1, dy)
        return np.sqrt(np.mean((np.asarray(dx, np.float64) - exact) ** 2))

    assert error(None) < 1.3 * error("plain")
    assert error("canonical") < 1.3 * error("plain")


def test_canonical_gradients_of_one_example_at_a_time_agree():
    """Importance estimates take `vmap(grad)`: the custom rule must survive it."""
    x, kernel = normal(0, (4, 6, 6, 3)), normal(1, (3, 3, 3, 5))

    def per_example(form):
        def loss(kernel, image):
            return jnp.sum(jnp.sin(convolution.conv2d(image[None], kernel, 2, 1, form=form)))

        return jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(kernel, x)

    assert per_example("canonical").shape == (4, 3, 3, 3, 5)
    np.testing.assert_allclose(per_example("canonical"), per_example("plain"), atol=2e-5)


SMALL_MAPS = [
    *itertools.product([(1, 1), (2, 2), (2, 5), (5, 1)], [(3, 3)], [1], [((1, 1), (1, 1))]),
    *itertools.product([(1, 1), (1, 4)], [(2, 2)], [1], [((1, 0), (0, 1))]),
    *itertools.product([(2, 2), (3, 3), (4, 4), (9, 4)], [(3, 3)], [2], [((1, 1), (1, 1)), ((0, 1), (0, 1))]),
]


@pytest.mark.parametrize("size,kernel_size,strides,pads", SMALL_MAPS)
def test_small_maps_give_what_they_should_and_without_a_convolution_on_cpu(
    size, kernel_size, strides, pads, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    x, kernel = normal(0, (2, *size, 3)), normal(1, (*kernel_size, 3, 4))
    wanted = loop_convolution(np.pad(x, ((0, 0), *pads, (0, 0))), kernel, strides, 0)
    np.testing.assert_allclose(convolution.conv2d(x, kernel, strides, pads), wanted, atol=2e-5)
    weights = normal(2, wanted.shape)
    found, plain = (gradients(form, x, kernel, strides, pads, weights) for form in (None, "plain"))
    for ours, theirs in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5)
    program = jax.make_jaxpr(jax.grad(lambda x, kernel: jnp.sum(convolution.conv2d(x, kernel, strides, pads)), (0, 1)))
    assert "conv_general_dilated" not in str(program(x, kernel))


@pytest.mark.parametrize(
    "size,kernel_size,strides", [((3, 3), 3, 1), ((2, 2), 2, 1), ((8, 8), 3, 2), ((5, 5), 3, 2), ((1, 1), 1, 1)]
)
def test_maps_as_large_as_the_kernel_are_convolved(size, kernel_size, strides, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    x, kernel = jnp.zeros((2, *size, 3)), jnp.zeros((kernel_size, kernel_size, 3, 4))
    program = jax.make_jaxpr(lambda x, kernel: convolution.conv2d(x, kernel, strides, kernel_size // 2))(x, kernel)
    assert "conv_general_dilated" in str(program)


def test_padding_as_long_as_the_kernel_is_refused():
    with pytest.raises(ValueError, match="must be smaller than the kernel"):
        convolution.conv2d(normal(0, (1, 4, 4, 1)), normal(1, (3, 3, 1, 1)), 1, ((3, 0), (1, 1)))


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'plain', 'canonical', 'columns' and 'winograd', not 'fast'"):
        convolution.conv2d(normal(0, (1, 4, 4, 1)), normal(1, (3, 3, 1, 1)), form="fast")
    with pytest.raises(ValueError, match="'plain' and 'phases', not 'fast'"):
        convolution.upsampled_conv2d(normal(0, (1, 4, 4, 1)), normal(1, (3, 3, 1, 1)), form="fast")


@pytest.mark.parametrize("backend,form", [("cpu", "canonical"), ("gpu", "plain"), ("tpu", "plain")])
def test_the_backend_chooses_the_form(monkeypatch, backend, form):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1))
    jaxpr = str(jax.make_jaxpr(lambda x, kernel: convolution.conv2d(x, kernel, 1, 1))(x, kernel))
    assert ("custom_vjp" in jaxpr) == (form == "canonical")
    jaxpr = str(jax.make_jaxpr(lambda x, kernel: convolution.upsampled_conv2d(x, kernel))(x, kernel))
    assert jaxpr.count("conv_general_dilated[") == (4 if form == "canonical" else 1)


def scanned_gradient_layouts(form):
    """`dim_labels` of every convolution in a compiled scan over steps of gradient descent."""
    x = normal(0, (4, 9, 9, 8))

    def step(kernels, _):
        def loss(kernels, x):
            hidden = jnp.tanh(convolution.conv2d(x, kernels[0], 1, 1, form=form))
            return jnp.sum(jnp.tanh(convolution.conv2d(hidden, kernels[1], 2, 1, form=form)))

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
