"""Rank-1 EWC: gradients of a diffusion model nearly share one direction, and so does its Fisher (arXiv 2509.23593)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import fold_name
from jdcl_jax.methods.denoising import noise_examples
from jdcl_jax.methods.method import Learned, Memory, Phase
from jdcl_jax.methods.penalty import Penalty
from jdcl_jax.methods.per_sample import half_mse, per_sample_gradients, running_mean
from jdcl_jax.methods.subspace import combine, orthonormal, principal, products, random_directions
from jdcl_jax.training.gradients import Across, Metrics
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Observe, Tracked
from jdcl_jax.training.streams import Stream

FORMS = ("mean", "power")

DEFAULTS: dict[str, object] = {
    "strength": 15_000.0,  # lambda [paper]
    "samples": 1024,  # per-sample gradients in each pass [ours]
    "batch_size": 16,  # of them at a time: that many copies of the parameters [ours]
    "form": "mean",  # the closed form [paper], or "power": leading eigenvectors by subspace iteration [ours]
    "rank": 1,  # eigenvectors, with "power"
    "iterations": 4,  # passes of the subspace iteration, with "power"; 2 or more [ours]
}


class Rank1EWC(Penalty):
    """q = sum_k sum_r c_kr (u_kr . (theta - theta*_k))^2 over the tasks k so far.

    "mean": u_k = mu_k = E[g] and c_k = E[(mu_k . g)^2] / |mu_k|^4, so that c mu mu^T is the multiple of mu mu^T nearest
    to the Fisher information E[g g^T]. "power": u_kr its leading eigenvectors, c_kr their eigenvalues. g are per-sample
    gradients of half the MSE on task k's data after it, t and noise uniform.

    Only one anchor is kept: u . (theta - theta*_k) = u . (theta - anchor) + offset_k.
    """

    def check(self) -> None:
        if self.options["form"] not in FORMS:
            raise UserError(f"method.{self.name}.form is '{self.options['form']}'; write one of: {', '.join(FORMS)}")
        if self.options["form"] == "mean":
            for key in ("rank", "iterations"):
                if self.options[key] != DEFAULTS[key]:
                    raise UserError(
                        f"method.{self.name}.{key}={self.options[key]} has no effect with the closed form; "
                        f"leave it out or write method.{self.name}.form=power"
                    )
        if self.options["rank"] < 1:
            raise UserError(f"method.{self.name}.rank counts from 1")
        if self.options["iterations"] < 2:
            raise UserError(
                f"method.{self.name}.iterations counts from 2: the first pass starts from random directions"
            )

    @property
    def _slots(self) -> int:
        return max(self.setup.num_tasks - 1, 1)

    def init_memory(self, params: PyTree) -> Memory:
        rank = self.options["rank"]
        return {
            "anchor": jax.tree.map(jnp.copy, params),
            "directions": jax.tree.map(lambda x: jnp.zeros((self._slots * rank, *x.shape), x.dtype), params),
            "curvature": jnp.zeros(self._slots * rank),
            "offset": jnp.zeros(self._slots * rank),
        }

    def value(self, params: PyTree, memory: Memory) -> jax.Array:
        moved = jax.tree.map(lambda theta, anchor: (theta - anchor)[None], params, memory["anchor"])
        along = products(memory["directions"], moved)[:, 0] + memory["offset"]
        return jnp.sum(memory["curvature"] * jnp.square(along))

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        moved = jax.tree.map(lambda theta, anchor: (theta - anchor)[None], learned.params, memory["anchor"])
        offset = memory["offset"] + products(memory["directions"], moved)[:, 0]
        memory = {**memory, "anchor": learned.params, "offset": offset}
        if task >= self.setup.num_tasks - 1:
            return memory
        curvature, directions = self._estimate(learned.tracked)
        rank = self.options["rank"]
        own = slice(task * rank, (task + 1) * rank)

        def put(kept: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.asarray(kept).at[own].set(new)

        return {
            **memory,
            "directions": jax.tree.map(put, memory["directions"], directions),
            "curvature": put(memory["curvature"], curvature),
            "offset": put(offset, jnp.zeros(rank)),
        }

    def _estimate(self, tracked: Tracked) -> tuple[jax.Array, PyTree]:
        if self.options["form"] == "power":
            return principal(tracked["basis"], tracked["rayleigh"])
        mean = jax.tree.map(lambda x: x[None], tracked["mean"])
        square = products(mean, mean)[0, 0]
        tiny = np.finfo(np.float32).tiny
        return (tracked["along"] / jnp.maximum(jnp.square(square), tiny))[None], mean

    # -- estimation

    def init_tracked(self, params: PyTree) -> Tracked:
        if self.options["form"] == "mean":
            return {"mean": jax.tree.map(jnp.zeros_like, params), "along": jnp.zeros(())}
        rank = self.options["rank"]
        several = jax.tree.map(lambda x: jnp.zeros((rank, *x.shape), x.dtype), params)
        image = jax.tree.map(jnp.zeros_like, several)
        return {"basis": several, "image": image, "rayleigh": jnp.zeros((rank, rank))}

    def estimation(self, current: Stream) -> Sequence[Phase]:
        steps = self.estimation_steps()

        def phase(name: str, observe: Observe, passes: int = 1) -> Phase:
            cost = 3 * current.batch_size / self.setup.batch_size
            return Phase(name, None, {"current": current}, passes * steps, passes=cost, observe=observe)

        if self.options["form"] == "power":
            return [phase("eigenvectors", self._iterate, self.options["iterations"])]
        return [phase("mean_gradient", self._mean), phase("curvature", self._along)]

    def _gradients(self, params: PyTree, batch: dict[str, Examples]) -> tuple[jax.Array, PyTree]:
        return per_sample_gradients(params, noise_examples(self.setup, batch["current"]), half_mse(self.setup))

    def _mean(
        self, tracked: Tracked, params: PyTree, batch: dict[str, Examples], context: Context, over: Across
    ) -> tuple[Tracked, Metrics]:
        values, gradients = self._gradients(params, batch)
        mean = over.mean(jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients))
        return {**tracked, "mean": running_mean(tracked["mean"], mean, context.step)}, {
            "half_mse": over.mean(jnp.mean(values))
        }

    def _along(
        self, tracked: Tracked, params: PyTree, batch: dict[str, Examples], context: Context, over: Across
    ) -> tuple[Tracked, Metrics]:
        values, gradients = self._gradients(params, batch)
        along = products(gradients, jax.tree.map(lambda x: x[None], tracked["mean"]))
        square = over.mean(jnp.mean(jnp.square(along)))
        return {**tracked, "along": running_mean(tracked["along"], square, context.step)}, {
            "half_mse": over.mean(jnp.mean(values))
        }

    def _iterate(
        self,
        tracked: Tracked,
        params: PyTree,
        batch: dict[str, Examples],
        context: Context,
        over: Across,
    ) -> tuple[Tracked, Metrics]:
        """A pass of F V over the examples; at the beginning of each pass V becomes what the last one gave."""
        step = jnp.asarray(context.step)
        place = step % self.estimation_steps()

        def fresh() -> PyTree:
            first = random_directions(fold_name(context.key, "directions"), params, self.options["rank"])
            chosen = jax.tree.map(lambda a, b: jnp.where(step == 0, a, b), first, tracked["image"])
            return orthonormal(chosen)

        basis = jax.lax.cond(place == 0, fresh, lambda: tracked["basis"])
        values, gradients = self._gradients(params, batch)
        along = products(gradients, basis)  # [b, r]
        count = along.shape[0]
        image = over.mean(combine(along.T / count, gradients))
        rayleigh = over.mean(products(along.T, along.T) / count)
        grown = {
            "basis": basis,
            "image": running_mean(tracked["image"], image, place),
            "rayleigh": running_mean(tracked["rayleigh"], rayleigh, place),
        }
        return {**tracked, **grown}, {"half_mse": over.mean(jnp.mean(values))}


PENALTIES = {"rank1_ewc": (Rank1EWC, DEFAULTS)}
