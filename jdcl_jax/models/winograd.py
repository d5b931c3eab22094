"""3x3 convolutions by Winograd's F(2x2, 3x3), with 16 products where the definition has 36 (arXiv 1509.09308).

Along an axis, two neighbouring outputs see four inputs. Four sums of these, each times one of four sums of the kernel's
three weights, are all that both outputs are made of; the same along the other axis makes 16 products of four outputs.
Layouts are as in `convolution.py`: NHWC and HWIO.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

LEAST_CHANNELS, LEAST_SIDE = 128, 16
"""Of what is worth it: the sums are passes over memory, which products must outweigh [ours, measured on a CPU]."""


def fits(x: jax.Array, kernel: jax.Array, strides: int, padding: tuple[tuple[int, int], ...]) -> bool:
    """Whether a convolution can be done this way.

    Args:
      x: [N, H, W, Ci].
      kernel: [kh, kw, Ci, Co].
      strides: the same for both axes.
      padding: ((above, below), (left, right)).
    """
    even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
    return even and kernel.shape[:2] == (3, 3) and strides == 1 and padding == ((1, 1), (1, 1))


def pays(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether one that fits is faster this way on a CPU; in float32 only, for the sums lose bits."""
    large = min(x.shape[1:3]) >= LEAST_SIDE and min(kernel.shape[2:]) >= LEAST_CHANNELS
    return large and x.dtype == kernel.dtype == jnp.float32


@jax.custom_vjp
def winograd_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution with strides of 1 and one zero on every side.

    Args:
      x: [N, H, W, Ci], H and W even.
      kernel: [3, 3, Ci, Co], of the same dtype.

    Returns:
      [N, H, W, Co].
    """
    batch, height, width, _ = x.shape
    products = jnp.einsum("stc,sco->sto", _inputs(x), _kernels(kernel))
    parts = jnp.reshape(products, (16, batch, height // 2, width // 2, -1))
    return _both_back(_outputs, parts)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return winograd_conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every sum is linear, so its gradient is its transpose."""
    x, kernel = residuals
    batch, height, width, inputs = x.shape
    dproducts = _stacked(_both(_outputs_transposed, dy))
    dinputs = jnp.einsum("sto,sco->stc", dproducts, _kernels(kernel))
    dx = _both_back(_inputs_transposed, jnp.reshape(dinputs, (16, batch, height // 2, width // 2, inputs)))
    dkernels = jnp.einsum("stc,sto->sco", _inputs(x), dproducts)
    rows = [_kernel_transposed(list(dkernels[i : i + 4])) for i in range(0, 16, 4)]
    return dx[:, 1:-1, 1:-1], _kernel_transposed(rows)


winograd_conv.defvjp(_forward, _backward)


# -- along both axes


def _inputs(x: jax.Array) -> jax.Array:
    """[16, tiles, Ci]: the sums of every tile of 4x4 padded inputs; neighbours share two rows or columns."""
    return _stacked(_both(_tiles, jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))))


def _kernels(kernel: jax.Array) -> jax.Array:
    """[16, Ci, Co]: the sums of the weights."""
    return jnp.stack([part for row in _kernel(kernel) for part in _kernel(row)])


def _both(apart: Callable[[jax.Array, int], Sequence[jax.Array]], x: jax.Array) -> list[jax.Array]:
    return list(itertools.chain.from_iterable(apart(rows, 2) for rows in apart(x, 1)))


def _both_back(together: Callable[[Sequence[jax.Array], int], jax.Array], parts: jax.Array) -> jax.Array:
    return together([together([parts[i + j] for j in range(4)], 2) for i in range(0, 16, 4)], 1)


def _stacked(parts: Sequence[jax.Array]) -> jax.Array:
    return jnp.reshape(jnp.stack(parts), (len(parts), -1, parts[0].shape[-1]))


# -- along one axis


def _tiles(x: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """2n + 2 inputs -> four sums of n tiles."""
    count = (x.shape[axis] - 2) // 2
    a, b, c, d = (lax.slice_in_dim(x, first, first + 2 * count - 1, 2, axis) for first in range(4))
    return a - c, b + c, c - b, b - d


def _inputs_transposed(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    first, second, third, fourth = parts
    even = _padded(first, axis, 0, 1) + _padded(second + third - first, axis, 1, 0)
    odd = _padded(second - third + fourth, axis, 0, 1) + _padded(-fourth, axis, 1, 0)
    return _woven(even, odd, axis)


def _kernel(kernel: jax.Array) -> tuple[jax.Array, ...]:
    """Three weights along the first axis -> four sums."""
    first, middle, last = kernel
    return first, (first + middle + last) / 2, (first - middle + last) / 2, last


def _kernel_transposed(parts: Sequence[jax.Array]) -> jax.Array:
    first, second, third, fourth = parts
    total, difference = (second + third) / 2, (second - third) / 2
    return jnp.stack([first + total, difference, total + fourth])


def _outputs(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """Four products of n tiles -> 2n outputs."""
    first, second, third, fourth = parts
    return _woven(first + second + third, second - third - fourth, axis)


def _outputs_transposed(y: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    size = y.shape[axis]
    even, odd = lax.slice_in_dim(y, 0, size - 1, 2, axis), lax.slice_in_dim(y, 1, size, 2, axis)
    return even, even + odd, even - odd, -odd


def _woven(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    both = jnp.stack([even, odd], axis + 1)
    return jnp.reshape(both, (*even.shape[:axis], 2 * even.shape[axis], *even.shape[axis + 1 :]))


def _padded(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    return jnp.pad(x, [(before, after) if place == axis else (0, 0) for place in range(x.ndim)])
