"""Memory aware synapses: parameters matter that the output is sensitive to (arXiv 1711.09601)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jdcl_jax.methods.ewc import diagonal_phase
from jdcl_jax.methods.method import Learned, Memory, Phase
from jdcl_jax.methods.per_sample import output_size
from jdcl_jax.methods.quadratic import QuadraticPenalty, add_task
from jdcl_jax.training.state import PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream

DEFAULTS: dict[str, object] = {
    "strength": 5.0,  # [ours]
    "samples": 1024,  # per-sample gradients per task [ours]
    "batch_size": 16,  # of them at a time [ours]
}


class MAS(QuadraticPenalty):
    """q = sum_i Omega_i (theta_i - theta*_i)^2, Omega the sum over tasks of E|d|f(x)|^2 / dtheta_i|, f the denoiser.

    The expectation is over the task's data, t and noise uniform; |f|^2 is a mean over pixels [ours: for a denoiser].
    """

    def init_tracked(self, params: PyTree) -> Tracked:
        return {"sensitivity": jax.tree.map(jnp.zeros_like, params)}

    def estimation(self, current: Stream) -> Sequence[Phase]:
        steps, of = self.estimation_steps(), output_size(self.setup)
        return [diagonal_phase("sensitivity", self.setup, current, steps, of, 1, "mean_square_output")]

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        return add_task(memory, learned.params, learned.tracked["sensitivity"], anchors="last")


PENALTIES = {"mas": (MAS, DEFAULTS)}
