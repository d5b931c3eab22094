"""Products of features with a kernel, stated so that every backend compiles their gradients well."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def product(x: jax.Array, kernel: jax.Array, *, form: str | None = None) -> jax.Array:
    """The product of features and a kernel, over the last axis of `x`.

    Args:
      x: [..., Ci].
      kernel: [Ci, Co], of the same dtype as `x`.
      form: "plain" is `x @ kernel`; "rows" the same function whose gradients are written as products of matrices.
        `None` takes "rows" on CPU and "plain" elsewhere, decided when the caller is traced. The form "rows" has no
        forward-mode derivative (`jax.jvp`), because `jax.custom_vjp` has none.

    Returns:
      [..., Co], of the dtype of `x`.

    Raises:
      ValueError: unknown form.
    """
    if form is None:
        form = "rows" if jax.default_backend() == "cpu" else "plain"
    if form == "plain":
        return x @ kernel
    if form != "rows":
        raise ValueError(f"product has the forms 'plain' and 'rows', not {form!r}")
    return jnp.reshape(_rows_product(_rows(x), kernel), (*x.shape[:-1], kernel.shape[-1]))


def _rows(x: jax.Array) -> jax.Array:
    return jnp.reshape(x, (-1, x.shape[-1]))


# JAX states the kernel's gradient as (dy^T x)^T. XLA:CPU writes the transposed dy down, and with it computes all that
# dy depends on once more, element by element in the order of columns: often a whole normalisation's gradient.
@jax.custom_vjp
def _rows_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return dy @ jnp.transpose(kernel), jnp.transpose(x) @ dy


_rows_product.defvjp(_forward, _backward)


def _dot_general(x: jax.Array, kernel: jax.Array, _: Any, precision: Any = None, **__: Any) -> jax.Array:
    if precision is not None:
        raise ValueError("a product has no precision to choose; write jax.default_matmul_precision")
    return product(x, kernel)


class Dense(nn.Dense):
    """`flax.linen.Dense` by `product`: the same parameters, the same function."""

    dot_general: Any = _dot_general
