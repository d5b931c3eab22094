"""Samplers on data whose perfect denoiser is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.sampler import Sampler, guided, reverse_step, sample, sampling_timesteps
from jdcl_jax.diffusion.schedule import Schedule, make_schedule
from jdcl_jax.keys import example_keys

PLAIN = make_schedule("linear", 1000)
ZERO_SNR = make_schedule("linear", 1000, zero_snr=True)
SHAPE = (2, 3, 1)


def keys(n: int, seed: int = 0) -> jax.Array:
    return example_keys(jax.random.key(seed), jnp.arange(n))


def gaussian_denoiser(schedule: Schedule, mean: float, spread: float):
    """E[eps | x_t] of data N(mean, spread^2); spread 0 is a single point."""

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        alpha_bar = schedule.alpha_bar[t][:, None, None, None]
        variance = alpha_bar * spread**2 + 1 - alpha_bar
        return jnp.sqrt(1 - alpha_bar) * (x_t - jnp.sqrt(alpha_bar) * mean) / variance

    return predict


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [(1, [999]), (2, [999, 499]), (3, [999, 666, 332]), (4, [999, 749, 499, 249])],
)
def test_visited_timesteps_are_the_trailing_ones(steps: int, wanted: list[int]) -> None:
    assert sampling_timesteps(1000, steps).tolist() == wanted


def test_visited_timesteps_end_at_the_first_when_all_are_visited() -> None:
    assert sampling_timesteps(1000, 1000).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize(
    "sampler", [Sampler("ddim", 2), Sampler("ddim", 7), Sampler("ddpm", 5), Sampler("ddim", 5, eta=1.0)]
)
@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR], ids=["plain", "zero_snr"])
def test_data_of_one_point_is_found_whatever_the_number_of_steps(sampler: Sampler, schedule: Schedule) -> None:
    x_0, _ = sample(gaussian_denoiser(schedule, 0.4, 0.0), schedule, sampler, keys(4), SHAPE)
    np.testing.assert_allclose(x_0, 0.4, atol=2e-3)


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_gaussian_data_come_back_with_their_mean_and_spread(kind: str) -> None:
    sampler = Sampler(kind, 500, clip=False)
    draw = jax.jit(lambda k: sample(gaussian_denoiser(PLAIN, 0.3, 0.5), PLAIN, sampler, k, (8, 8, 1))[0])
    x_0 = np.asarray(draw(keys(256)))
    error = 0.5 / np.sqrt(x_0.size)
    assert abs(x_0.mean() - 0.3) < 5 * error + 0.01
    assert x_0.std() == pytest.approx(0.5, rel=0.02)


def test_ddim_with_eta_one_is_the_ancestral_step() -> None:
    x_t, output, noise = (jax.random.normal(k, (2, 3)) for k in jax.random.split(jax.random.key(0), 3))
    now, before = jnp.float32(0.3), jnp.float32(0.5)
    ancestral = reverse_step(Sampler("ddpm", clip=False), output, x_t, now, before, noise)
    implicit = reverse_step(Sampler("ddim", eta=1.0, clip=False), output, x_t, now, before, noise)
    np.testing.assert_allclose(implicit, ancestral, atol=1e-5)


def test_clipping_x0_leaves_the_predicted_noise_as_it_was() -> None:
    x_t, output = jnp.array([[4.0]]), jnp.array([[0.5]])
    now, before = jnp.float32(0.25), jnp.float32(0.64)
    assert (4.0 - np.sqrt(0.75) * 0.5) / 0.5 > 1  # the unclipped x_0
    got = reverse_step(Sampler("ddim"), output, x_t, now, before, jnp.zeros(()))
    assert float(got[0, 0]) == pytest.approx(0.8 * 1.0 + 0.6 * 0.5, rel=1e-6)


def test_no_signal_at_the_start_stays_finite_and_in_range() -> None:
    x_0, _ = sample(lambda x, t: 0.9 * x, ZERO_SNR, Sampler("ddim", 2), keys(8), SHAPE)
    assert bool(jnp.all(jnp.abs(x_0) <= 1.0))


def test_a_sample_depends_on_its_own_key_alone() -> None:
    predict = gaussian_denoiser(PLAIN, 0.0, 0.5)
    many, _ = sample(predict, PLAIN, Sampler("ddpm", 4), keys(6), SHAPE)
    few, _ = sample(predict, PLAIN, Sampler("ddpm", 4), keys(6)[2:4], SHAPE)
    np.testing.assert_allclose(few, many[2:4], atol=1e-6)
    assert not np.allclose(many[0], many[1])


def test_the_trajectory_starts_at_noise_and_holds_every_state() -> None:
    predict = gaussian_denoiser(PLAIN, 0.2, 0.5)
    sampler = Sampler("ddim", 3, clip=False)
    x_0, trajectory = sample(predict, PLAIN, sampler, keys(64), (8, 8, 1))
    assert trajectory.x_t.shape == (3, 64, 8, 8, 1)
    assert trajectory.t.tolist() == [999, 666, 332]
    assert float(jnp.std(trajectory.x_t[0])) == pytest.approx(1.0, abs=0.05)
    last = jnp.full((64,), 332)
    output = predict(trajectory.x_t[-1], last)
    stepped = reverse_step(sampler, output, trajectory.x_t[-1], PLAIN.alpha_bar[332], jnp.float32(1.0), jnp.zeros(()))
    np.testing.assert_allclose(x_0, stepped, atol=1e-6)


def test_guidance_extrapolates_from_the_unconditional_output() -> None:
    predict = guided(lambda x, t: x + 1.0, lambda x, t: x, 3.0)
    np.testing.assert_allclose(predict(jnp.zeros(2), jnp.zeros(2)), 4.0)
    same = guided(lambda x, t: x + 1.0, lambda x, t: jnp.full_like(x, jnp.nan), 0.0)
    np.testing.assert_allclose(same(jnp.zeros(2), jnp.zeros(2)), 1.0)
