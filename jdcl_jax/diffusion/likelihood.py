"""The variational bound of DDPM (arXiv 2006.11239) in bits per dimension (bpd), timestep by timestep.

    bpd = L_prior + sum_{t >= 1} L_t + L_0, each term a mean over the image's dimensions divided by ln 2

L_t is the KL of two diagonal Gaussians, the posterior q(x_{t-1} | x_t, x_0) and the model's p(x_{t-1} | x_t), whose
mean is the posterior's with the predicted x_0 in the place of x_0. L_0 is the discretised Gaussian log-likelihood of
8-bit pixels. The model's variance is not learned but one of two fixed choices:

- "fixed_small": the posterior's variance, beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t);
- "fixed_large": beta_t.

At t = 0, where the posterior's variance is 0, both take the posterior's at t = 1. Which of the two arXiv 2303.15342
took, and whether it clipped x_0, is not known: both are open here [ours], and both change the value.

Only differences enter: both means share their part of x_t, so with the same variance L_t is a coefficient times
(predicted x_0 - x_0)^2. The coefficients come from float64 alpha_bars (`schedule.alpha_bars`); float32 then suffices
for everything per pixel. With zero terminal SNR (alpha_bar_{T-1} = 0) every coefficient is finite. An *eps*-prediction,
however, says nothing about x_0 there: unclipped, L_{T-1} then measures the floor `process.SMALLEST_ALPHA_BAR`.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from jdcl_jax.diffusion.process import squared_error, to_x0_and_eps
from jdcl_jax.errors import UserError

VARIANCES = ("fixed_small", "fixed_large")

_LN2 = math.log(2.0)
_HALF_BIN = 1.0 / 255.0  # 256 values on [-1, 1]
_OPEN_END = 0.999  # beyond it lie only the first and the last value, whose bins reach to infinity


@flax.struct.dataclass
class Bound:
    """Coefficients of the bound, float32 [T] each; computed in float64 by `make_bound`.

    Attributes:
      alpha_bar: that of the process; the same float32 numbers as `Schedule.alpha_bar`.
      x0_weight: bits/dim that one unit of squared error in the predicted x_0 costs at t (t = 0: unused).
      variance_bits: bits/dim that the model's variance alone costs at t, whatever its mean; 0 with fixed_small.
      sigma: the model's standard deviation at t.
    """

    alpha_bar: jax.Array
    x0_weight: jax.Array
    variance_bits: jax.Array
    sigma: jax.Array


def make_bound(alpha_bars: np.ndarray, variance: str) -> Bound:
    """The coefficients for a schedule and a choice of the model's variance.

    Args:
      alpha_bars: float64 [T], falling, as `schedule.alpha_bars`; the last one may be 0.
      variance: one of `VARIANCES`.

    Raises:
      UserError: a single timestep.
      ValueError: an unknown variance, or alpha_bars that are not float64 [T].
    """
    _, from_x0, true_variance = posteriors(alpha_bars)
    model_variance = _model_variance(alpha_bars, variance)
    ratio = true_variance / model_variance
    arrays = {
        "alpha_bar": alpha_bars,
        "x0_weight": from_x0**2 / (2.0 * model_variance * _LN2),
        "variance_bits": (ratio - 1.0 - np.log(ratio)) / (2.0 * _LN2),
        "sigma": np.sqrt(model_variance),
    }
    return Bound(**{name: jnp.asarray(values, jnp.float32) for name, values in arrays.items()})


def bits_per_dim_terms(
    bound: Bound, prediction: str, output: jax.Array, x_0: jax.Array, x_t: jax.Array, t: jax.Array, *, clip: bool
) -> jax.Array:
    """L_t of each example in bits/dim; L_0 where t is 0.

    Args:
      bound: the coefficients.
      prediction: what the output means: "eps", "x0" or "v".
      output: the network's output [B, ...] at (x_t, t).
      x_0: images [B, ...] in [-1, 1], multiples of 1/127.5 away from -1 (8 bits).
      x_t: x_0 noised to t, [B, ...].
      t: int [B].
      clip: clip the predicted x_0 to [-1, 1] first. Where it acts it lowers L_t for t >= 1, since x_0 lies inside,
        and raises L_0 at pixels of exactly -1 or 1 that were overshot; so say with a number whether it was on.

    Returns: float32 [B]. A mean over noises and a sum over t = 0..T-1, plus `prior_bits`, is the bpd of an image.
    """
    predicted, _ = to_x0_and_eps(prediction, output, x_t, bound.alpha_bar[t])
    if clip:
        predicted = jnp.clip(predicted, -1.0, 1.0)
    divergence = bound.variance_bits[t] + bound.x0_weight[t] * squared_error(predicted, x_0)
    log_likelihood = discretised_log_likelihood(x_0, predicted, bound.sigma[0])
    return jnp.where(t == 0, -jnp.mean(log_likelihood, axis=tuple(range(1, x_0.ndim))) / _LN2, divergence)


def prior_bits(alpha_bars: np.ndarray, x_0: jax.Array) -> jax.Array:
    """L_prior = KL(q(x_T | x_0) || N(0, I)) of images [B, ...] in bits/dim, float32 [B]; alpha_bars float64 [T].

    No model enters; it is 0 with zero terminal SNR.
    """
    last = float(_checked(alpha_bars)[-1])
    constant = -(math.log1p(-last) + last)
    return (last * squared_error(x_0, jnp.zeros_like(x_0)) + constant) / (2.0 * _LN2)


def weights(alpha_bars: np.ndarray, variance: str) -> np.ndarray:
    """Bits/dim that one unit of eps-MSE costs at t: L_t = w_t MSE_t + const_t, without clipping; float64 [T].

    w_t = beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t) ln 2), with sigma_t^2 the model's variance; const_t is
    `Bound.variance_bits`, 0 with fixed_small.

    Args:
      alpha_bars: float64 [T], as `schedule.alpha_bars`.
      variance: one of `VARIANCES`.

    Returns: NaN at t = 0, because L_0 is not a multiple of the MSE. Infinite where alpha_bar is 0 (zero terminal SNR):
    there eps is x_t itself, and the smallest error in it leaves x_0 open. Sum L_t over the finite entries.

    Raises: as `make_bound`.
    """
    beta, _, _ = posteriors(alpha_bars)
    model_variance = _model_variance(alpha_bars, variance)
    alpha = 1.0 - beta  # exactly 0 where alpha_bar is
    result = beta**2 / (2.0 * model_variance * (1.0 - alpha_bars) * _LN2)
    result = np.divide(result, alpha, out=np.full(len(alpha), np.inf), where=alpha > 0)
    result[0] = np.nan
    return result


def variance_gap_bits(alpha_bars: np.ndarray) -> float:
    """Bits/dim that fixed_large adds to sum_{t >= 1} L_t whatever the model: the sum of const_t in `weights`.

    It is not the whole difference between the two bounds: fixed_large also lowers every w_t, by the ratio of the two
    variances. For independent pixels of unit variance and the optimal denoiser it takes away more than it adds.
    """
    _, _, true_variance = posteriors(alpha_bars)
    ratio = true_variance / _model_variance(alpha_bars, "fixed_large")
    return float(np.sum(ratio[1:] - 1.0 - np.log(ratio[1:])) / (2.0 * _LN2))


def _checked(alpha_bars: np.ndarray) -> np.ndarray:
    if alpha_bars.dtype != np.float64 or alpha_bars.ndim != 1:
        raise ValueError(
            f"alpha_bars is {alpha_bars.dtype} {alpha_bars.shape}; pass the float64 [T] of schedule.alpha_bars"
        )
    if len(alpha_bars) < 2:
        raise UserError("diffusion.timesteps is 1; the likelihood bound needs at least 2")
    return alpha_bars


def posteriors(alpha_bars: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta_t, the share of x_0 in the mean of q(x_{t-1} | x_t, x_0), and its variance: float64 [T] each.

    The variance at t = 0, where x_0 is known, is replaced by that at t = 1.
    """
    before = np.append(1.0, _checked(alpha_bars)[:-1])
    beta = 1.0 - alpha_bars / before
    from_x0 = np.sqrt(before) * beta / (1.0 - alpha_bars)
    variance = beta * (1.0 - before) / (1.0 - alpha_bars)
    variance[0] = variance[1]
    return beta, from_x0, variance


def _model_variance(alpha_bars: np.ndarray, variance: str) -> np.ndarray:
    """The model's variance float64 [T] by its name; at t = 0 the posterior's at t = 1."""
    beta, _, posterior_variance = posteriors(alpha_bars)
    if variance == "fixed_small":
        return posterior_variance
    if variance == "fixed_large":
        return np.append(posterior_variance[0], beta[1:])
    raise ValueError(f"unknown variance '{variance}'; one of {VARIANCES}")


def discretised_log_likelihood(x: jax.Array, mean: jax.Array, sigma: jax.Array) -> jax.Array:
    """Log of the mass that N(mean, sigma^2) has in the bin of each 8-bit value x, in nats; shape of x."""
    low = jnp.where(x < -_OPEN_END, -jnp.inf, (x - mean - _HALF_BIN) / sigma)
    high = jnp.where(x > _OPEN_END, jnp.inf, (x - mean + _HALF_BIN) / sigma)
    # Mirrored to the lower tail, where the logarithm of the CDF keeps its digits; in the upper one it is lost in -0.
    mirror = low + high > 0
    low, high = jnp.where(mirror, -high, low), jnp.where(mirror, -low, high)
    log_high = log_ndtr(high)
    # Far out both round to the same number; the bound keeps the logarithm finite and there changes nothing else.
    fraction = jnp.minimum(log_ndtr(low) - log_high, -1e-6)
    return log_high + jnp.log1p(-jnp.exp(fraction))
