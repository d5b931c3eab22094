"""Elastic weight consolidation: the diagonal Fisher information says which parameters matter (arXiv 1612.00796)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.methods.denoising import noise_examples
from jdcl_jax.methods.method import Learned, Memory, Phase, Setup
from jdcl_jax.methods.per_sample import PerExample, half_mse, per_sample_gradients, running_mean
from jdcl_jax.methods.quadratic import QuadraticPenalty, add_task
from jdcl_jax.training.gradients import Across, Metrics
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream

ANCHORS = ("each", "last")

DEFAULTS: dict[str, object] = {
    "strength": 15_000.0,  # lambda [ours: that of rank-1 EWC]
    "samples": 1024,  # per-sample gradients per task [ours]
    "batch_size": 16,  # of them at a time: that many copies of the parameters [ours]
    "anchors": "each",  # every task its own anchor, or "last": all Fishers around the newest parameters
}


def diagonal_phase(
    name: str, setup: Setup, current: Stream, steps: int, of: PerExample, power: int, metric: str
) -> Phase:
    """Makes `tracked[name]` the mean of |g|^power over examples, g their own gradients; `metric` is the mean value."""

    def observe(
        tracked: Tracked, params: PyTree, batch: dict[str, Examples], context: Context, over: Across
    ) -> tuple[Tracked, Metrics]:
        values, gradients = per_sample_gradients(params, noise_examples(setup, batch["current"]), of)
        mean = over.mean(jax.tree.map(lambda g: jnp.mean(jnp.abs(g) ** power, axis=0), gradients))
        grown = running_mean(tracked[name], mean, context.step)
        return {**tracked, name: grown}, {metric: over.mean(jnp.mean(values))}

    passes = 3 * current.batch_size / setup.batch_size
    return Phase(name, None, {"current": current}, steps, passes=passes, observe=observe)


class EWC(QuadraticPenalty):
    """q = sum_k sum_i F_k,i (theta_i - theta*_k,i)^2, F_k = E[g^2] on task k's data after it, t and noise uniform."""

    def check(self) -> None:
        if self.options["anchors"] not in ANCHORS:
            raise UserError(
                f"method.{self.name}.anchors is '{self.options['anchors']}'; write one of: {', '.join(ANCHORS)}"
            )

    def init_tracked(self, params: PyTree) -> Tracked:
        return {"fisher": jax.tree.map(jnp.zeros_like, params)}

    def estimation(self, current: Stream) -> Sequence[Phase]:
        steps = self.estimation_steps()
        return [diagonal_phase("fisher", self.setup, current, steps, half_mse(self.setup), 2, "half_mse")]

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        return add_task(memory, learned.params, learned.tracked["fisher"], anchors=self.options["anchors"])


PENALTIES = {"ewc": (EWC, DEFAULTS)}
