"""Samplers on data whose perfect denoiser is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.sampler import Sampler, guided, reverse_step, sample, sample_until, sampling_timesteps
from jdcl_jax.diffusion.schedule import Schedule, make_schedule
from jdcl_jax.keys import example_keys, example_normal, subkeys

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


# -- with the network's outputs, and chains that end before the image


def wavy(x_t: jax.Array, t: jax.Array) -> jax.Array:
    """A network whose output says which x_t and which t of each example it was given."""
    return 0.8 * x_t + 0.3 * jnp.sin(t / 100.0)[:, None, None, None]


def test_the_trajectory_holds_what_the_network_said_at_every_state() -> None:
    _, path = sample(wavy, ZERO_SNR, Sampler("ddim", 4), keys(5), SHAPE)
    assert path.output.shape == (4, 5, *SHAPE)
    for state, t, output in zip(path.x_t, path.t, path.output, strict=True):
        np.testing.assert_allclose(output, 0.8 * state + 0.3 * np.sin(int(t) / 100), atol=1e-6)


def ddim_by_hand(schedule: Schedule, x: np.ndarray, visited: list[int], clip: bool = True) -> tuple[np.ndarray, list]:
    """(the last predicted x_0, states) of `wavy` along `visited`, float64; no step is made after the last of them."""
    alpha_bar, states = np.asarray(schedule.alpha_bar, np.float64), []
    for t, following in zip(visited, [*visited[1:], None], strict=True):
        states.append(x)
        eps = 0.8 * x + 0.3 * np.sin(t / 100)
        x_0 = (x - np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(max(alpha_bar[t], 1e-8))
        x_0 = np.clip(x_0, -1, 1) if clip else x_0
        if following is None:
            return x_0, states
        x = np.sqrt(alpha_bar[following]) * x_0 + np.sqrt(1 - alpha_bar[following]) * eps
    raise AssertionError


def noise(n: int) -> np.ndarray:
    return np.asarray(example_normal(subkeys(keys(n), "x_T"), SHAPE), np.float64)


@pytest.mark.parametrize("stop_snr", [1.0, 0.05, 9.0])
def test_a_chain_stops_at_the_last_timestep_as_noisy_as_asked(stop_snr: float) -> None:
    """SNR <= s is alpha_bar <= s / (1 + s)."""
    sampler = Sampler("ddim", 20, stop_snr=stop_snr)
    kept = [t for t in range(999, 0, -50) if float(PLAIN.alpha_bar[t]) <= stop_snr / (1 + stop_snr)]
    assert 0 < len(kept) < 20
    assert sampler.visited(PLAIN).tolist() == kept
    x_0, path = sample(wavy, PLAIN, sampler, keys(4), SHAPE)
    wanted, states = ddim_by_hand(PLAIN, noise(4), kept)
    assert path.t.tolist() == kept
    np.testing.assert_allclose(path.x_t, states, atol=2e-5)
    np.testing.assert_allclose(x_0, wanted, atol=2e-5)


def test_a_threshold_is_met_by_the_timestep_that_lies_on_it() -> None:
    schedule = Schedule(jnp.array([0.9, 0.8, 0.5, 0.2]))
    assert Sampler("ddim", 4, stop_snr=1.0).visited(schedule).tolist() == [3, 2]
    assert Sampler("ddim", 4, stop_snr=0.99).visited(schedule).tolist() == [3]
    assert Sampler("ddim", 4, stop_snr=4.1).visited(schedule).tolist() == [3, 2, 1]


def test_without_a_threshold_all_timesteps_are_visited_and_with_an_unreachable_one_the_first() -> None:
    assert Sampler("ddim", 4).visited(PLAIN).tolist() == [999, 749, 499, 249]
    assert Sampler("ddim", 4, stop_snr=1e-9).visited(PLAIN).tolist() == [999]
    assert Sampler("ddim", 4, stop_snr=1e-9).visited(ZERO_SNR).tolist() == [999]
    x_0, _ = sample(wavy, PLAIN, Sampler("ddim", 4, stop_snr=1e-9), keys(2), SHAPE)
    np.testing.assert_allclose(x_0, ddim_by_hand(PLAIN, noise(2), [999])[0], atol=2e-5)


# -- chains that end at a timestep of each example's own

LAST = [999, 998, 997, 500, 499, 100, 1, 0]


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("schedule", [PLAIN, ZERO_SNR], ids=["plain", "zero_snr"])
def test_each_example_walks_in_equal_steps_to_a_timestep_of_its_own(schedule: Schedule, steps: int) -> None:
    got = sample_until(wavy, schedule, Sampler("ddim", steps), keys(8), SHAPE, jnp.array(LAST))
    for i, last in enumerate(LAST):
        visited = list(dict.fromkeys(999 - int(np.round((999 - last) * s / steps)) for s in range(steps + 1)))
        assert (visited[0], visited[-1]) == (999, last)
        _, states = ddim_by_hand(schedule, noise(8)[i], visited)
        np.testing.assert_allclose(got[i], states[-1], atol=5e-4 if schedule is ZERO_SNR else 2e-5)


def test_an_example_that_ends_where_it_begins_is_pure_noise() -> None:
    got = sample_until(wavy, ZERO_SNR, Sampler("ddim", 3), keys(4), SHAPE, jnp.full(4, 999))
    np.testing.assert_array_equal(got, example_normal(subkeys(keys(4), "x_T"), SHAPE))


def test_the_network_is_asked_once_a_step_at_equally_spaced_timesteps() -> None:
    asked = []

    def spying(x_t: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda now: asked.append(now.tolist()), t, ordered=True)
        return wavy(x_t, t)

    jax.block_until_ready(sample_until(spying, PLAIN, Sampler("ddim", 4), keys(3), SHAPE, jnp.array([999, 599, 0])))
    jax.effects_barrier()
    assert asked == [[999, 999, 999], [999, 899, 749], [999, 799, 499], [999, 699, 250]]


def test_a_noisy_chain_cannot_end_anywhere() -> None:
    for sampler in (Sampler("ddpm", 3), Sampler("ddim", 3, eta=0.5)):
        with pytest.raises(ValueError, match="eta 0"):
            sample_until(wavy, PLAIN, sampler, keys(1), SHAPE, jnp.zeros(1, jnp.int32))


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_a_step_back_takes_a_timestep_for_each_example(kind: str) -> None:
    x_t, output, fresh = (jax.random.normal(k, (3, *SHAPE)) for k in jax.random.split(jax.random.key(1), 3))
    now, before, sampler = jnp.array([0.1, 0.4, 0.7]), jnp.array([0.3, 0.5, 0.99]), Sampler(kind, clip=False)
    together = reverse_step(sampler, output, x_t, now, before, fresh)
    for i in range(3):
        one = slice(i, i + 1)
        alone = reverse_step(sampler, output[one], x_t[one], now[i], before[i], fresh[one])
        np.testing.assert_allclose(together[one], alone, atol=1e-6)
