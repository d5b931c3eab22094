"""Synaptic intelligence: parameters matter whose movement lowered the loss (arXiv 1703.04200)."""

import jax
import jax.numpy as jnp

from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Learned, Memory
from jdcl_jax.methods.quadratic import QuadraticPenalty, add_task
from jdcl_jax.training.state import PyTree
from jdcl_jax.training.step import Tracked

DEFAULTS: dict[str, object] = {
    "strength": 1.0,  # c [ours]
    "damping": 1e-3,  # xi, beside the squared distance that a parameter moved [ours]
}


class SI(QuadraticPenalty):
    """q = sum_i Omega_i (theta_i - theta*_i)^2, Omega the sum over tasks of max(omega_i, 0) / (Delta_i^2 + xi).

    omega_i = sum over a task's steps of -g_i times the update of theta_i, g the gradient of the loss without penalties;
    Delta_i is how far theta_i moved in the task. Parameters that raised the loss on the way get 0 [ours].
    """

    def check(self) -> None:
        if self.options["damping"] <= 0:
            raise UserError(f"method.{self.name}.damping (xi) is not positive; write for example 0.001")

    def init_tracked(self, params: PyTree) -> Tracked:
        return {"path": jax.tree.map(jnp.zeros_like, params)}

    def track(self, tracked: Tracked, gradient: PyTree, update: PyTree) -> Tracked:
        path = jax.tree.map(lambda w, g, u: w - g * u, tracked["path"], gradient, update)
        return {**tracked, "path": path}

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        def importance(path: jax.Array, theta: jax.Array, start: jax.Array) -> jax.Array:
            return jnp.maximum(path, 0.0) / (jnp.square(theta - start) + self.options["damping"])

        # The anchor is where the task before ended, and so where this one began.
        own = jax.tree.map(importance, learned.tracked["path"], learned.params, memory["anchor"])
        return add_task(memory, learned.params, own, anchors="last")


PENALTIES = {"si": (SI, DEFAULTS)}
