"""Gradients of single examples of the denoising loss, each with its own t and noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdcl_jax.methods.denoising import Noised
from jdcl_jax.methods.method import Setup
from jdcl_jax.training.state import PyTree

PerExample = Callable[[PyTree, Noised], jax.Array]
"""(params, one noised example as a batch of 1) -> []."""


def half_mse(setup: Setup) -> PerExample:
    """Half the mean squared error over an example's pixels: minus a log-likelihood, up to a constant and a scale."""

    def value(params: PyTree, noised: Noised) -> jax.Array:
        output = setup.apply(params, noised.x_t, noised.t, noised.labels, None)
        return 0.5 * jnp.mean(jnp.square(output - noised.target))

    return value


def output_size(setup: Setup) -> PerExample:
    """Mean square of an example's output, the squared norm of MAS (arXiv 1711.09601) per pixel."""

    def value(params: PyTree, noised: Noised) -> jax.Array:
        return jnp.mean(jnp.square(setup.apply(params, noised.x_t, noised.t, noised.labels, None)))

    return value


def per_sample_gradients(params: PyTree, noised: Noised, of: PerExample) -> tuple[jax.Array, PyTree]:
    """Values [b] and gradients, every leaf [b, ...], one for each example.

    The whole batch's gradient squared is no substitute: its expectation is smaller by the batch size, and cross terms.

    Args:
      params: where.
      noised: b examples.
      of: what is differentiated.
    """

    def one(x_t: jax.Array, t: jax.Array, labels: jax.Array | None, target: jax.Array) -> tuple[jax.Array, PyTree]:
        single = Noised(x_t[None], t[None], None if labels is None else labels[None], target[None])
        return jax.value_and_grad(of)(params, single)

    axes = (0, 0, None if noised.labels is None else 0, 0)
    return jax.vmap(one, in_axes=axes)(noised.x_t, noised.t, noised.labels, noised.target)


def running_mean(old: PyTree, new: PyTree, step: jax.Array) -> PyTree:
    """The mean of steps 0..step, given that of the steps before; what stood there before step 0 is forgotten."""

    def leaf(m: jax.Array, x: jax.Array) -> jax.Array:
        m = jnp.where(step == 0, 0.0, m)  # x - m would keep the rounding error of an old m, or its NaN
        return m + (x - m) / (step + 1)

    return jax.tree.map(leaf, old, new)
