"""From losses to the gradient of a step, averaged over the devices that share the batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdcl_jax.data.batches import Examples
from jdcl_jax.training.state import Context, PyTree

Metrics = dict[str, jax.Array]
Loss = Callable[[PyTree, dict[str, Examples], Context], tuple[jax.Array, Metrics]]
"""(params, batch, context) -> (loss [], metrics). Randomness comes from the examples' own keys, so that the loss of an
example does not depend on the device that computes it. Means are over the examples of this device."""


class Across(NamedTuple):
    """What connects the devices that share a batch.

    Attributes:
      mean: of a tree, over the devices.
      gather: arrays [b, ...] of every device -> [B, ...].
      start: (b) -> the place of this device's first example among all B, int32 [].
    """

    mean: Callable[[PyTree], PyTree]
    gather: Callable[[PyTree], PyTree]
    start: Callable[[int], jax.Array]


def across(axis_name: str | None) -> Across:
    """Over a mapped axis, or nothing where the arrays are whole already."""
    if axis_name is None:
        return Across(lambda tree: tree, lambda tree: tree, lambda size: jnp.int32(0))
    return Across(
        lambda tree: jax.lax.pmean(tree, axis_name),
        lambda tree: jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree),
        lambda size: jax.lax.axis_index(axis_name) * size,
    )


Gradient = Callable[[PyTree, dict[str, Examples], Context, Across], tuple[PyTree, Metrics]]
"""(params, batch, context, across) -> (gradient like params, metrics with "loss"), the same on all devices."""


def descend(loss: Loss) -> Gradient:
    """The gradient of one loss."""

    def gradient(params: PyTree, batch: dict[str, Examples], context: Context, over: Across) -> tuple[PyTree, Metrics]:
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, context)
        return over.mean((gradients, {"loss": value, **metrics}))

    return gradient


def without_conflict(loss: Loss, reference: Loss) -> Gradient:
    """The gradient of `loss`, without its part that would raise `reference` (A-GEM, arXiv 1812.00420).

    Metrics: "loss", both losses' own, and "conflict", 1 where the gradient was projected.
    """

    def gradient(params: PyTree, batch: dict[str, Examples], context: Context, over: Across) -> tuple[PyTree, Metrics]:
        own, metrics = descend(loss)(params, batch, context, over)
        other, others = descend(reference)(params, batch, context, over)
        projected, conflict = project_conflict(own, other)
        del others["loss"]
        return projected, {**metrics, **others, "conflict": conflict}

    return gradient


def project_conflict(gradient: PyTree, reference: PyTree) -> tuple[PyTree, jax.Array]:
    """Gives g where g . r >= 0, else g - (g . r) / (r . r) r, the closest with g . r = 0; and 1.0 if it was changed.

    It is over all leaves together, not leaf by leaf.
    """
    product, square = optax.tree.vdot(gradient, reference), optax.tree.vdot(reference, reference)
    conflict = (product < 0) & (square > 0)  # the square of a tiny reference underflows to 0
    factor = jnp.where(conflict, product / jnp.where(conflict, square, 1.0), 0.0)
    projected = jax.tree.map(lambda g, r: g - factor * r, gradient, reference)
    return projected, conflict.astype(jnp.float32)
