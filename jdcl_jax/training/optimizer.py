"""The optimisers: of denoisers, clip, Adam, weight decay, learning rate; of classifiers apart from them, SGD."""

import jax
import jax.numpy as jnp
import optax

OPTIMIZERS = ("adam", "adamw")
LEARNING_RATE_SCHEDULES = ("constant", "cosine")


def learning_rate(peak: float, *, schedule: str, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup` steps, then constant, or a cosine down to 0 at `steps`."""
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    elif schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        raise ValueError(f"unknown learning-rate schedule '{schedule}'; one of {LEARNING_RATE_SCHEDULES}")
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(
    name: str,
    rate: float | optax.Schedule,
    *,
    clip_norm: float,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam or AdamW behind clipping by the global norm; `clip_norm` 0 does not clip. Decay is for "adamw" only."""
    if name == "adam":
        update = optax.adam(rate, b1=b1, b2=b2, eps=eps)
    elif name == "adamw":
        update = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    else:
        raise ValueError(f"unknown optimiser '{name}'; one of {OPTIMIZERS}")
    return optax.chain(clip_by_norm(clip_norm), update) if clip_norm > 0 else update


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Scales all gradients together so that their norm is at most `most`: `optax.clip_by_global_norm`, by one factor.

    Optax divides every gradient, a pass over memory of its own. XLA multiplies by a factor in the passes that Adam
    makes anyway.
    """

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        factor = jnp.minimum(1.0, most / optax.tree.norm(updates))
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def momentum_sgd(rate: float | optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum; decay is added to the gradient, as networks for images have it."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=momentum))
