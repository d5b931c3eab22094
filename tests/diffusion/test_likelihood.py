"""The bound in bits/dim against closed forms: Gaussian data, DDPM's own formulas in float64, and scipy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdcl_jax.diffusion.likelihood import (
    VARIANCES,
    Bound,
    bits_per_dim_terms,
    make_bound,
    prior_bits,
    variance_gap_bits,
    weights,
)
from jdcl_jax.diffusion.process import prediction_target, q_sample
from jdcl_jax.diffusion.schedule import Schedule, alpha_bars, make_schedule
from jdcl_jax.errors import UserError

LINEAR = alpha_bars("linear", 1000)
ZERO_SNR = alpha_bars("linear", 1000, zero_snr=True)
PREDICTIONS = ("eps", "x0", "v")

terms = functools.partial(jax.jit, static_argnames=("prediction", "clip"))(bits_per_dim_terms)


def schedule_of(ab: np.ndarray) -> Schedule:
    return Schedule(alpha_bar=jnp.asarray(ab, jnp.float32))


def moment_matched(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two normal samples that are uncorrelated, with mean 0 and second moment 1 in every row.

    What is linear in them then has exactly its expected square, so no sampling error hides a wrong factor.
    """
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, shape[0], shape[1] // 2))
    a, b = np.concatenate([a, -a], axis=1), np.concatenate([b, -b], axis=1)
    b -= a * np.sum(a * b, axis=1, keepdims=True) / np.sum(a * a, axis=1, keepdims=True)
    return tuple(z / np.sqrt(np.mean(z * z, axis=1, keepdims=True)) for z in (a, b))


def gaussian_terms(ab: np.ndarray, variance: str, prediction: str, spread: float, mean: float = 0.0) -> np.ndarray:
    """L_t for t = 0..T-1 on x_0 ~ N(0, spread^2), of the denoiser that is optimal for x_0 ~ N(mean, spread^2)."""
    T = len(ab)
    schedule, t = schedule_of(ab), jnp.arange(T)
    x_0, eps = (jnp.asarray(z, jnp.float32) for z in moment_matched((T, 64)))
    x_0 = x_0 * spread
    x_t = q_sample(schedule, x_0, t, eps)
    column = ab[:, None]
    share = np.sqrt(column) * spread**2 / (column * spread**2 + 1 - column)  # of x_t's surprise, in the expected x_0
    surprise = np.asarray(x_t, np.float64) - np.sqrt(column) * mean
    expected_x0 = mean + share * surprise
    expected_eps = np.sqrt(1 - column) / (column * spread**2 + 1 - column) * surprise
    output = prediction_target(schedule, prediction, jnp.float32(expected_x0), t, jnp.float32(expected_eps))
    return np.asarray(terms(make_bound(ab, variance), prediction, output, x_0, x_t, t, clip=False))


def optimal_mse(ab: np.ndarray, spread: float) -> np.ndarray:
    return ab * spread**2 / (ab * spread**2 + 1 - ab)


def test_weights_have_their_known_values() -> None:
    known = {1: 0.86514, 2: 0.45877, 5: 0.20602, 10: 0.11394, 50: 0.027307, 100: 0.014684, 250: 0.0077391}
    known |= {500: 0.0079557, 750: 0.011052, 999: 0.014722}
    for t, value in known.items():
        digits = len(f"{value:.10g}".split(".")[1])
        assert round(weights(LINEAR, "fixed_small")[t], digits) == value, t


def test_weights_of_fixed_large_follow_their_formula() -> None:
    beta = np.linspace(1e-4, 0.02, 1000)
    wanted = beta / (2 * (1 - beta) * (1 - LINEAR) * math.log(2))
    np.testing.assert_allclose(weights(LINEAR, "fixed_large")[1:], wanted[1:], rtol=1e-10)


@pytest.mark.parametrize("variance", VARIANCES)
def test_weights_say_where_they_are_not_defined(variance: str) -> None:
    assert math.isnan(weights(LINEAR, variance)[0])
    assert np.isfinite(weights(LINEAR, variance)[1:]).all()
    assert weights(ZERO_SNR, variance)[-1] == np.inf
    assert np.isfinite(weights(ZERO_SNR, variance)[1:-1]).all()


KNOWN_BOUNDS = [(1.0, 7.3145), (0.5, 6.3024), (0.1, 3.8940)]


@pytest.mark.parametrize(("spread", "bits"), KNOWN_BOUNDS)
def test_bound_of_gaussian_data_in_closed_form(spread: float, bits: float) -> None:
    total = np.sum((weights(LINEAR, "fixed_small") * optimal_mse(LINEAR, spread))[1:])
    assert round(total, 4) == bits


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("spread", "bits"), KNOWN_BOUNDS)
def test_bound_of_gaussian_data_through_the_optimal_denoiser(prediction: str, spread: float, bits: float) -> None:
    measured = gaussian_terms(LINEAR, "fixed_small", prediction, spread)
    assert measured.dtype == np.float32
    assert np.sum(measured[1:], dtype=np.float64) == pytest.approx(bits, abs=3e-4)
    wanted = weights(LINEAR, "fixed_small") * optimal_mse(LINEAR, spread)
    np.testing.assert_allclose(measured[1:], wanted[1:], rtol=1e-3)


@pytest.mark.parametrize(("name", "zero_snr"), [("linear", True), ("cosine", False), ("cosine", True)])
@pytest.mark.parametrize("variance", VARIANCES)
def test_terms_are_weights_times_mse_plus_what_the_variance_costs(name: str, zero_snr: bool, variance: str) -> None:
    ab = alpha_bars(name, 200, zero_snr=zero_snr)
    inner = slice(1, -1)  # the last weight is infinite with zero terminal SNR
    measured = gaussian_terms(ab, variance, "eps", 0.5)[inner]
    wanted = weights(ab, variance)[inner] * optimal_mse(ab, 0.5)[inner] + make_bound(ab, variance).variance_bits[inner]
    np.testing.assert_allclose(measured, wanted, rtol=1e-3)


def test_fixed_large_adds_a_constant_of_its_own() -> None:
    assert round(variance_gap_bits(LINEAR), 3) == 0.486
    perfect = gaussian_terms(LINEAR, "fixed_large", "eps", 1e-6)  # nothing is left to predict wrongly
    assert np.sum(perfect[1:]) == pytest.approx(0.486, abs=1e-3)
    assert np.abs(gaussian_terms(LINEAR, "fixed_small", "eps", 1e-6)[1:]).max() < 1e-5


def test_fixed_large_takes_more_from_the_weights_than_it_adds_for_unit_gaussian_pixels() -> None:
    small, large = (gaussian_terms(LINEAR, variance, "eps", 1.0) for variance in VARIANCES)
    assert np.sum(large[1:] - small[1:]) == pytest.approx(6.6438 - 7.3145, abs=3e-4)
    assert large[0] == small[0]  # one decoder for both


@pytest.mark.parametrize(("spread", "peak"), [(1.0, 258), (0.5, 144)])
def test_a_shift_of_the_mean_is_forgotten_most_where_signal_equals_noise(spread: float, peak: int) -> None:
    shift = 4.0
    fresh, shifted = (gaussian_terms(LINEAR, "fixed_small", "eps", spread, mean) for mean in (0.0, shift))
    rise = (shifted - fresh)[1:] / weights(LINEAR, "fixed_small")[1:]  # of the eps-MSE
    assert np.argmin(np.abs(LINEAR * spread**2 - (1 - LINEAR))) == peak
    assert np.argmax(rise) + 1 == peak
    assert rise.max() == pytest.approx(shift**2 / (4 * spread**2), rel=1e-3)
    np.testing.assert_allclose(
        rise, (shift**2 * LINEAR * (1 - LINEAR) / (LINEAR * spread**2 + 1 - LINEAR) ** 2)[1:], rtol=5e-3
    )


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("spread", [1.0, 0.5, 0.1])
def test_late_timesteps_carry_less_than_a_hundredth_of_the_bound(variance: str, spread: float) -> None:
    measured = gaussian_terms(LINEAR, variance, "eps", spread)[1:]
    assert 0 < measured[499:].sum() < 0.01 * measured.sum()


def test_late_timesteps_carry_more_with_a_cosine_schedule_or_a_model_that_knows_nothing() -> None:
    def late_share(ab: np.ndarray, mse: np.ndarray) -> float:
        bits = (weights(ab, "fixed_small") * mse)[1:]
        return float(bits[499:].sum() / bits.sum())

    cosine = alpha_bars("cosine", 1000)
    assert late_share(LINEAR, optimal_mse(LINEAR, 1.0)) == pytest.approx(0.0081, abs=5e-5)
    assert late_share(cosine, optimal_mse(cosine, 1.0)) == pytest.approx(0.0625, abs=5e-5)
    assert late_share(LINEAR, np.ones(1000)) == pytest.approx(0.379, abs=5e-4)


def ddpm_kl_bits(ab: np.ndarray, large: bool, predicted: np.ndarray, x_0: np.ndarray, x_t: np.ndarray, t: int) -> float:
    """The KL of two Gaussians written out with DDPM's two posterior mean coefficients; float64."""
    beta, before = 1 - ab[t] / ab[t - 1], ab[t - 1]
    coef1 = np.sqrt(before) * beta / (1 - ab[t])
    coef2 = np.sqrt(1 - beta) * (1 - before) / (1 - ab[t])
    true_mean, model_mean = coef1 * x_0 + coef2 * x_t, coef1 * predicted + coef2 * x_t
    true_variance = beta * (1 - before) / (1 - ab[t])
    model_variance = beta if large else true_variance
    kl = 0.5 * (
        np.log(model_variance / true_variance) + (true_variance + (true_mean - model_mean) ** 2) / model_variance - 1
    )
    return float(np.mean(kl) / np.log(2))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [False, True])
def test_kl_is_that_of_ddpms_gaussians(prediction: str, variance: str, clip: bool) -> None:
    rng = np.random.default_rng(1)
    t = np.array([1, 2, 40, 300, 700, 999])
    x_0, eps, output = rng.standard_normal((3, len(t), 4, 5, 2))
    x_0 = np.clip(x_0 * 0.5, -1, 1)
    a, b = np.sqrt(LINEAR[t])[:, None, None, None], np.sqrt(1 - LINEAR[t])[:, None, None, None]
    x_t = a * x_0 + b * eps
    predicted = {"eps": (x_t - b * output) / a, "x0": output, "v": a * x_t - b * output}[prediction]
    if clip:
        predicted = np.clip(predicted, -1, 1)
    wanted = [
        ddpm_kl_bits(LINEAR, variance == "fixed_large", predicted[i], x_0[i], x_t[i], step) for i, step in enumerate(t)
    ]
    arrays = (jnp.asarray(z, jnp.float32) for z in (output, x_0, x_t))
    measured = terms(make_bound(LINEAR, variance), prediction, *arrays, jnp.asarray(t), clip=clip)
    np.testing.assert_allclose(measured, wanted, rtol=5e-4)


def decoder_bits(bound: Bound, x_0: np.ndarray, predicted: np.ndarray, clip: bool = False) -> np.ndarray:
    """L_0 of single pixels [N] through an x0-prediction."""
    arrays = [jnp.asarray(z, jnp.float32).reshape(-1, 1, 1, 1) for z in (predicted, x_0)]
    t = jnp.zeros(len(x_0), jnp.int32)
    return np.asarray(terms(bound, "x0", *arrays, arrays[1], t, clip=clip))


VALUES = np.arange(256) / 127.5 - 1


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mean", [0.0, 0.1234, -0.998, 1.0, -1.02])
def test_decoder_is_the_mass_of_a_gaussian_in_a_pixels_bin(variance: str, mean: float) -> None:
    sigma = math.sqrt((1 - LINEAR[0]) * (1 - LINEAR[1] / LINEAR[0]) / (1 - LINEAR[1]))
    low, high = (VALUES - mean - 1 / 255) / sigma, (VALUES - mean + 1 / 255) / sigma
    low[0], high[-1] = -np.inf, np.inf
    near, far = np.where(low + high > 0, -low, high), np.where(low + high > 0, -high, low)
    wanted = -(stats.norm.logcdf(near) + np.log1p(-np.exp(stats.norm.logcdf(far) - stats.norm.logcdf(near))))
    direct = stats.norm.cdf(high) - stats.norm.cdf(low)
    clear = direct > 1e-9
    np.testing.assert_allclose(wanted[clear], -np.log(direct[clear]), rtol=1e-6)  # the oracle, plainly
    measured = decoder_bits(make_bound(LINEAR, variance), VALUES, np.full(256, mean))
    np.testing.assert_allclose(measured, wanted / math.log(2), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mean", [0.0, 0.55, 0.9999, -1.5])
@pytest.mark.parametrize("ab", [LINEAR, alpha_bars("cosine", 50), alpha_bars("linear", 10, beta_end=0.5)])
def test_decoders_masses_of_all_values_sum_to_one(ab: np.ndarray, mean: float) -> None:
    bits = decoder_bits(make_bound(ab, "fixed_small"), VALUES, np.full(256, mean))
    assert np.sum(2.0 ** -bits.astype(np.float64)) == pytest.approx(1.0, abs=5e-5)


def test_decoder_stays_finite_however_wrong_the_prediction() -> None:
    wrong = np.array([3.0, -50.0, 1e3, 1e6, -1e9, 1e12])
    for x_0 in (-1.0, 0.0, 1.0):
        bits = decoder_bits(make_bound(LINEAR, "fixed_small"), np.full(6, x_0), wrong)
        assert np.isfinite(bits).all()
        assert (bits >= 0).all()


def test_terms_are_means_over_each_examples_own_pixels() -> None:
    bound = make_bound(LINEAR, "fixed_small")
    rng = np.random.default_rng(2)
    x_0 = jnp.asarray(rng.choice(VALUES, (2, 4, 4, 3)), jnp.float32)
    output = x_0 + 0.01 * jnp.arange(2)[:, None, None, None]
    for t in (0, 5):
        both = terms(bound, "x0", output, x_0, x_0, jnp.full(2, t), clip=False)
        alone = [
            terms(bound, "x0", output[i : i + 1], x_0[i : i + 1], x_0[:1], jnp.full(1, t), clip=False) for i in (0, 1)
        ]
        np.testing.assert_allclose(both, jnp.concatenate(alone), rtol=1e-5)
        assert both.shape == (2,)
        assert both[1] > both[0]


@pytest.mark.parametrize("t", [0, 1, 500])
def test_clipping_changes_the_value_only_of_a_prediction_outside_the_range(t: int) -> None:
    bound = make_bound(LINEAR, "fixed_small")
    x_0 = jnp.full((3, 2, 2, 1), 0.5)
    predicted = jnp.array([0.9, 1.2, -3.0])[:, None, None, None] * jnp.ones_like(x_0)
    free, clipped = (terms(bound, "x0", predicted, x_0, x_0, jnp.full(3, t), clip=clip) for clip in (False, True))
    assert free[0] == clipped[0]
    assert (clipped[1:] < free[1:]).all()


def test_clipping_raises_the_decoders_bits_of_an_overshot_extreme_pixel() -> None:
    bound, white, over = make_bound(LINEAR, "fixed_small"), np.ones(1), np.full(1, 1.05)
    assert decoder_bits(bound, white, over, clip=True) > decoder_bits(bound, white, over) + 0.1


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
def test_everything_is_finite_with_zero_terminal_snr(name: str, variance: str, prediction: str, clip: bool) -> None:
    ab = alpha_bars(name, 100, zero_snr=True)
    bound = make_bound(ab, variance)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(bound))
    x_0, output = jax.random.uniform(jax.random.key(0), (2, 100, 4, 4, 1), minval=-1.0)
    x_t = jax.random.normal(jax.random.key(1), x_0.shape)
    bits = terms(bound, prediction, output, x_0, x_t, jnp.arange(100), clip=clip)
    assert bool(jnp.isfinite(bits).all())
    assert np.isfinite(variance_gap_bits(ab))


def test_last_term_with_zero_terminal_snr_is_that_of_an_x0_prediction() -> None:
    # x_{T-1} says nothing, so the best x_0 is its mean and L is the squared spread times its coefficient.
    before = ZERO_SNR[-2]
    wanted = before * 0.5**2 / (2 * (1 - before) * math.log(2))
    for prediction in ("x0", "v"):
        assert gaussian_terms(ZERO_SNR, "fixed_small", prediction, 0.5)[-1] == pytest.approx(wanted, rel=1e-4)


def test_prior_is_the_kl_from_a_standard_normal() -> None:
    x_0 = jnp.stack([jnp.zeros((2, 2, 1)), jnp.full((2, 2, 1), 0.8)])
    ab = alpha_bars("linear", 50)  # short enough that much of x_0 is left
    mean, variance = np.sqrt(ab[-1]) * np.array([0.0, 0.8]), 1 - ab[-1]
    wanted = 0.5 * (mean**2 + variance - 1 - np.log(variance)) / math.log(2)
    np.testing.assert_allclose(prior_bits(ab, x_0), wanted, rtol=1e-5)
    assert prior_bits(LINEAR, x_0).dtype == jnp.float32
    np.testing.assert_array_equal(prior_bits(ZERO_SNR, x_0), [0.0, 0.0])


def test_bound_noises_and_reads_with_the_same_numbers_as_the_schedule() -> None:
    bound = make_bound(LINEAR, "fixed_large")
    np.testing.assert_array_equal(bound.alpha_bar, make_schedule("linear", 1000).alpha_bar)
    assert all(leaf.shape == (1000,) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(bound))


def test_what_the_bound_cannot_be_built_from() -> None:
    with pytest.raises(UserError, match=r"diffusion\.timesteps is 1"):
        make_bound(alpha_bars("linear", 1), "fixed_small")
    with pytest.raises(ValueError, match="pass the float64"):
        make_bound(np.asarray(make_schedule("linear", 10).alpha_bar), "fixed_small")
    with pytest.raises(ValueError, match="fixed_small"):
        weights(LINEAR, "learned")
