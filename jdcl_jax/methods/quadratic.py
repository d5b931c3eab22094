"""Diagonal quadratic forms: sum_k sum_i F_k,i (theta_i - theta_k,i)^2 in memory that does not grow with the tasks.

With d = theta - anchor, the anchor being the newest theta_k, the sum is sum(F d^2 + 2 b d) + c: F the sum of all F_k,
b = sum_k F_k (anchor - theta_k), c = sum_k sum F_k (anchor - theta_k)^2. With a single anchor b and c are 0.
"""

import jax
import jax.numpy as jnp
import optax

from jdcl_jax.methods.method import Memory
from jdcl_jax.methods.penalty import Penalty
from jdcl_jax.training.state import PyTree


def empty_quadratic(params: PyTree) -> Memory:
    """The form that is 0 everywhere, anchored at `params`."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return {
        "anchor": jax.tree.map(jnp.copy, params),
        "importance": zeros,
        "slope": jax.tree.map(jnp.zeros_like, params),
        "constant": jnp.zeros(()),
    }


def quadratic_value(form: Memory, params: PyTree) -> jax.Array:
    """The sum over all tasks and parameters, float32 []."""

    def leaf(theta: jax.Array, anchor: jax.Array, importance: jax.Array, slope: jax.Array) -> jax.Array:
        d = theta - anchor
        return jnp.sum(d * (importance * d + 2.0 * slope))

    parts = jax.tree.map(leaf, params, form["anchor"], form["importance"], form["slope"])
    return sum(jax.tree.leaves(parts), start=jnp.asarray(form["constant"], jnp.float32))


def add_task(form: Memory, params: PyTree, importance: PyTree, *, anchors: str) -> Memory:
    """The form after one more task.

    Args:
      form: before it.
      params: where the task ended, its anchor.
      importance: F of the task, like params, >= 0.
      anchors: "each": every task keeps its own anchor; "last": the sum of all F is anchored at the newest parameters.
    """
    if anchors == "last":
        return {**form, "anchor": params, "importance": jax.tree.map(jnp.add, form["importance"], importance)}
    shift = jax.tree.map(jnp.subtract, params, form["anchor"])
    moved = jax.tree.map(jnp.multiply, form["importance"], shift)
    grown = form["constant"] + 2.0 * optax.tree.vdot(shift, form["slope"]) + optax.tree.vdot(shift, moved)
    return {
        "anchor": params,
        "importance": jax.tree.map(jnp.add, form["importance"], importance),
        "slope": jax.tree.map(jnp.add, form["slope"], moved),
        "constant": grown,
    }


class QuadraticPenalty(Penalty):
    """A penalty whose q is such a form."""

    def init_memory(self, params: PyTree) -> Memory:
        return empty_quadratic(params)

    def value(self, params: PyTree, memory: Memory) -> jax.Array:
        return quadratic_value(memory, params)
