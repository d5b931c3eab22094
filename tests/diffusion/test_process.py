"""The forward process and the readings of a network's output, against Bayes' rule and algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.process import posterior, prediction_target, q_sample, squared_error, to_x0_and_eps
from jdcl_jax.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("linear", 1000)


def examples() -> tuple[jax.Array, jax.Array, jax.Array]:
    x_0 = jax.random.uniform(jax.random.key(0), (4, 5, 5, 2), minval=-1.0)
    eps = jax.random.normal(jax.random.key(1), x_0.shape)
    return x_0, eps, jnp.array([0, 100, 500, 900])


def test_q_sample_mixes_each_example_at_its_own_timestep() -> None:
    x_0, eps, t = examples()
    x_t = q_sample(SCHEDULE, x_0, t, eps)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for i, step in enumerate(t):
        wanted = np.sqrt(alpha_bar[step]) * x_0[i] + np.sqrt(1 - alpha_bar[step]) * eps[i]
        np.testing.assert_allclose(x_t[i], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_a_perfect_network_of_any_kind_gives_back_x0_and_eps(kind: str) -> None:
    x_0, eps, t = examples()
    x_t = q_sample(SCHEDULE, x_0, t, eps)
    output = prediction_target(SCHEDULE, kind, x_0, t, eps)
    read_x0, read_eps = to_x0_and_eps(kind, output, x_t, SCHEDULE.alpha_bar[t])
    np.testing.assert_allclose(read_x0, x_0, atol=2e-3)
    np.testing.assert_allclose(read_eps, eps, atol=1e-2)


def test_v_is_the_derivative_along_the_angle() -> None:
    # With x = cos(a) x_0 + sin(a) eps, v = dx/da (arXiv 2202.00512).
    x_0, eps, t = examples()
    angle = jnp.arccos(jnp.sqrt(SCHEDULE.alpha_bar[t]))[:, None, None, None]
    _, slope = jax.jvp(lambda a: jnp.cos(a) * x_0 + jnp.sin(a) * eps, (angle,), (jnp.ones_like(angle),))
    np.testing.assert_allclose(prediction_target(SCHEDULE, "v", x_0, t, eps), slope, atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_everything_stays_finite_where_no_signal_is_left(kind: str) -> None:
    x_t = jax.random.normal(jax.random.key(2), (2, 4, 4, 1))
    x_0, eps = to_x0_and_eps(kind, x_t * 0.5, x_t, jnp.zeros(2))
    assert bool(jnp.all(jnp.isfinite(x_0)) and jnp.all(jnp.isfinite(eps)))


@pytest.mark.parametrize(("now", "before"), [(0.5, 0.6), (0.01, 0.9), (0.98, 0.99)])
def test_posterior_is_bayes_rule(now: float, before: float) -> None:
    # Prior N(sqrt(before) x_0, 1 - before) times likelihood N(sqrt(alpha) x_s, beta) of x_t: precisions add.
    alpha, beta = now / before, 1 - now / before
    x_0, x_t = 0.3, -1.7
    precision = 1 / (1 - before) + alpha / beta
    mean = (np.sqrt(before) * x_0 / (1 - before) + np.sqrt(alpha) * x_t / beta) / precision
    got_mean, got_variance = posterior(jnp.array([x_0]), jnp.array([x_t]), jnp.float32(now), jnp.float32(before))
    assert float(got_mean[0]) == pytest.approx(mean, rel=2e-5)
    assert float(got_variance) == pytest.approx(1 / precision, rel=2e-5)


def test_squared_error_is_a_mean_over_each_examples_pixels() -> None:
    output = jnp.stack([jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3))])
    np.testing.assert_allclose(squared_error(output, jnp.full_like(output, 3.0)), [9.0, 4.0])
