"""Samplers on data whose perfect denoiser is known in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.sampler import Predict, Sampler, guided, reverse_step, sample, sample_until, sampling_timesteps
from jdcl_jax.diffusion.schedule import Schedule, alpha_bars, make_schedule
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


# -- the variance of ancestral steps

LINEAR, COSINE = alpha_bars("linear", 1000), alpha_bars("cosine", 4000)


def both(prediction: jax.Array, v: float | jax.Array) -> jax.Array:
    return jnp.concatenate([prediction, jnp.broadcast_to(jnp.asarray(v, prediction.dtype), prediction.shape)], axis=-1)


def betas(ab: np.ndarray, t: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta, beta~ and the share of x_0 in the posterior's mean, of a step from alpha_bar[t] to `before`."""
    beta = 1 - ab[t] / before
    return beta, beta * (1 - before) / (1 - ab[t]), np.sqrt(before) * beta / (1 - ab[t])


step = functools.partial(jax.jit, static_argnums=0)(reverse_step)


def arrays(n: int, *shape: int, number: int = 3) -> list[jax.Array]:
    return list(jax.random.normal(jax.random.key(n), (number, *shape)))


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("places", [(300, 200), (999, 983), (15, 0)])
def test_a_step_adds_the_noise_that_the_network_says_for_every_pixel(kind: str, places: tuple[int, int]) -> None:
    """Log sigma^2 = f log beta + (1 - f) log beta~ around the mean of fixed_small, f = (v + 1) / 2, v unconstrained."""
    x_t, said, noise = arrays(0, 4, 3, 3, 2)
    v = jax.random.uniform(jax.random.key(1), x_t.shape, minval=-1.5, maxval=1.5)
    now, before = (np.float64(LINEAR[t]) for t in places)
    beta, small, _ = betas(LINEAR, np.array(places[0]), before)
    f = (np.asarray(v, np.float64) + 1) / 2
    sigma = np.exp(0.5 * (f * np.log(beta) + (1 - f) * np.log(small)))
    now, before = jnp.float32(now), jnp.float32(before)
    mean = step(Sampler("ddpm", prediction=kind), said, x_t, now, before, jnp.zeros_like(noise))
    got = step(Sampler("ddpm", prediction=kind, variance="learned"), both(said, v), x_t, now, before, noise)
    np.testing.assert_allclose(got, mean + sigma * noise, rtol=2e-3, atol=2e-5)
    large = step(Sampler("ddpm", prediction=kind, variance="fixed_large"), said, x_t, now, before, noise)
    np.testing.assert_allclose(large, mean + np.sqrt(beta) * noise, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_ends_of_the_learned_variance_are_the_fixed_ones(variance: str) -> None:
    x_t, said, noise = arrays(1, 3, 4, 4, 1)
    now, before = jnp.array([0.0, 0.3, 0.9]), jnp.array([0.1, 0.6, 1.0])  # a step from pure noise, and a last one
    learned = both(said, {"fixed_small": -1.0, "fixed_large": 1.0}[variance])
    wanted = step(Sampler("ddpm", variance=variance), said, x_t, now, before, noise)
    got = step(Sampler("ddpm", variance="learned"), learned, x_t, now, before, noise)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_the_last_step_adds_no_noise_and_ends_at_the_predicted_image(variance: str) -> None:
    x_t, said, noise = arrays(2, 3, 4, 4, 1)
    said = jnp.tanh(said)
    output = both(said, 1.0) if variance == "learned" else said
    sampler = Sampler("ddpm", prediction="x0", variance=variance)
    got = step(sampler, output, x_t, jnp.float32(0.7), jnp.float32(1.0), 100.0 * noise)
    np.testing.assert_allclose(got, said, rtol=1e-5, atol=1e-6)


def test_the_variance_is_that_of_the_posterior_unless_said_otherwise() -> None:
    x_t, said, noise = arrays(3, 2, 2, 2, 1)
    plain = step(Sampler("ddpm"), said, x_t, jnp.float32(0.3), jnp.float32(0.6), noise)
    named = step(Sampler("ddpm", variance="fixed_small"), said, x_t, jnp.float32(0.3), jnp.float32(0.6), noise)
    np.testing.assert_array_equal(plain, named)
    mean = step(Sampler("ddpm"), said, x_t, jnp.float32(0.3), jnp.float32(0.6), 0 * noise)
    np.testing.assert_allclose(plain - mean, np.sqrt(0.5 * 0.4 / 0.7) * noise, rtol=1e-5, atol=1e-6)


def gaussian(ab: np.ndarray, spread: float, steps: int) -> Predict:
    """What is optimal for x_0 ~ N(0, spread^2) in a chain of so many steps: E[eps | x_t], and the true variance."""
    visited = sampling_timesteps(len(ab), steps)
    before = np.append(ab[visited[1:]], 1.0)
    beta, small, from_x0 = betas(ab, visited, before)
    left = spread**2 * (1 - ab[visited]) / (ab[visited] * spread**2 + 1 - ab[visited])  # of x_0's variance, given x_t
    with np.errstate(divide="ignore", invalid="ignore"):
        f = np.log((small + from_x0**2 * left) / small) / np.log(beta / small)
    table = jnp.zeros(len(ab)).at[visited].set(np.nan_to_num(2 * f - 1))

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        alpha_bar = jnp.asarray(ab, jnp.float32)[t][:, None, None, None]
        eps = jnp.sqrt(1 - alpha_bar) * x_t / (alpha_bar * spread**2 + 1 - alpha_bar)
        return both(eps, table[t][:, None, None, None])

    return predict


@pytest.mark.parametrize("spread", [0.5, 0.9])
def test_a_short_chain_with_the_true_variance_draws_gaussian_data_exactly(spread: float) -> None:
    """The chain of 5 steps is respaced: both beta and beta~ are its own. The fixed variances miss on either side."""
    ab, steps = COSINE, 5
    last = ab[sampling_timesteps(len(ab), steps)[-1]]
    wanted = spread * math.sqrt(last * spread**2 / (last * spread**2 + 1 - last))  # of E[x_0 | x_t] at the last of them
    keys = example_keys(jax.random.key(0), jnp.arange(512))
    found = {}
    for variance in ("fixed_small", "fixed_large", "learned"):
        sampler = Sampler("ddpm", steps, clip=False, variance=variance)

        def predict(x_t: jax.Array, t: jax.Array, variance: str = variance) -> jax.Array:
            output = gaussian(ab, spread, steps)(x_t, t)
            return output if variance == "learned" else output[..., :1]

        draw = jax.jit(
            lambda predict=predict, sampler=sampler: sample(
                predict, Schedule(jnp.asarray(ab, jnp.float32)), sampler, keys, (6, 6, 1)
            )
        )
        found[variance], path = draw()
        assert path.output.shape == (5, 512, 6, 6, 1)
    spreads = {name: float(jnp.std(images)) for name, images in found.items()}
    assert spreads["learned"] == pytest.approx(wanted, rel=0.02)
    assert spreads["fixed_small"] < wanted * 0.95
    assert spreads["fixed_large"] > wanted * 1.02


def test_the_trajectory_holds_the_prediction_alone() -> None:
    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return both(0.8 * x_t, 0.3)

    keys = example_keys(jax.random.key(0), jnp.arange(4))
    _, path = sample(predict, make_schedule(), Sampler("ddpm", 3, variance="learned"), keys, (2, 3, 2))
    np.testing.assert_allclose(path.output, 0.8 * path.x_t, rtol=1e-6)


def test_ddim_reads_the_prediction_alone() -> None:
    keys, schedule = example_keys(jax.random.key(0), jnp.arange(4)), make_schedule()
    images, _ = sample(lambda x, t: 0.8 * x, schedule, Sampler("ddim", 3, eta=0.5), keys, (2, 3, 2))
    learned = Sampler("ddim", 3, eta=0.5, variance="learned")
    np.testing.assert_allclose(sample(lambda x, t: both(0.8 * x, 0.3), schedule, learned, keys, (2, 3, 2))[0], images)
    until = functools.partial(sample_until, schedule=schedule, keys=keys, shape=(2, 3, 2), last=jnp.full(4, 300))
    np.testing.assert_allclose(
        until(lambda x, t: both(0.8 * x, 0.3), sampler=Sampler("ddim", 3, variance="learned")),
        until(lambda x, t: 0.8 * x, sampler=Sampler("ddim", 3)),
    )


def test_guidance_without_a_classifier_keeps_the_conditional_variance() -> None:
    def conditional(x: jax.Array, t: jax.Array) -> jax.Array:
        return both(x + 1.0, 0.25)

    def unconditional(x: jax.Array, t: jax.Array) -> jax.Array:
        return both(x, 9.0)

    x, t = jnp.zeros((2, 2, 2, 1)), jnp.zeros(2, jnp.int32)
    output = guided(conditional, unconditional, 3.0, "learned")(x, t)
    np.testing.assert_allclose(output[..., 0], 4.0)
    np.testing.assert_allclose(output[..., 1], 0.25)
    np.testing.assert_allclose(guided(conditional, unconditional, 0.0, "learned")(x, t), both(x + 1.0, 0.25))


def test_what_a_sampler_cannot_do_with_a_variance() -> None:
    x, keys = jnp.zeros((1, 2, 2, 2)), example_keys(jax.random.key(0), jnp.arange(2))
    with pytest.raises(ValueError, match="unknown variance 'large'; one of"):
        reverse_step(Sampler("ddpm", variance="large"), x, x, jnp.float32(0.5), jnp.float32(0.6), x)
    with pytest.raises(ValueError, match="eta"):
        reverse_step(Sampler("ddim", variance="fixed_large"), x, x, jnp.float32(0.5), jnp.float32(0.6), x)
    with pytest.raises(ValueError, match="says 4 channels"):
        sample(lambda x, t: x, make_schedule(), Sampler("ddpm", 2, variance="learned"), keys, (2, 2, 2))


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_ancestral_steps_equal_those_of_diffusers(kind: str, variance: str) -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        timestep_spacing="trailing",
        clip_sample=True,
        prediction_type={"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[kind],
        variance_type=variance,
    )
    theirs.set_timesteps(20)
    ours = Sampler("ddpm", 20, prediction=kind, variance=variance.removesuffix("_range"))
    visited = sampling_timesteps(1000, 20)
    for index in (0, 7, 18):
        t, following = visited[index], visited[index + 1]
        x_t, said, v = (np.array(a) for a in arrays(index, 2, 5, 5, 3))
        said = np.concatenate([said, v], axis=-1) if variance == "learned_range" else said
        noise = torch.randn((2, 3, 5, 5), generator=torch.Generator().manual_seed(7)).numpy().transpose(0, 2, 3, 1)
        wanted = theirs.step(
            torch.from_numpy(said.transpose(0, 3, 1, 2).copy()),
            int(t),
            torch.from_numpy(x_t.transpose(0, 3, 1, 2).copy()),
            generator=torch.Generator().manual_seed(7),
        ).prev_sample.numpy()
        got = step(ours, said, x_t, jnp.float32(LINEAR[t]), jnp.float32(LINEAR[following]), noise)
        np.testing.assert_allclose(got, wanted.transpose(0, 2, 3, 1), atol=2e-4, err_msg=f"t={t}")
