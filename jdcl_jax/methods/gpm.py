"""Gradient projection memory beside any method: updates leave what old tasks' inputs gave as it was (GPM, ICLR 2021).

After a task the inputs of the chosen layers are collected, over its images noised to sampled timesteps; the directions
that hold most of their energy are protected from then on. `gpm+gr` is generative replay with projected updates.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import subkeys
from jdcl_jax.methods.denoising import noise_examples
from jdcl_jax.methods.method import Learned, Memory, Phase, Setup
from jdcl_jax.methods.penalty import Penalty
from jdcl_jax.models.capture import matching
from jdcl_jax.training import projection
from jdcl_jax.training.gradients import Across, Metrics
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream

REPRESENT = "represent"  # the name of the phase

COLUMNS = "columns"  # of what is tracked

DEFAULTS: dict[str, object] = {
    "layers": "*attention*",  # paths of layers, patterns separated by ";" [ours]
    "threshold": 0.97,  # share of the inputs' energy that is protected after the first task [ours, on GPM]
    "growth": 0.003,  # added to it after each further task [ours, on GPM]
    "samples": 256,  # images of a task that are looked at [ours]
    "positions": 4,  # pixels of each, of a layer that is applied to every pixel [ours]
    "batch_size": 64,  # of these images at a time
}


def check_projection(options: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` where threshold, growth, samples or positions can't be; `where` is how their keys begin."""
    if not 0 < options["threshold"] <= 1:
        raise UserError(f"{where}threshold is {options['threshold']}; write a share above 0 and up to 1, such as 0.97")
    if options["growth"] < 0:
        raise UserError(f"{where}growth is negative, and the threshold never falls; write 0 or more, such as 0.003")
    for key in ("samples", "positions", "batch_size"):
        if options.get(key, 1) < 1:
            raise UserError(f"{where}{key} counts from 1")


def chosen_layers(setup: Setup, patterns: str) -> list[str]:
    """Paths of the layers that any of the patterns, separated by ";", matches.

    Raises:
      UserError: a pattern matches none.
    """
    assert setup.fresh is not None
    return matching(jax.eval_shape(setup.fresh, jax.random.key(0)), patterns.replace(";", ","))


def kernel_of(params: PyTree, layer: str) -> Any:
    """The kernel at a path."""
    for name in layer.split("/"):
        params = params[name]
    return params["kernel"]


def empty_bases(params: PyTree, layers: Sequence[str]) -> dict[str, Any]:
    """Nothing protected yet."""
    return {layer: projection.empty(*_sizes(params, layer)) for layer in layers}


def _sizes(params: PyTree, layer: str) -> tuple[int, int]:
    *inner, outputs = kernel_of(params, layer).shape
    return int(np.prod(inner)), int(outputs)


def nothing_grown(layers: Sequence[str]) -> dict[str, np.ndarray]:
    """The record of `extended` before any task."""
    return {layer: np.zeros(4, np.float32) for layer in layers}


def extended(
    bases: Mapping[str, Any], columns: Mapping[str, np.ndarray], params: PyTree, threshold: float
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The bases after a task, and of each layer, for the record: rank before, rank, energy before, energy; float32 [4].

    Args:
      bases: layer -> what was protected before.
      columns: layer -> inputs [in, n].
      params: those that the next task starts from.
      threshold: share of the energy.
    """
    found = {k: projection.extend(bases[k], columns[k], kernel_of(params, k), threshold) for k in bases}
    grown = {k: np.array([g.rank_before, g.rank, g.energy_before, g.energy], np.float32) for k, (_, g) in found.items()}
    return {k: basis for k, (basis, _) in found.items()}, grown


def projection_facts(bases: Mapping[str, Any], grown: Mapping[str, np.ndarray], threshold: float) -> dict[str, Any]:
    """Rank, energy, memory and cost of every layer, and a warning for each that can learn no more."""
    rows, full = [], []
    for layer, basis in bases.items():
        inputs, outputs = basis["kept"].shape
        before, rank, energy_before, energy = (float(x) for x in grown[layer])
        cost = projection.cost(inputs, outputs)
        rows.append(
            {
                "layer": layer,
                "rank_before": int(before),
                "rank": int(rank),
                "width": inputs,
                "energy_before": energy_before,
                "energy": energy,
                "bytes": cost.bytes,
                "flops_per_step": cost.flops,
            }
        )
        if int(rank) == inputs:
            full.append(f"{layer}: all {inputs} directions are protected, so that its kernel can learn nothing more")
    return {"projection": rows, "threshold": threshold, **({"warnings": full} if full else {})}


def projecting(base: optax.GradientTransformation, find: Callable[[Any], Any]) -> optax.GradientTransformation:
    """`base` with the projection placed last; `find` gets the bases out of the method's context."""
    project = projection.project_updates()

    def update(updates: PyTree, state: Any, params: PyTree = None, *, method: Any, **extra: Any) -> tuple[PyTree, Any]:
        del extra
        return project.update(updates, state, params, bases=find(method))

    return optax.chain(base, optax.GradientTransformationExtraArgs(project.init, update))


# -- inputs over sampled timesteps


def empty_columns(setup: Setup, params: PyTree, layers: Sequence[str], options: Mapping[str, Any]) -> Tracked:
    """Room for the inputs of the layers, layer -> float32 [in, n]."""
    shown = _shapes(setup, params, layers)
    count = _steps(options) * options["batch_size"]
    return {
        layer: np.zeros((_sizes(params, layer)[0], count * min(options["positions"], shown[layer])), np.float32)
        for layer in layers
    }


def _steps(options: Mapping[str, Any]) -> int:
    return -(-options["samples"] // options["batch_size"])


def _shapes(setup: Setup, params: PyTree, layers: Sequence[str]) -> dict[str, int]:
    """How many inputs of one image each layer has."""
    assert setup.inputs is not None
    x, t = jax.ShapeDtypeStruct((1, *setup.image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    labels = t if setup.num_classes else None
    found = jax.eval_shape(lambda *args: setup.inputs(*args, layers), params, x, t, labels)  # type: ignore[misc]
    return {layer: rows.shape[1] for layer, rows in found.items()}


def represent_phase(
    setup: Setup,
    layers: Sequence[str],
    options: Mapping[str, Any],
    current: Stream,
    shown_by: Callable[[Context], PyTree] | None = None,
) -> Phase:
    """Fills `TrainState.tracked["columns"]` with inputs of the layers, over images noised to timesteps of their own.

    They are inputs in the network in training, or in the one that `shown_by` finds, from which the next task starts.
    """
    size = options["batch_size"]

    def observe(
        tracked: Tracked, params: PyTree, batch: dict[str, Examples], context: Context, over: Across
    ) -> tuple[Tracked, Metrics]:
        examples = batch["current"]
        noised = noise_examples(setup, examples)
        assert setup.inputs is not None
        of = params if shown_by is None else shown_by(context)
        shown = setup.inputs(of, noised.x_t, noised.t, noised.labels, layers)
        rows = over.gather({layer: _some(x, examples.key, options["positions"]) for layer, x in shown.items()})
        columns = dict(tracked[COLUMNS])
        for layer, x in rows.items():
            found = x.reshape(-1, x.shape[-1]).T
            first = context.step * found.shape[1]
            columns[layer] = jax.lax.dynamic_update_slice_in_dim(columns[layer], found, first, 1)
        return {**tracked, COLUMNS: columns}, {"mean_t": over.mean(jnp.mean(noised.t.astype(jnp.float32)))}

    return Phase(
        REPRESENT, None, {"current": current}, _steps(options), passes=size / setup.batch_size, observe=observe
    )


def _some(rows: jax.Array, keys: jax.Array, positions: int) -> jax.Array:
    """Some of each example's rows, without replacement: [B, n, in], keys [B] -> [B, min(positions, n), in]."""
    count = rows.shape[1]
    if count <= positions:
        return rows
    places = jax.vmap(lambda key: jax.random.choice(key, count, (positions,), replace=False))(
        subkeys(keys, "positions")
    )
    return jnp.take_along_axis(rows, places[:, :, None], axis=1)


class GradientProjection(Penalty):
    """No term of the loss; the optimiser's updates are projected."""

    def check(self) -> None:
        check_projection(self.options, f"method.{self.name}.")
        _ = self.layers  # refused where a pattern matches none

    @functools.cached_property
    def layers(self) -> list[str]:
        """Paths of the layers."""
        return chosen_layers(self.setup, self.options["layers"])

    def init_memory(self, params: PyTree) -> Memory:
        return {"bases": empty_bases(params, self.layers), "grown": nothing_grown(self.layers)}

    def init_tracked(self, params: PyTree) -> Tracked:
        return {COLUMNS: empty_columns(self.setup, params, self.layers, self.options)}

    def estimation(self, current: Stream) -> Sequence[Phase]:
        return [represent_phase(self.setup, self.layers, self.options, current)]

    def threshold(self, task: int) -> float:
        """After a task (from 0)."""
        return projection.threshold_at(self.options["threshold"], self.options["growth"], task)

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        if task == self.setup.num_tasks - 1:
            return memory
        bases, grown = extended(memory["bases"], learned.tracked[COLUMNS], learned.params, self.threshold(task))
        return {"bases": bases, "grown": grown}

    def facts(self, memory: Memory, task: int) -> dict[str, Any]:
        if task == self.setup.num_tasks - 1:
            return {}
        return projection_facts(memory["bases"], memory["grown"], self.threshold(task))

    def optimizer(self, base: optax.GradientTransformation) -> optax.GradientTransformation:
        return projecting(base, lambda method: method["penalties"][self.name]["bases"])


PENALTIES = {"gpm": (GradientProjection, DEFAULTS)}
