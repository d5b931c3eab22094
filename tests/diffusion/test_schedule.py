"""Schedules against their closed forms and the likelihood weights known for them (arXiv 2303.15342's DDPM)."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.process import posterior
from jdcl_jax.diffusion.schedule import alpha_bars, cosine_betas, linear_betas, make_schedule, zero_terminal_snr
from jdcl_jax.errors import UserError


def exact_alpha_bar() -> np.ndarray:
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))


def eps_weights(alpha_bar: np.ndarray) -> np.ndarray:
    """Bits that one unit of eps-MSE at t costs, t = 1..T-1: the KL of two Gaussians with the posterior's variance."""
    weights = np.zeros(len(alpha_bar))
    for t in range(1, len(alpha_bar)):
        now, before = alpha_bar[t], alpha_bar[t - 1]
        one, zero = np.ones(1), np.zeros(1)
        from_x0, variance = posterior(one, zero, now, before)  # the mean's share of x_0
        x0_error = math.sqrt((1 - now) / now)  # of one unit of eps
        weights[t] = (float(from_x0[0]) * x0_error) ** 2 / (2 * float(variance) * math.log(2))
    return weights


def test_likelihood_weights_have_their_known_values() -> None:
    known = {1: 0.86514, 2: 0.45877, 5: 0.20602, 10: 0.11394, 50: 0.027307, 100: 0.014684, 250: 0.0077391}
    known |= {500: 0.0079557, 750: 0.011052, 999: 0.014722}
    weights = eps_weights(exact_alpha_bar())
    for t, value in known.items():
        assert weights[t] == pytest.approx(value, rel=6e-5), t


@pytest.mark.parametrize(("spread", "bits"), [(1.0, 7.3145), (0.5, 6.3024), (0.1, 3.8940)])
def test_gaussian_data_with_the_optimal_denoiser_has_its_known_bound(spread: float, bits: float) -> None:
    alpha_bar = exact_alpha_bar()
    mse = alpha_bar * spread**2 / (alpha_bar * spread**2 + 1 - alpha_bar)
    assert np.sum(eps_weights(alpha_bar) * mse) == pytest.approx(bits, abs=6e-5)


def test_stored_linear_schedule_is_the_product_of_its_alphas() -> None:
    schedule = make_schedule("linear", 1000)
    np.testing.assert_allclose(schedule.alpha_bar, exact_alpha_bar(), rtol=1e-6)
    assert linear_betas(1000)[[0, -1]] == pytest.approx([1e-4, 0.02])


def test_zero_terminal_snr_ends_at_zero_and_keeps_the_first() -> None:
    old = exact_alpha_bar()
    new = zero_terminal_snr(old)
    assert new[-1] == 0.0
    assert new[0] == pytest.approx(old[0], rel=1e-12)
    assert np.all(np.diff(new) < 0)
    # an affine map of sqrt(alpha_bar): ratios of differences stay
    root, before = np.sqrt(new), np.sqrt(old)
    assert (root[10] - root[500]) / (root[0] - root[500]) == pytest.approx(
        (before[10] - before[500]) / (before[0] - before[500])
    )


def test_zero_terminal_snr_survives_float32() -> None:
    alpha_bar = make_schedule("linear", 1000, zero_snr=True).alpha_bar
    assert float(alpha_bar[-1]) == 0.0
    assert bool(jnp.all(alpha_bar[:-1] > 0))


def test_cosine_schedule_follows_its_cosine() -> None:
    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = np.cumprod(1 - cosine_betas(1000))
    for t in (0, 100, 499, 900):
        assert alpha_bar[t] == pytest.approx(f((t + 1) / 1000) / f(0), rel=1e-9)
    assert cosine_betas(1000)[-1] == 0.999


def test_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="linear, cosine"):
        make_schedule("linea")


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_float64_alpha_bars_are_what_the_schedule_stores(name: str, zero_snr: bool) -> None:
    exact = alpha_bars(name, 300, beta_start=1e-3, beta_end=0.03, zero_snr=zero_snr)
    stored = make_schedule(name, 300, beta_start=1e-3, beta_end=0.03, zero_snr=zero_snr).alpha_bar
    assert exact.dtype == np.float64
    np.testing.assert_array_equal(stored, exact.astype(np.float32))
    betas = np.linspace(1e-3, 0.03, 300) if name == "linear" else cosine_betas(300)
    plain = np.cumprod(1 - betas)
    np.testing.assert_array_equal(exact, zero_terminal_snr(plain) if zero_snr else plain)


def test_float64_alpha_bars_keep_the_digits_of_small_betas() -> None:
    def beta(alpha_bar: np.ndarray) -> np.ndarray:
        return 1 - alpha_bar[1:] / alpha_bar[:-1]

    exact, betas = alpha_bars("linear", 1000), linear_betas(1000)[1:]
    np.testing.assert_allclose(beta(exact), betas, rtol=1e-11)
    assert abs(beta(exact.astype(np.float32))[0] / betas[0] - 1) > 1e-5


def test_unknown_alpha_bars_name_the_known_ones() -> None:
    with pytest.raises(UserError, match="linear, cosine"):
        alpha_bars("linea")
