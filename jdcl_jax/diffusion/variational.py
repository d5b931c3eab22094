"""The loss that teaches a network its reverse variance (improved DDPM, arXiv 2102.09672).

The network says a prediction and, for every pixel, a v that interpolates the logarithm of the variance between beta~,
the posterior's (v = -1), and beta (v = 1); see `process.learned_log_variance`. v is learned from the variational bound
of `likelihood.py`, through which no gradient reaches the prediction, and the prediction from its mean squared error
[paper]:

    L_hybrid = L_simple + 0.001 L_vlb, with L_vlb = sum over t of L_t

At one t drawn uniformly from the T, L_vlb is estimated by T L_t: its weight is 0.001 T. L_t is a mean over the image's
dimensions, as L_simple is, and in bits/dim, of which the code takes T / 1000 [code]; in nats the same weight would be
ln 2 times as strong.

With sigma^2 = beta~ e^d, d = f log(beta / beta~), the Gaussians of L_t differ by d and by the distance of their means,
which is a multiple of the error in x_0. So in nats

    L_t = (e^-d - 1 + d) / 2 + e^-d (L_t of fixed_small),  least where sigma^2 = beta~ + (distance of the means)^2

At t = 0, where beta~ is 0, it is replaced by that at t = 1 [code]. So v = -1 is the bound of fixed_small at every t,
and v = 1 that of fixed_large at every t but 0, whose decoder then has the variance beta_0.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.diffusion.likelihood import Bound, discretised_log_likelihood, make_bound, posteriors
from jdcl_jax.diffusion.process import learned_log_variance, per_pixel, split_output, squared_error, to_x0_and_eps

_LN2 = math.log(2.0)
_VLB_WEIGHT = 1e-3


@flax.struct.dataclass
class LearnedBound:
    """Coefficients of the bound; computed in float64 by `make_learned_bound`.

    Attributes:
      small: those of fixed_small.
      log_ratio: log(beta / beta~), float32 [T]; falling to almost 0.
    """

    small: Bound
    log_ratio: jax.Array


def make_learned_bound(alpha_bars: np.ndarray) -> LearnedBound:
    """The coefficients for a schedule: alpha_bars float64 [T], falling, as `schedule.alpha_bars`; the last may be 0.

    Raises: as `likelihood.make_bound`.
    """
    beta, _, small = posteriors(alpha_bars)
    return LearnedBound(make_bound(alpha_bars, "fixed_small"), jnp.asarray(np.log(beta / small), jnp.float32))


def variational_term(
    bound: LearnedBound,
    prediction: str,
    output: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    *,
    clip: bool = False,
) -> jax.Array:
    """L_t of each example in bits/dim, L_0 where t is 0; no gradient reaches the prediction.

    Args:
      bound: the coefficients.
      prediction: what the first half of the output means: "eps", "x0" or "v".
      output: the network's output [B, ..., 2C] at (x_t, t).
      x_0: images [B, ..., C] in [-1, 1], multiples of 1/127.5 away from -1 (8 bits).
      x_t: x_0 noised to t, [B, ..., C].
      t: int [B].
      clip: clip the predicted x_0 to [-1, 1]. The paper's code does not [code]; an eps-prediction with zero terminal
        SNR needs it, as its x_0 is out by thousands at T-1.

    Returns: float32 [B].

    Raises:
      ValueError: an output of another shape, or an unknown prediction.
    """
    said, v = split_output(output, x_t)
    predicted, _ = to_x0_and_eps(prediction, said, x_t, bound.small.alpha_bar[t])
    predicted = jax.lax.stop_gradient(jnp.clip(predicted, -1.0, 1.0) if clip else predicted)
    excess = learned_log_variance(v, jnp.zeros(()), per_pixel(bound.log_ratio[t], v))  # of log sigma^2 over log beta~
    weight = per_pixel(bound.small.x0_weight[t], v)
    divergence = (jnp.expm1(-excess) + excess) / (2.0 * _LN2) + jnp.exp(-excess) * weight * jnp.square(predicted - x_0)
    sigma = bound.small.sigma[0] * jnp.exp(0.5 * excess)  # at t = 0, and unused elsewhere
    decoder = -discretised_log_likelihood(x_0, predicted, sigma) / _LN2
    return jnp.mean(jnp.where(per_pixel(t == 0, v), decoder, divergence), axis=tuple(range(1, x_0.ndim)))


def hybrid_loss(
    bound: LearnedBound,
    prediction: str,
    output: jax.Array,
    target: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    *,
    clip: bool = False,
) -> jax.Array:
    """L_hybrid of each example at a t drawn uniformly: float32 [B].

    Args:
      bound: the coefficients.
      prediction: what the first half of the output means: "eps", "x0" or "v".
      output: the network's output [B, ..., 2C] at (x_t, t).
      target: what its first half should say, [B, ..., C], as `process.prediction_target`.
      x_0: images as of `variational_term`.
      x_t: x_0 noised to t, [B, ..., C].
      t: int [B].
      clip: as of `variational_term`.

    Raises: as `variational_term`.
    """
    said, _ = split_output(output, x_t)
    variational = variational_term(bound, prediction, output, x_0, x_t, t, clip=clip)
    return squared_error(said, target) + variational_weight(len(bound.log_ratio)) * variational


def variational_weight(timesteps: int) -> float:
    """What one L_t in bits/dim weighs beside the mean squared error, 0.001 T; as T / 1000 in the code [code]."""
    return _VLB_WEIGHT * timesteps
