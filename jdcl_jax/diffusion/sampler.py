"""Samplers: one `lax.scan` over the reverse timesteps.

Every example has a key of its own, so a sample depends on its number alone and not on the batch or device it is in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.diffusion.process import (
    learned_log_variance,
    per_pixel,
    posterior,
    signal_to_noise,
    split_output,
    to_x0_and_eps,
)
from jdcl_jax.diffusion.schedule import Schedule
from jdcl_jax.keys import example_normal, subkeys

SAMPLERS = ("ddim", "ddpm")
STEP_VARIANCES = ("fixed_small", "fixed_large", "learned")

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(x_t [B, ..., C], t int [B]) -> the network's output [B, ..., C], or [B, ..., 2C] if it has a learned variance."""


@dataclass(frozen=True)
class Sampler:
    """How to walk back from noise.

    Attributes:
      kind: "ddim" or "ddpm" (ancestral).
      steps: S, the number of network evaluations.
      eta: DDIM's share of fresh noise; 0 is deterministic.
      clip: clip the predicted x_0 to [-1, 1]; eps is not recomputed after it (arXiv 2311.14028 [code]).
      recompute: with ddim, eps is recomputed from the clipped x_0 all the same. Guided by a classifier it must be: at
        high noise a term moves x_0 beyond the clipping, and the eps that it has lowered would carry x_t the other way.
      prediction: what the network's output means: "eps", "x0" or "v".
      stop_snr: if positive, only timesteps with a signal-to-noise ratio alpha_bar / (1 - alpha_bar) up to this are
        visited, and the chain ends with the x_0 predicted at the last of them.
      variance: of an ancestral step of the visited chain: "fixed_small", that of the posterior; "fixed_large", beta;
        "learned", what the network says between the two (arXiv 2102.09672), its output then being [..., 2C]. There is
        no noise in the last step. DDIM has eta instead: of a learned variance's output it reads the prediction alone.
    """

    kind: str = "ddim"
    steps: int = 50
    eta: float = 0.0
    clip: bool = True
    prediction: str = "eps"
    stop_snr: float = 0.0
    variance: str = "fixed_small"
    recompute: bool = False

    def visited(self, schedule: Schedule) -> np.ndarray:
        """The visited timesteps, falling; int32 [S], fewer with `stop_snr` but at least one."""
        visited = sampling_timesteps(schedule.timesteps, self.steps)
        if self.stop_snr <= 0:
            return visited
        noisy = visited[signal_to_noise(schedule)[visited] <= self.stop_snr]
        return noisy if len(noisy) else visited[:1]


@flax.struct.dataclass
class Trajectory:
    """The states on the way back, S of them, first the pure noise.

    x_t float32 [S, B, ...], t int [S], and what the network said there, output float32 [S, B, ...]; of a network with
    a learned variance, the prediction alone.
    """

    x_t: jax.Array
    t: jax.Array
    output: jax.Array


def sampling_timesteps(timesteps: int, steps: int) -> np.ndarray:
    """The S visited timesteps, falling from T-1: round(arange(T, 0, -T/S)) - 1 (arXiv 2311.14028 [code]); int32 [S]."""
    visited = np.round(np.arange(timesteps, 0, -timesteps / steps))[:steps]
    return visited.astype(np.int32) - 1


def guided(conditional: Predict, unconditional: Predict, weight: float, variance: str = "fixed_small") -> Predict:
    """Classifier-free guidance: (1 + w) conditional - w unconditional, w >= 0; w = 0 is purely conditional.

    With the variance "learned" that is done to the predictions alone, and the v is the conditional one [ours].
    """

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        if variance != "learned":
            return (1.0 + weight) * conditional(x_t, t) - weight * unconditional(x_t, t)
        (asked, v), (free, _) = split_output(conditional(x_t, t), x_t), split_output(unconditional(x_t, t), x_t)
        return jnp.concatenate([(1.0 + weight) * asked - weight * free, v], axis=-1)

    return conditional if weight == 0 else predict


def reverse_step(
    sampler: Sampler,
    output: jax.Array,
    x_t: jax.Array,
    alpha_bar: jax.Array,
    alpha_bar_prev: jax.Array,
    noise: jax.Array,
) -> jax.Array:
    """One step back, from alpha_bar to alpha_bar_prev ([] or [B]), given the network's output at x_t [B, ...].

    Raises:
      ValueError: an unknown kind, variance or prediction; fixed_large with ddim; an output not [..., 2C] with learned.
    """
    if sampler.variance not in STEP_VARIANCES:
        raise ValueError(f"unknown variance '{sampler.variance}'; one of {STEP_VARIANCES}")
    prediction, v = split_output(output, x_t) if sampler.variance == "learned" else (output, None)
    x_0, eps = to_x0_and_eps(sampler.prediction, prediction, x_t, alpha_bar)
    if sampler.clip:
        x_0 = jnp.clip(x_0, -1.0, 1.0)
    if sampler.kind == "ddpm":
        mean, small = posterior(x_0, x_t, alpha_bar, alpha_bar_prev)
        return mean + _spread(sampler.variance, v, x_t, alpha_bar, alpha_bar_prev, small) * noise
    if sampler.kind != "ddim":
        raise ValueError(f"unknown sampler '{sampler.kind}'; one of {SAMPLERS}")
    if sampler.variance == "fixed_large":
        raise ValueError("the variance fixed_large is of ddpm; the noise of ddim is eta's")
    now, before = per_pixel(alpha_bar, x_t), per_pixel(alpha_bar_prev, x_t)
    if sampler.clip and sampler.recompute:
        eps = (x_t - jnp.sqrt(now) * x_0) / jnp.sqrt(1.0 - now)
    sigma = sampler.eta * jnp.sqrt((1.0 - before) / (1.0 - now) * (1.0 - now / before))
    direction = jnp.sqrt(jnp.maximum(1.0 - before - sigma**2, 0.0)) * eps
    return jnp.sqrt(before) * x_0 + direction + sigma * noise


def _spread(
    variance: str,
    v: jax.Array | None,
    x_t: jax.Array,
    alpha_bar: jax.Array,
    alpha_bar_prev: jax.Array,
    small: jax.Array,
) -> jax.Array:
    """Standard deviation of an ancestral step, to be multiplied with noise like x_t; `small` is the posterior's."""
    if variance == "fixed_small":
        return per_pixel(jnp.sqrt(small), x_t)
    last = alpha_bar_prev == 1.0  # where beta is not 0, but the mean is the image already
    if variance == "fixed_large":
        return per_pixel(jnp.sqrt(jnp.where(last, 0.0, 1.0 - alpha_bar / alpha_bar_prev)), x_t)
    assert v is not None
    log_small = jnp.log(jnp.where(last, 1.0, small))
    log_ratio = jnp.log((1.0 - alpha_bar) / jnp.where(last, 1.0, 1.0 - alpha_bar_prev))
    log_variance = learned_log_variance(v, per_pixel(log_small, x_t), per_pixel(log_ratio, x_t))
    return jnp.where(per_pixel(last, x_t), 0.0, jnp.exp(0.5 * log_variance))


def sample(
    predict: Predict, schedule: Schedule, sampler: Sampler, keys: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, Trajectory]:
    """Draws one image per key.

    Args:
      predict: the network, with its parameters and labels bound.
      schedule: T timesteps.
      sampler: kind, number of steps S, eta, clipping, variance.
      keys: one key per example [B].
      shape: (H, W, C).

    Returns: float32 [B, H, W, C], in [-1, 1] if the sampler clips, and the trajectory, which costs nothing where it is
    not used (XLA removes it).
    """
    visited = sampler.visited(schedule)
    alpha_bar = schedule.alpha_bar[visited]
    alpha_bar_prev = jnp.concatenate([alpha_bar[1:], jnp.ones(1)])
    random = sampler.kind == "ddpm" or sampler.eta > 0
    batch = keys.shape[0]

    def body(x_t: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        index, t, now, previous = step
        noise = example_normal(subkeys(keys, index), shape) if random else jnp.zeros(shape)
        output = predict(x_t, jnp.full((batch,), t, jnp.int32))
        said = split_output(output, x_t)[0] if sampler.variance == "learned" else output
        return reverse_step(sampler, output, x_t, now, previous, noise), (x_t, said)

    start = example_normal(subkeys(keys, "x_T"), shape)
    steps = (jnp.arange(len(visited)), jnp.asarray(visited), alpha_bar, alpha_bar_prev)
    x_0, (states, outputs) = jax.lax.scan(body, start, steps)
    return x_0, Trajectory(x_t=states, t=jnp.asarray(visited), output=outputs)


def sample_until(
    predict: Predict, schedule: Schedule, sampler: Sampler, keys: jax.Array, shape: tuple[int, ...], last: jax.Array
) -> jax.Array:
    """Walks each example from noise at T-1 back to a timestep of its own, by DDIM without noise.

    Args:
      predict: the network, with its parameters and labels bound.
      schedule: T timesteps.
      sampler: of kind "ddim" with eta 0; S equal steps from T-1 to `last`, whatever `last` is.
      keys: one key per example [B].
      shape: (H, W, C).
      last: int32 [B], where each example stops.

    Returns: x_last, float32 [B, H, W, C]; pure noise where `last` is T-1.
    """
    if sampler.kind != "ddim" or sampler.eta:
        raise ValueError("sample_until walks by ddim with eta 0")
    top = schedule.timesteps - 1

    def place(step: jax.Array) -> jax.Array:
        return top - jnp.round((top - last) * (step / sampler.steps)).astype(jnp.int32)

    def body(x_t: jax.Array, step: jax.Array) -> tuple[jax.Array, None]:
        t, following = place(step), place(step + 1)
        moved = reverse_step(
            sampler, predict(x_t, t), x_t, schedule.alpha_bar[t], schedule.alpha_bar[following], jnp.zeros(shape)
        )
        return jnp.where(per_pixel(t == following, x_t), x_t, moved), None

    start = example_normal(subkeys(keys, "x_T"), shape)
    x_last, _ = jax.lax.scan(body, start, jnp.arange(sampler.steps))
    return x_last
