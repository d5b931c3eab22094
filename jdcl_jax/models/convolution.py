"""2-D convolution, stated so that every backend compiles it well, forward and backward.

Layouts are NHWC for images and HWIO for kernels throughout.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jdcl_jax.models import winograd

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros added: ((above, below), (left, right))."""


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: int = 1,
    padding: int | Pads = 0,
    *,
    form: str | None = None,
) -> jax.Array:
    """2-D convolution with PyTorch's padding.

    Args:
      x: [N, H, W, Ci].
      kernel: [kh, kw, Ci, Co], of the same dtype as `x`.
      strides: step between windows, the same for both axes.
      padding: zeros added, one number for all four sides or ((above, below), (left, right)).
      form: "plain" is `lax.conv_general_dilated`; "canonical" is the same function whose gradients
        are written as ordinary NHWC/HWIO convolutions; "columns" is one product of the windows, laid
        out side by side, and the kernel; "winograd" has fewer products, for 3x3 kernels, strides of 1,
        one zero on every side and even H and W. On CPU `None` takes "winograd" where that pays,
        "columns" where a map of float32 is smaller than the kernel and else "canonical"; elsewhere it takes
        "plain", decided when the caller is traced. The plain form and columns have a forward-mode
        derivative (`jax.jvp`); the others don't, because `jax.custom_vjp` has none.

    Returns:
      [N, (H + 2 padding - kh) // strides + 1, ..., Co], of the dtype of `x`.

    Raises:
      ValueError: unknown form, one that does not fit, or as many zeros on a side as the kernel is long: windows that
        see nothing else.
    """
    pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    if any(max(sides) >= length for sides, length in zip(pads, kernel.shape[:2], strict=True)):
        raise ValueError(f"conv2d: padding {pads} must be smaller than the kernel, {kernel.shape[:2]}")
    fits = winograd.fits(x, kernel, strides, pads)
    if form is None and jax.default_backend() == "cpu":
        # Gradients of columns are added up in the type of x, which needs all of float32's digits.
        small = x.dtype.itemsize >= 4 and _has_small_maps(x, kernel, strides, pads)
        other = "columns" if small else "canonical"
        form = "winograd" if fits and winograd.pays(x, kernel) else other
    if form == "winograd":
        if not fits:
            raise ValueError("conv2d: 'winograd' is for 3x3 kernels, strides of 1, padding 1 and even height and width")
        return winograd.winograd_conv(x, kernel)
    if form == "canonical":
        return _canonical_conv(x, kernel, strides, pads)
    if form == "columns":
        columns = windows(x, kernel.shape[:2], strides, pads)
        return columns @ jnp.reshape(kernel, (-1, kernel.shape[-1]))
    if form in (None, "plain"):
        return _plain_conv(x, kernel, strides, pads)
    raise ValueError(f"conv2d has the forms 'plain', 'canonical', 'columns' and 'winograd', not {form!r}")


def windows(x: jax.Array, size: tuple[int, ...], strides: int, pads: Pads) -> jax.Array:
    """What each output pixel of a convolution sees: exact copies, where JAX's own patches are rounded by GPUs and TPUs.

    Args:
      x: [N, H, W, C].
      size: (kh, kw) of the kernel.
      strides: step between windows, the same for both axes.
      pads: zeros added, ((above, below), (left, right)).

    Returns:
      [N, Ho, Wo, kh kw C], in the order of a kernel's [kh, kw, C].
    """
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (length - side + 1 for length, side in zip(x.shape[1:3], size, strict=True))
    seen = [x[:, i : i + rows : strides, j : j + columns : strides] for i in range(size[0]) for j in range(size[1])]
    return jnp.concatenate(seen, axis=-1)


def upsampled_conv2d(x: jax.Array, kernel: jax.Array, *, form: str | None = None) -> jax.Array:
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution with padding 1.

    Args:
      x: [N, H, W, Ci].
      kernel: [3, 3, Ci, Co], of the same dtype as `x`.
      form: "plain" does the one after the other; "phases" never makes the large image: an output pixel sees only 2x2
        pixels of `x`, with weights that depend on whether its row and its column are even or odd, so four 2x2
        convolutions, 4/9 of the products, give it all (bfloat16 rounds the merged weights once more). `None` takes
        "phases" on CPU and "plain" elsewhere.

    Returns:
      [N, 2 H, 2 W, Co].

    Raises:
      ValueError: unknown form.
    """
    if form is None and jax.default_backend() == "cpu":
        form = "phases"
    if form in (None, "plain"):
        return conv2d(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel, 1, 1, form=form)
    if form != "phases":
        raise ValueError(f"upsampled_conv2d has the forms 'plain' and 'phases', not {form!r}")

    def phase(row: int, column: int) -> jax.Array:
        weights = _merge(_merge(kernel, row, axis=0), column, axis=1)
        return conv2d(x, weights, 1, ((1 - row, row), (1 - column, column)))

    rows = [jnp.stack([phase(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    batch, height, width, _ = x.shape
    return jnp.reshape(jnp.stack(rows, axis=2), (batch, 2 * height, 2 * width, -1))


def _has_small_maps(x: jax.Array, kernel: jax.Array, strides: int, pads: Pads) -> bool:
    """Whether x or the output is shorter than the kernel along an axis: XLA:CPU runs these by naive loops, x's in the
    value and the output's in the kernel's gradient, which it is the kernel of.
    """
    lengths = zip(x.shape[1:3], kernel.shape[:2], pads, strict=True)
    return any(min(length, (length + sum(sides) - side) // strides + 1) < side for length, side, sides in lengths)


def _merge(kernel: jax.Array, odd: int, axis: int) -> jax.Array:
    """Three weights along `axis` to two: an even pixel and the one behind it are copies of the same one."""
    first, middle, last = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    return jnp.concatenate([first + middle, last] if odd else [first, middle + last], axis=axis)


def _plain_conv(x: jax.Array, kernel: jax.Array, strides: int, padding: Pads) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=padding,
        dimension_numbers=DIMENSIONS,
    )


# XLA:CPU puts the transposes that make a convolution canonical only into a program's entry
# computation. JAX states a convolution's gradients with permuted dimension numbers, so inside the
# body of a scan they would be run by naive loops, tens of times slower. Below they are canonical
# from the start and the transposes are our own.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _canonical_conv(x: jax.Array, kernel: jax.Array, strides: int, padding: Pads) -> jax.Array:
    return _plain_conv(x, kernel, strides, padding)


def _canonical_conv_forward(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _plain_conv(x, kernel, strides, padding), (x, kernel)


def _canonical_conv_backward(
    strides: int, padding: Pads, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return (
        _input_gradient(x.shape, kernel, dy, strides, padding),
        _kernel_gradient(x, kernel.shape, dy, strides, padding),
    )


_canonical_conv.defvjp(_canonical_conv_forward, _canonical_conv_backward)


def _input_gradient(
    x_shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, strides: int, padding: Pads
) -> jax.Array:
    """dx: the output's gradient, spread out by the stride, convolved with the turned kernel.

    Turning a kernel is slow. Where a batch has no more pixels than channels, a product of matrices does without.
    """
    if strides == 1 and dy.size <= dy.shape[-1] ** 2:
        return _input_gradient_by_taps(x_shape, kernel, dy, padding)

    def pads(axis: int) -> tuple[int, int]:
        size = kernel.shape[axis - 1]
        before = size - 1 - padding[axis - 1][0]
        spread = (dy.shape[axis] - 1) * strides + 1
        return before, x_shape[axis] + size - 1 - spread - before

    return lax.conv_general_dilated(
        dy,
        jnp.transpose(jnp.flip(kernel, (0, 1)), (0, 1, 3, 2)),
        window_strides=(1, 1),
        padding=(pads(1), pads(2)),
        lhs_dilation=(strides, strides),
        dimension_numbers=DIMENSIONS,
    )


def _input_gradient_by_taps(x_shape: tuple[int, ...], kernel: jax.Array, dy: jax.Array, padding: Pads) -> jax.Array:
    """What each of the kernel's weights gives back, moved to the pixel that it saw, and added up; for strides 1."""
    height, width, inputs, outputs = kernel.shape
    turned = jnp.transpose(jnp.reshape(kernel, (-1, outputs)))
    given = jnp.matmul(_rows(dy), turned, preferred_element_type=jnp.promote_types(dy.dtype, jnp.float32))
    given = jnp.reshape(given, (*dy.shape[:3], height, width, inputs))

    def moved(row: int, column: int) -> jax.Array:
        first = row - padding[0][0], column - padding[1][0]
        spare = (x_shape[axis + 1] - dy.shape[axis + 1] - first[axis] for axis in (0, 1))
        pads = [(0, 0, 0), *((before, after, 0) for before, after in zip(first, spare, strict=True)), (0, 0, 0)]
        return lax.pad(given[:, :, :, row, column], jnp.zeros((), given.dtype), pads)

    taps = (moved(i, j) for i in range(height) for j in range(width))
    return sum(taps, start=jnp.zeros(x_shape, given.dtype)).astype(dy.dtype)


def _kernel_gradient(
    x: jax.Array, kernel_shape: tuple[int, ...], dy: jax.Array, strides: int, padding: Pads
) -> jax.Array:
    """dw, in whichever of three ways moves the least memory."""
    height, width, inputs, outputs = kernel_shape
    if (height, width, strides, padding) == (1, 1, 1, ((0, 0), (0, 0))):
        return jnp.reshape(jnp.transpose(_rows(x)) @ _rows(dy), kernel_shape)
    before = padding[0][0], padding[1][0]
    turning = dy.size + math.prod(kernel_shape)
    if x.size <= turning or strides > 1:
        return _correlate(x, dy, kernel_shape, strides, before)
    # The first argument is the one that is costly to transpose. With the roles exchanged the result
    # comes out turned round.
    turned = (height, width, outputs, inputs)
    dw = _correlate(dy, x, turned, 1, (height - 1 - before[0], width - 1 - before[1]))
    return jnp.transpose(jnp.flip(dw, (0, 1)), (0, 1, 3, 2))


def _rows(x: jax.Array) -> jax.Array:
    return jnp.reshape(x, (-1, x.shape[-1]))


def _correlate(
    x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], strides: int, before: tuple[int, int]
) -> jax.Array:
    """The examples play the channels: x as images [Ci, H, W, N], dy as a kernel [Ho, Wo, N, Co]."""

    def pads(axis: int) -> tuple[int, int]:
        spread = (dy.shape[axis] - 1) * strides + 1
        # Negative where the stride leaves rows of x that no window saw.
        first = before[axis - 1]
        return first, kernel_shape[axis - 1] - 1 + spread - x.shape[axis] - first

    dw = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(dy, (1, 2, 0, 3)),
        window_strides=(1, 1),
        padding=(pads(1), pads(2)),
        rhs_dilation=(strides, strides),
        dimension_numbers=DIMENSIONS,
    )
    return jnp.transpose(dw, (1, 2, 0, 3))
