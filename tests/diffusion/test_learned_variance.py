"""The bound and the loss of a learned variance against Gaussians' KL, Gaussian data and scipy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdcl_jax.diffusion.likelihood import bits_per_dim_terms, make_bound
from jdcl_jax.diffusion.process import prediction_target, q_sample, squared_error
from jdcl_jax.diffusion.schedule import Schedule, alpha_bars
from jdcl_jax.diffusion.variational import hybrid_loss, make_learned_bound, variational_term, variational_weight
from jdcl_jax.errors import UserError

KINDS = ("eps", "x0", "v")
LINEAR = alpha_bars("linear", 1000)
COSINE = alpha_bars("cosine", 4000)
ZERO_SNR = alpha_bars("linear", 1000, zero_snr=True)
VALUES = np.arange(256) / 127.5 - 1

term = functools.partial(jax.jit, static_argnames=("prediction", "clip"))(variational_term)
fixed = functools.partial(jax.jit, static_argnames=("prediction", "clip"))(bits_per_dim_terms)


def schedule_of(ab: np.ndarray) -> Schedule:
    return Schedule(jnp.asarray(ab, jnp.float32))


def both(prediction: jax.Array, v: float | jax.Array) -> jax.Array:
    return jnp.concatenate([prediction, jnp.broadcast_to(jnp.asarray(v, prediction.dtype), prediction.shape)], axis=-1)


def betas(ab: np.ndarray, t: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta, beta~ and the share of x_0 in the posterior's mean, of a step from alpha_bar[t] to `before`."""
    beta = 1 - ab[t] / before
    return beta, beta * (1 - before) / (1 - ab[t]), np.sqrt(before) * beta / (1 - ab[t])


# -- the bound


def images_at(ab: np.ndarray, t: np.ndarray, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x_0 of 8 bits with many pixels at the ends, x_t, eps) for timesteps [B]."""
    rng = np.random.default_rng(seed)
    x_0 = jnp.asarray(
        np.where(rng.random((len(t), 4, 4, 3)) < 0.3, -1.0, rng.choice(VALUES, (len(t), 4, 4, 3))), jnp.float32
    )
    eps = jnp.asarray(rng.standard_normal(x_0.shape), jnp.float32)
    return x_0, q_sample(schedule_of(ab), x_0, jnp.asarray(t), eps), eps


@pytest.mark.parametrize(
    ("ab", "prediction", "clip"),
    [
        (LINEAR, "eps", False),
        (COSINE, "x0", False),
        (COSINE, "eps", True),
        (ZERO_SNR, "v", False),
        (ZERO_SNR, "eps", True),
    ],
    ids=["linear-eps", "cosine-x0", "cosine-eps-clip", "zero_snr-v", "zero_snr-eps-clip"],
)
def test_the_ends_of_v_are_the_bounds_of_the_fixed_variances(ab: np.ndarray, prediction: str, clip: bool) -> None:
    T = len(ab)
    t = np.array([0, 0, 1, 2, 10, T // 4, T // 2, T - 2, T - 1])
    x_0, x_t, eps = images_at(ab, t)
    target = prediction_target(schedule_of(ab), prediction, x_0, jnp.asarray(t), eps)
    said = target + 0.3 * jax.random.normal(jax.random.key(0), target.shape)
    small, large = (
        fixed(make_bound(ab, name), prediction, said, x_0, x_t, jnp.asarray(t), clip=clip)
        for name in ("fixed_small", "fixed_large")
    )
    bound = make_learned_bound(ab)
    low, high = (term(bound, prediction, both(said, v), x_0, x_t, jnp.asarray(t), clip=clip) for v in (-1.0, 1.0))
    assert low.shape == (9,)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, small, rtol=1e-5)
    np.testing.assert_allclose(high[2:], large[2:], rtol=2e-5)
    assert (np.abs(low / high - 1)[:5] > 1e-3).all()  # or it would not matter which end is which


@pytest.mark.parametrize("ab", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("prediction", KINDS)
def test_a_term_is_the_kl_of_two_gaussians_with_a_variance_for_every_pixel(ab: np.ndarray, prediction: str) -> None:
    t = np.array([1, 2, 40, 300, 700, len(ab) - len(ab) // 16])
    rng = np.random.default_rng(1)
    x_0, eps, said = rng.standard_normal((3, len(t), 4, 5, 2))
    v = rng.uniform(-1.5, 1.5, x_0.shape)
    place = (slice(None), None, None, None)
    a, b = np.sqrt(ab[t])[place], np.sqrt(1 - ab[t])[place]
    x_t = a * x_0 + b * eps
    said = {"eps": eps, "x0": x_0, "v": a * eps - b * x_0}[prediction] + 0.2 * said
    predicted = {"eps": (x_t - b * said) / a, "x0": said, "v": a * x_t - b * said}[prediction]
    beta, small, from_x0 = (z[place] for z in betas(ab, t, ab[t - 1]))
    model = beta ** ((v + 1) / 2) * small ** ((1 - v) / 2)
    kl = 0.5 * (np.log(model / small) + (small + from_x0**2 * (predicted - x_0) ** 2) / model - 1)
    given = (jnp.asarray(z, jnp.float32) for z in (np.concatenate([said, v], axis=-1), x_0, x_t))
    measured = term(make_learned_bound(ab), prediction, *given, jnp.asarray(t))
    np.testing.assert_allclose(measured, kl.mean(axis=(1, 2, 3)) / np.log(2), rtol=1e-3)


def decoder(v: np.ndarray, x_0: np.ndarray, mean: np.ndarray, clip: bool = False) -> jax.Array:
    """L_0 of single pixels [N] through an x0-prediction."""
    x_0, said = (jnp.asarray(z, jnp.float32).reshape(-1, 1, 1, 1) for z in (x_0, mean))
    output = jnp.concatenate([said, jnp.asarray(v, jnp.float32).reshape(said.shape)], axis=-1)
    return term(make_learned_bound(LINEAR), "x0", output, x_0, x_0, jnp.zeros(len(x_0), jnp.int32), clip=clip)


def mass(v: np.ndarray, x_0: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The bits of the bin of x_0 under a Gaussian between the posterior's variance at t = 1 and beta_0, float64."""
    beta, small = 1e-4, (1 - LINEAR[0]) * (1 - LINEAR[1] / LINEAR[0]) / (1 - LINEAR[1])
    sigma = np.sqrt(beta ** ((v + 1) / 2) * small ** ((1 - v) / 2))
    low = np.where(x_0 < -0.999, -np.inf, (x_0 - mean - 1 / 255) / sigma)
    high = np.where(x_0 > 0.999, np.inf, (x_0 - mean + 1 / 255) / sigma)
    low, high = np.where(low + high > 0, -high, low), np.where(low + high > 0, -low, high)
    return -(stats.norm.logcdf(high) + np.log1p(-np.exp(stats.norm.logcdf(low) - stats.norm.logcdf(high)))) / np.log(2)


def pixels() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(v, x_0, mean) of pixels near and far from their means, at the ends and between."""
    rng = np.random.default_rng(3)
    x_0 = np.repeat([-1.0, VALUES[90], VALUES[200], 1.0], 12)
    return rng.uniform(-1.5, 1.5, 48), x_0, x_0 + np.tile([0.0, 0.004, -0.004, 0.02, -0.02, 0.5], 8)


def test_the_first_term_is_the_mass_in_a_pixels_bin() -> None:
    v, x_0, mean = pixels()
    np.testing.assert_allclose(decoder(v, x_0, mean), mass(v, x_0, mean), rtol=3e-4, atol=2e-5)
    clipped = decoder(v, x_0, mean, clip=True)
    np.testing.assert_allclose(clipped, mass(v, x_0, np.clip(mean, -1, 1)), rtol=3e-4, atol=2e-5)


def test_the_first_terms_slope_in_v_is_right_at_every_pixel() -> None:
    v, x_0, mean = pixels()
    slope = jax.jit(jax.grad(lambda v: jnp.sum(decoder(v, x_0, mean))))(jnp.asarray(v, jnp.float32))
    wanted = (mass(v + 1e-5, x_0, mean) - mass(v - 1e-5, x_0, mean)) / 2e-5
    np.testing.assert_allclose(slope, wanted, rtol=5e-3, atol=2e-5)


@pytest.mark.parametrize("ab", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_a_term_is_least_where_the_variance_covers_the_error_of_the_mean(ab: np.ndarray) -> None:
    """sigma^2 = beta~ + (distance of the means)^2: the slope in v is 0 there, and rises through it."""
    t = np.array([2, 10, 100, 300])
    beta, small, from_x0 = betas(ab, t, ab[t - 1])
    share = np.array([0.2, 0.5, 0.7, 0.9])
    distance = np.sqrt(small ** (1 - share) * beta**share - small)  # so that the optimum lies at f = share
    x_0 = np.array([-0.5, 0.1, 0.5, 0.0])
    given = [jnp.asarray(z, jnp.float32).reshape(4, 1, 1, 1) for z in (x_0 + distance / from_x0, x_0)]
    bound = make_learned_bound(ab)

    def total(v: jax.Array) -> jax.Array:
        output = jnp.concatenate([given[0], v.reshape(4, 1, 1, 1)], axis=-1)
        return jnp.sum(variational_term(bound, "x0", output, given[1], given[1], jnp.asarray(t)))

    slope = jax.jit(jax.grad(total))
    best = jnp.asarray(2 * share - 1, jnp.float32)
    steep = np.abs(slope(best + 0.2))
    assert (np.abs(slope(best)) < 5e-3 * steep).all()
    assert (np.asarray(slope(best + 0.2)) > 0).all()
    assert (np.asarray(slope(best - 0.2)) < 0).all()


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_the_best_variance_of_gaussian_data_costs_their_mutual_information(spread: float) -> None:
    """L_t = log2(1 + share^2 Var(x_0 | x_t) / beta~) / 2, below both fixed variances unless one of them is the best."""
    t = np.arange(1, 1000, 37)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, len(t), 32))
    a, b = np.concatenate([a, -a], axis=1), np.concatenate([b, -b], axis=1)
    b -= a * np.sum(a * b, axis=1, keepdims=True) / np.sum(a * a, axis=1, keepdims=True)
    x_0, eps = (z / np.sqrt(np.mean(z * z, axis=1, keepdims=True)) for z in (a, b))  # moments exact, so means are too
    ab = LINEAR[t][:, None]
    x_0 = spread * x_0
    x_t = np.sqrt(ab) * x_0 + np.sqrt(1 - ab) * eps
    said = np.sqrt(ab) * spread**2 / (ab * spread**2 + 1 - ab) * x_t
    beta, small, from_x0 = betas(LINEAR, t, LINEAR[t - 1])
    left = spread**2 * (1 - LINEAR[t]) / (LINEAR[t] * spread**2 + 1 - LINEAR[t])
    true = small + from_x0**2 * left
    v = 2 * np.log(true / small) / np.log(beta / small) - 1
    output = np.concatenate([said[..., None], np.broadcast_to(v[:, None, None], (*said.shape, 1))], axis=-1)
    given = (jnp.asarray(z, jnp.float32) for z in (output, x_0[..., None], x_t[..., None]))
    measured = term(make_learned_bound(LINEAR), "x0", *given, jnp.asarray(t))
    np.testing.assert_allclose(measured, 0.5 * np.log2(true / small), rtol=1e-3, atol=1e-7)
    if spread == 1.0:
        np.testing.assert_allclose(v, 1.0, atol=1e-6)


# -- its gradients, and the loss


def slopes(ab: np.ndarray, prediction: str, clip: bool, t: np.ndarray, wrong: float) -> jax.Array:
    """Gradient of the summed terms with respect to the network's output."""
    x_0, x_t, eps = images_at(ab, t)
    target = prediction_target(schedule_of(ab), prediction, x_0, jnp.asarray(t), eps)
    said = target + wrong * jax.random.normal(jax.random.key(0), target.shape)
    bound = make_learned_bound(ab)
    total = jax.grad(lambda o: jnp.sum(variational_term(bound, prediction, o, x_0, x_t, jnp.asarray(t), clip=clip)))
    return jax.jit(total)(both(said, 0.1))


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("wrong", [0.1, 3.0])
def test_only_v_learns_from_the_bound_and_always_with_finite_slopes(prediction: str, wrong: float) -> None:
    t = np.array([0, 0, 1, 5, 100, 500, 998, 999])
    for ab, clip in ((LINEAR, False), (ZERO_SNR, True), (ZERO_SNR, False)):
        slope = slopes(ab, prediction, clip, t, wrong)
        assert bool(jnp.isfinite(slope).all())
        np.testing.assert_array_equal(slope[..., :3], jnp.zeros_like(slope[..., :3]))
        assert (np.abs(slope[:6, ..., 3:]).max(axis=(1, 2, 3)) > 0).all()


def test_the_hybrid_loss_is_the_squared_error_and_a_thousandth_of_the_whole_bound() -> None:
    """At t drawn uniformly it is, on average, L_simple + 0.001 (sum of all L_t), in bits/dim."""
    ab = alpha_bars("linear", 20)
    bound, t = make_learned_bound(ab), jnp.arange(20)
    x_0, x_t, eps = images_at(ab, np.arange(20))
    output = both(eps + 0.1 * jnp.sin(9 * eps), jnp.cos(7 * eps))
    losses = jax.jit(lambda: hybrid_loss(bound, "eps", output, eps, x_0, x_t, t))()
    terms = term(bound, "eps", output, x_0, x_t, t)
    assert losses.shape == (20,)
    simple = float(np.mean(squared_error(output[..., :3], eps)))
    assert np.mean(losses) == pytest.approx(simple + 1e-3 * float(np.sum(terms)), rel=1e-5)
    assert 1e-3 * np.sum(terms) > 0.1 * simple  # large enough to be seen
    assert variational_weight(20) == pytest.approx(0.02)
    assert variational_weight(4000) == pytest.approx(4.0)


def test_the_prediction_learns_from_the_squared_error_alone() -> None:
    bound, t = make_learned_bound(LINEAR), np.array([0, 3, 600])
    x_0, x_t, eps = images_at(LINEAR, t)
    output = both(0.8 * eps, 0.4)

    def total(output: jax.Array) -> jax.Array:
        return jnp.sum(hybrid_loss(bound, "eps", output, eps, x_0, x_t, jnp.asarray(t)))

    slope = jax.jit(jax.grad(total))(output)
    np.testing.assert_allclose(slope[..., :3], 2 * (0.8 * eps - eps) / (4 * 4 * 3), rtol=1e-5, atol=1e-9)
    alone = jax.jit(jax.grad(lambda o: jnp.sum(variational_term(bound, "eps", o, x_0, x_t, jnp.asarray(t)))))(output)
    np.testing.assert_allclose(slope[..., 3:], 1.0 * alone[..., 3:], rtol=1e-5)  # 0.001 T is 1


def test_a_term_is_a_mean_over_each_examples_own_pixels() -> None:
    bound, t = make_learned_bound(LINEAR), np.array([0, 5, 300])
    x_0, x_t, eps = images_at(LINEAR, t)
    output = both(eps + 0.2, jnp.sin(eps))
    together = term(bound, "eps", output, x_0, x_t, jnp.asarray(t))
    for i in range(3):
        one = slice(i, i + 1)
        alone = term(bound, "eps", output[one], x_0[one], x_t[one], jnp.asarray(t[one]))
        np.testing.assert_allclose(together[one], alone, rtol=1e-5)
    twice = [jnp.concatenate([a, a], axis=1) for a in (output, x_0, x_t)]
    np.testing.assert_allclose(term(bound, "eps", *twice, jnp.asarray(t)), together, rtol=1e-5)


def test_what_the_bound_cannot_be_built_from_or_asked() -> None:
    with pytest.raises(UserError, match=r"diffusion\.timesteps is 1"):
        make_learned_bound(alpha_bars("linear", 1))
    with pytest.raises(ValueError, match="pass the float64"):
        make_learned_bound(LINEAR.astype(np.float32))
    x, t = jnp.zeros((2, 4, 4, 3)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="says 6 channels"):
        variational_term(make_learned_bound(LINEAR), "eps", x, x, x, t)
