"""The steps: pure functions for every method and every way of mapping them over devices.

A train step changes the parameters. An observe step leaves them alone and adds something up over examples: a Fisher
information, a set of replay images.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jdcl_jax.data.batches import Examples
from jdcl_jax.training.gradients import Across, Gradient, Metrics, across
from jdcl_jax.training.layers import LAYER_NORMS, layer_norms
from jdcl_jax.training.state import Context, PyTree, TrainState
from jdcl_jax.training.streams import Fed, Streams, draw_batch

Tracked = dict[str, PyTree]
Penalty = Callable[[PyTree, Context], jax.Array]
"""(params, context) -> [], added to the loss; it sees no examples."""

Track = Callable[[Tracked, PyTree, PyTree], Tracked]
"""(tracked, gradient of the loss without penalty, update of the parameters) -> tracked."""

Observe = Callable[[Tracked, PyTree, dict[str, Examples], Context, Across], tuple[Tracked, Metrics]]
"""(tracked, params, batch, context, across) -> (tracked, metrics), the same on all devices."""

ACTIVE = "active"
"""The metric of an observation that may have nothing left to do: 1 where a step did something, else 0."""

Step = Callable[..., tuple[TrainState, Metrics]]


def ema_decay(limit: float, updates: jax.Array) -> jax.Array:
    """The decay with warm-up min(limit, (1 + n) / (10 + n)) after n updates (arXiv 2411.08224 [code])."""
    n = updates.astype(jnp.float32)
    return jnp.minimum(limit, (1.0 + n) / (10.0 + n))


def train_step(
    state: TrainState,
    context: Context,
    ids: Mapping[str, jax.Array],
    fed: Fed,
    *,
    gradient: Gradient,
    streams: Streams,
    optimizer: optax.GradientTransformation,
    ema: float,
    penalty: Penalty | None = None,
    track: Track | None = None,
    skip: bool = False,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update from the examples `ids` of every stream; under a mapped axis, gradients and metrics are averaged.

    An optimiser that takes extra arguments is given `context.method` as `method`. With `skip` nothing but the step's
    number changes where loss or gradient is not finite.

    Returns: the new state, and float32 scalars: "loss" with the penalty in it, "penalty" where there is one, the loss's
    own metrics and "gradient_norm" (before clipping); and "gradient_norms" [L], see `layer_norms`.
    """
    context = context.replace(step=state.step)  # type: ignore[attr-defined]
    batch = draw_batch(streams, context, ids, fed)
    own, metrics = gradient(state.params, batch, context, across(axis_name))
    gradients = own
    if penalty is not None:
        value, slope = jax.value_and_grad(penalty)(state.params, context)
        gradients = jax.tree.map(jnp.add, own, slope)
        metrics = {**metrics, "loss": metrics["loss"] + value, "penalty": value}
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    metrics[LAYER_NORMS] = layer_norms(gradients)
    whole = optax.with_extra_args_support(optimizer)
    updates, opt_state = whole.update(gradients, state.opt_state, state.params, method=context.method)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if average is not None:
        decay = ema_decay(ema, state.updates)
        average = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, params)
    tracked = state.tracked if track is None else track(state.tracked, own, updates)
    after = TrainState(state.step + 1, state.updates + 1, params, average, opt_state, tracked)
    if skip:
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        unchanged = state.replace(step=state.step + 1)  # type: ignore[attr-defined]
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, unchanged)
    return after, metrics


def observe_step(
    state: TrainState,
    context: Context,
    ids: Mapping[str, jax.Array],
    fed: Fed,
    *,
    observe: Observe,
    streams: Streams,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Adds to `state.tracked` what the examples `ids` of every stream show; parameters stay as they are."""
    context = context.replace(step=state.step)  # type: ignore[attr-defined]
    batch = draw_batch(streams, context, ids, fed)
    tracked, metrics = observe(state.tracked, state.params, batch, context, across(axis_name))
    return state.replace(step=state.step + 1, tracked=tracked), metrics  # type: ignore[attr-defined]


def scan_steps(step: Step, steps_per_call: int) -> Step:
    """`steps_per_call` steps in one `lax.scan`; metrics come back as float32 [steps_per_call, ...].

    `fed` holds the rows of all these steps, examples first: images [b, steps_per_call, ...].
    """

    def call(
        state: TrainState, context: Context, ids: Mapping[str, jax.Array], fed: Fed, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        def body(carry: TrainState, now: Fed) -> tuple[TrainState, Metrics]:
            return step(carry, context, ids, now, axis_name=axis_name)

        by_step = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), fed)
        return jax.lax.scan(body, state, by_step, length=steps_per_call)

    return call
