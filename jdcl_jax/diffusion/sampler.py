"""Samplers: one `lax.scan` over the reverse timesteps.

Every example has a key of its own, so a sample depends on its number alone and not on the batch or device it is in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.diffusion.process import posterior, to_x0_and_eps
from jdcl_jax.diffusion.schedule import Schedule
from jdcl_jax.keys import example_normal, subkeys

SAMPLERS = ("ddim", "ddpm")

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, ...], t int [B]) -> the network's output [B, ...]."""


@dataclass(frozen=True)
class Sampler:
    """How to walk back from noise.

    Attributes:
      kind: "ddim" or "ddpm" (ancestral, with the posterior variance).
      steps: S, the number of network evaluations.
      eta: DDIM's share of fresh noise; 0 is deterministic.
      clip: clip the predicted x_0 to [-1, 1]; eps is not recomputed after it (arXiv 2311.14028 [code]).
      prediction: what the network's output means: "eps", "x0" or "v".
    """

    kind: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    clip: bool = True
    prediction: str = "eps"


@flax.struct.dataclass
class Trajectory:
    """The states on the way back, S of them, first the pure noise: x_t [S, B, ...] and t int [S]."""

    x_t: jax.Array
    t: jax.Array


def sampling_timesteps(timesteps: int, steps: int) -> np.ndarray:
    """The S visited timesteps, falling from T-1: round(arange(T, 0, -T/S)) - 1 (arXiv 2311.14028 [code]); int32 [S]."""
    visited = np.round(np.arange(timesteps, 0, -timesteps / steps))[:steps]
    return visited.astype(np.int32) - 1


def guided(conditional: Predict, unconditional: Predict, weight: float) -> Predict:
    """Classifier-free guidance: (1 + w) conditional - w unconditional, w >= 0; w = 0 is purely conditional."""

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return (1.0 + weight) * conditional(x_t, t) - weight * unconditional(x_t, t)

    return conditional if weight == 0 else predict


def reverse_step(
    sampler: Sampler,
    output: jax.Array,
    x_t: jax.Array,
    alpha_bar: jax.Array,
    alpha_bar_prev: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """One step back, from alpha_bar to alpha_bar_prev (scalars), given the network's output at x_t [B, ...]."""
    x_0, eps = to_x0_and_eps(sampler.prediction, output, x_t, alpha_bar)
    if sampler.clip:
        x_0 = jnp.clip(x_0, -1.0, 1.0)
    if sampler.kind == "ddpm":
        mean, variance = posterior(x_0, x_t, alpha_bar, alpha_bar_prev)
        return mean + jnp.sqrt(variance) * noise
    if sampler.kind != "ddim":
        raise ValueError(f"unknown sampler '{sampler.kind}'; one of {SAMPLERS}")
    variance = (1.0 - alpha_bar_prev) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_prev)
    sigma = sampler.eta * jnp.sqrt(variance)
    direction = jnp.sqrt(jnp.maximum(1.0 - alpha_bar_prev - sigma**2, 0.0)) * eps
    return jnp.sqrt(alpha_bar_prev) * x_0 + direction + sigma * noise


def sample(
    predict: Predict, schedule: Schedule, sampler: Sampler, keys: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, Trajectory]:
    """Draws one image per key.

    Args:
      predict: the network, with its parameters and labels bound.
      schedule: T timesteps.
      sampler: kind, number of steps S, eta, clipping.
      keys: one key per example [B].
      shape: (H, W, C).

    Returns: float32 [B, H, W, C], in [-1, 1] if the sampler clips, and the trajectory x_t, which costs nothing where
    it is not used (XLA removes it).
    """
    visited = sampling_timesteps(schedule.timesteps, sampler.steps)
    alpha_bar = schedule.alpha_bar[visited]
    alpha_bar_prev = jnp.concatenate([alpha_bar[1:], jnp.ones(1)])
    random = sampler.kind == "ddpm" or sampler.eta > 0
    batch = keys.shape[0]

    def body(x_t: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        index, t, now, previous = step
        noise = example_normal(subkeys(keys, index), shape) if random else jnp.zeros(shape)
        output = predict(x_t, jnp.full((batch,), t, jnp.int32))
        return reverse_step(sampler, output, x_t, now, previous, noise), x_t

    start = example_normal(subkeys(keys, "x_T"), shape)
    steps = (jnp.arange(sampler.steps), jnp.asarray(visited), alpha_bar, alpha_bar_prev)
    x_0, states = jax.lax.scan(body, start, steps)
    return x_0, Trajectory(x_t=states, t=jnp.asarray(visited))
