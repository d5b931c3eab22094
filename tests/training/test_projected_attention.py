"""W_K and W_V of cross-attention on protected context vectors, while Adam with weight decay learns other contexts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.models.transformer import TokenAttention
from jdcl_jax.training.projection import empty, extend, project_updates

WIDTH, CHANNELS, LAYERS = 16, 8, ("key", "value")
random = np.random.default_rng(0)
OLD = random.normal(size=(3, 2, WIDTH)).astype(np.float32)  # two tokens of each of three classes
NEW = (random.normal(size=(4, 2, WIDTH)) + 0.5 * OLD[0]).astype(np.float32)  # partly within their span
PIXELS = random.normal(size=(4, 5, CHANNELS)).astype(np.float32)
TARGETS = random.normal(size=(4, 5, CHANNELS)).astype(np.float32)

attention = TokenAttention(2, jnp.float32)


def loss(params):
    return jnp.mean((attention.apply({"params": params}, PIXELS, NEW) - TARGETS) ** 2)


@functools.cache
def start():
    return attention.init(jax.random.key(0), PIXELS, NEW)["params"]


@functools.cache
def protected():
    """All that the old contexts span."""
    found = {}
    for layer in LAYERS:
        found[layer], growth = extend(
            empty(WIDTH, CHANNELS), OLD.reshape(-1, WIDTH).T, np.asarray(start()[layer]["kernel"]), 1.0
        )
        assert growth.rank == 6
    return found


def projected_gradients():
    """The gradient without its part within the span, before Adam sees it."""

    def update(gradients, state, params=None, *, bases, **extra):
        del params, extra
        taken = dict(gradients)
        for layer in LAYERS:
            vectors, g = jnp.asarray(bases[layer]["vectors"]), gradients[layer]["kernel"]
            taken[layer] = {"kernel": g - vectors @ (vectors.T @ g)}
        return taken, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def moved_by(optimizer, steps: int = 300) -> dict[str, float]:
    """How far the answers to old contexts have moved, in float64, and those to new ones."""
    bases = protected()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, bases=bases)
        return (optax.apply_updates(params, updates), state), None

    params, _ = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=steps)[0])(start())
    assert float(loss(params)) < 0.9 * float(loss(start()))
    found = {}
    for layer in LAYERS:
        change = np.asarray(params[layer]["kernel"], np.float64) - np.asarray(start()[layer]["kernel"], np.float64)
        found[f"old {layer}"], found[f"new {layer}"] = (np.abs(c @ change).max() for c in (OLD, NEW))
    return found


def adamw() -> optax.GradientTransformation:
    return optax.adamw(3e-3, weight_decay=0.1)


@pytest.mark.parametrize("layer", LAYERS)
def test_behind_the_projection_keys_and_values_of_old_contexts_stay_and_of_new_ones_move(layer) -> None:
    moved = moved_by(optax.chain(adamw(), project_updates()))
    assert moved[f"old {layer}"] < 1e-6
    assert moved[f"new {layer}"] > 0.1


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "optimizer",
    [optax.with_extra_args_support(adamw()), optax.chain(projected_gradients(), adamw())],
    ids=["without", "gradients alone"],
)
def test_without_it_or_with_projected_gradients_alone_old_ones_move_too(optimizer, layer) -> None:
    assert moved_by(optimizer)[f"old {layer}"] > 0.01
