"""Guidance: terms that turn a denoiser towards what a classifier says, or away from it.

The gradient of log p(y | x_t) with respect to x_t is what a class adds to the score, and the score is
-eps / sqrt(1 - alpha_bar). So every term is a scaled gradient, and all of them together change the predicted noise:

    eps <- eps - sqrt(1 - alpha_bar_t) * (sum of the terms)

`with_terms` writes that into the network's own kind of output. What comes out is a `Predict` again, for every sampler,
and one that is guided without a classifier (`sampler.guided`) can go in. Ancestral sampling has no mean shift of its
own [ours]: where x_0 is not clipped, the change of eps moves the mean by beta / sqrt(alpha) times the terms, and
arXiv 2105.05233 moves it by the step's variance times them.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.diffusion.process import per_pixel, shift_eps, split_output, to_x0_and_eps
from jdcl_jax.diffusion.sampler import Predict, Sampler
from jdcl_jax.diffusion.schedule import Schedule
from jdcl_jax.errors import UserError

DIRECTIONS = ("toward", "away")
SCALES = ("constant", "rising", "falling")


class Denoised(NamedTuple):
    """What the denoiser said, for terms to read.

    Attributes:
      x_t: [B, ...].
      t: int [B].
      alpha_bar: of t, [B].
      x_0: predicted, [B, ...]; clipped to [-1, 1] if the sampler clips.
      eps: predicted, [B, ...].
      pull: gradient with respect to x_0 -> gradient with respect to x_t, both [B, ...]: back through the clipping and
        the denoiser's one forward pass. Costs nothing where it is not called (XLA removes it).
    """

    x_t: jax.Array
    t: jax.Array
    alpha_bar: jax.Array
    x_0: jax.Array
    eps: jax.Array
    pull: Callable[[jax.Array], jax.Array]


Term = Callable[[Denoised], jax.Array]
"""A scaled gradient of a log density with respect to x_t, [B, ...]."""

LogP = Callable[[jax.Array], jax.Array]
"""Images [B, ...] -> log-probabilities of the classes [B, C]; an example's depend on its own image alone."""

Choose = Callable[[jax.Array], jax.Array]
"""Log-probabilities [B, C] -> the class that each example is guided by, int [B]."""

Scale = Callable[[jax.Array], jax.Array]
"""t int [B] -> the share of the full scale there, [B]."""


def with_terms(predict: Predict, schedule: Schedule, sampler: Sampler, terms: Sequence[Term]) -> Predict:
    """The denoiser, guided by the sum of the terms.

    At alpha_bar = 0 (zero terminal SNR) x_t is noise that says nothing of any class. An exact log density has no
    gradient there, and that of a network would be magnified without bound: the terms do not act there [ours].

    Args:
      predict: the denoiser; with a learned variance its v passes through.
      schedule: T timesteps.
      sampler: what the output means, and whether x_0 is clipped.
      terms: without one that acts, `predict` itself comes back.
    """
    acting = [term for term in terms if term is not nothing]
    if not acting:
        return predict
    learned = sampler.variance == "learned"

    def predict_with_terms(x_t: jax.Array, t: jax.Array) -> jax.Array:
        alpha_bar = schedule.alpha_bar[t]

        def read(x_t: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            output = predict(x_t, t)
            prediction = split_output(output, x_t)[0] if learned else output
            x_0, eps = to_x0_and_eps(sampler.prediction, prediction, x_t, alpha_bar)
            return jnp.clip(x_0, -1.0, 1.0) if sampler.clip else x_0, (output, eps)

        x_0, back, (output, eps) = jax.vjp(read, x_t, has_aux=True)
        denoised = Denoised(x_t, t, alpha_bar, x_0, eps, lambda slope: back(slope)[0])
        total = sum((term(denoised) for term in acting), jnp.zeros_like(x_t))
        change = jnp.where(per_pixel(alpha_bar > 0, x_t), -per_pixel(jnp.sqrt(1.0 - alpha_bar), x_t) * total, 0.0)
        if not learned:
            return shift_eps(sampler.prediction, output, change, alpha_bar)
        prediction, v = split_output(output, x_t)
        return jnp.concatenate([shift_eps(sampler.prediction, prediction, change, alpha_bar), v], axis=-1)

    return predict_with_terms


def nothing(denoised: Denoised) -> jax.Array:
    """The term of scale 0: `with_terms` leaves it out when the program is traced."""
    return jnp.zeros_like(denoised.x_t)


def constant(t: jax.Array) -> jax.Array:
    """The full scale at every t."""
    return jnp.ones(jnp.shape(t))


def make_scale(name: str, timesteps: int) -> Scale:
    """How a scale changes over the reverse chain, by name [ours].

    Args:
      name: "constant"; "rising", from 0 at t = T-1 to the full scale at t = 0; "falling", the other way round.
      timesteps: T.

    Raises:
      UserError: an unknown name.
    """
    rise = 1.0 - np.arange(timesteps) / max(timesteps - 1, 1)
    shares = {"constant": np.ones(timesteps), "rising": rise, "falling": 1.0 - rise}
    if name not in shares:
        raise UserError(f"the guidance's scale over time is '{name}'; write one of: {', '.join(SCALES)}")
    # A table, as a compiled t / (T - 1) is a product with a rounded reciprocal, which may miss the exact 0 of an end.
    return lambda t: jnp.asarray(shares[name])[t]


def asked(labels: jax.Array) -> Choose:
    """The class that each example was asked for: labels int [B]."""
    return lambda log_p: labels


def likeliest(allowed: jax.Array) -> Choose:
    """The most likely class among the allowed ones, for each example and step on its own (arXiv 2403.03938 [code]).

    Args:
      allowed: bool [C], at least one of them true.
    """

    def choose(log_p: jax.Array) -> jax.Array:
        possible = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)  # so that what cannot be still beats the forbidden
        return jnp.argmax(jnp.where(allowed, possible, -jnp.inf), axis=-1)

    return choose


def on_noisy(
    log_p: LogP,
    classes: jax.Array,
    scale: float | jax.Array,
    *,
    direction: str = "toward",
    over_time: Scale = constant,
) -> Term:
    """The gradient of log p(y | x_t) of a classifier that is shown x_t itself (DDGR [code]).

    Args:
      log_p: the classifier, which need not know t.
      classes: y, int [B].
      scale: 0 or more; [] or [B] if it is an array. At 0 the output keeps its bits, whatever the classifier says.
      direction: "toward" y or "away" from it.
      over_time: the share of the scale at each t, as of `make_scale`.

    Raises:
      UserError: a negative or infinite scale.
      ValueError: an unknown direction.
    """
    log_of_choice = _log_of_choice(log_p, asked(classes))
    return _scaled(lambda denoised: jax.grad(log_of_choice)(denoised.x_t), scale, direction, over_time)


def on_clean(
    log_p: LogP,
    choose: Choose,
    scale: float | jax.Array,
    *,
    direction: str = "toward",
    over_time: Scale = constant,
) -> Term:
    """The gradient of log p(y | predicted x_0) with respect to x_t, through the denoiser (arXiv 2403.03938 [code]).

    The predicted x_0 is clipped to [-1, 1] for the classifier; no gradient comes back from a pixel that was clipped.

    Args:
      log_p: a classifier of clean images in [-1, 1].
      choose: y, from what the classifier says of the predicted x_0; the choice, being an integer, has no gradient.
      scale: as of `on_noisy`.
      direction: "toward" y or "away" from it.
      over_time: as of `on_noisy`.

    Raises: as `on_noisy`.
    """
    log_of_choice = _log_of_choice(lambda x_0: log_p(jnp.clip(x_0, -1.0, 1.0)), choose)
    return _scaled(lambda denoised: denoised.pull(jax.grad(log_of_choice)(denoised.x_0)), scale, direction, over_time)


def _log_of_choice(log_p: LogP, choose: Choose) -> Callable[[jax.Array], jax.Array]:
    """Images -> the sum of log p(y) over the batch, whose gradient is each example's own."""

    def total(images: jax.Array) -> jax.Array:
        said = log_p(images)
        return jnp.sum(jnp.take_along_axis(said, choose(said)[:, None], axis=1))

    return total


def _scaled(gradient: Term, scale: float | jax.Array, direction: str, over_time: Scale) -> Term:
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction '{direction}'; one of {DIRECTIONS}")
    if not isinstance(scale, jax.Array):
        if not 0 <= scale < math.inf:
            raise UserError(f"the scale of guidance is {scale}; write 0 or more, and a direction to move away")
        if scale == 0:
            return nothing
    sign = 1.0 if direction == "toward" else -1.0

    def term(denoised: Denoised) -> jax.Array:
        factor = per_pixel(sign * scale * over_time(denoised.t), denoised.x_t)
        return jnp.where(factor == 0, 0.0, factor * gradient(denoised))  # 0 times what is not finite would be NaN

    return term
