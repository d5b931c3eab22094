"""L2: stay near the parameters that the task before left, all equally important [ours]."""

import jax
import jax.numpy as jnp

from jdcl_jax.methods.method import Learned, Memory
from jdcl_jax.methods.penalty import Penalty
from jdcl_jax.training.state import PyTree

DEFAULTS: dict[str, object] = {
    "strength": 0.1,  # [ours]
}


class L2(Penalty):
    """q = |theta - theta*|^2, theta* after the task before."""

    def init_memory(self, params: PyTree) -> Memory:
        return {"anchor": jax.tree.map(jnp.copy, params)}

    def value(self, params: PyTree, memory: Memory) -> jax.Array:
        squares = jax.tree.map(lambda theta, anchor: jnp.sum(jnp.square(theta - anchor)), params, memory["anchor"])
        return sum(jax.tree.leaves(squares), start=jnp.zeros(()))

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        del memory, task
        return {"anchor": learned.params}


PENALTIES = {"l2": (L2, DEFAULTS)}
