"""The train step: one pure function for every method and every way of mapping it over devices."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from jdcl_jax.data.batches import Examples
from jdcl_jax.training.state import Context, PyTree, TrainState
from jdcl_jax.training.streams import Fed, Streams, draw_batch

Metrics = dict[str, jax.Array]
Loss = Callable[[PyTree, dict[str, Examples], Context], tuple[jax.Array, Metrics]]
"""(params, batch, context) -> (loss [], metrics). Randomness comes from the examples' own keys, so that the loss of an
example does not depend on the device that computes it. Means are over the examples of this device."""

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
    loss: Loss,
    streams: Streams,
    optimizer: optax.GradientTransformation,
    ema: float,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update from the examples `ids` of every stream; under a mapped axis, gradients and metrics are averaged.

    Returns: the new state, and float32 scalars: "loss", the loss's own metrics and "gradient_norm" (before clipping).
    """
    batch = draw_batch(streams, context, state.step, ids, fed)
    (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params, batch, context)
    metrics = {"loss": value, **metrics}
    if axis_name is not None:
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if average is not None:
        decay = ema_decay(ema, state.updates)
        average = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, params)
    new = TrainState(state.step + 1, state.updates + 1, params, average, opt_state)
    return new, metrics


def scan_steps(step: Step, steps_per_call: int) -> Step:
    """`steps_per_call` steps in one `lax.scan`; metrics come back as float32 [steps_per_call].

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
