"""Schedules, visited timesteps and reverse steps equal those of diffusers' schedulers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.process import q_sample
from jdcl_jax.diffusion.sampler import Sampler, reverse_step, sample, sampling_timesteps
from jdcl_jax.diffusion.schedule import make_schedule

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SHAPE = (4, 6, 6, 3)
IMAGE = SHAPE[1:]


def scheduler(kind, steps, *, prediction="eps", zero_snr=True, schedule="linear"):
    options = {
        "num_train_timesteps": 1000,
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[schedule],
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing",
        "clip_sample": True,
        "prediction_type": PREDICTIONS[prediction],
    }
    theirs = {"ddim": diffusers.DDIMScheduler, "ddpm": diffusers.DDPMScheduler}[kind](**options)
    theirs.set_timesteps(steps)
    return theirs


def normal(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE, np.float32)


@functools.partial(jax.jit, static_argnums=0)
def step_back(sampler, output, x_t, before, after, noise):
    return reverse_step(sampler, output, x_t, before, after, noise)


def network(x, t):
    """A smooth stand-in that numpy, PyTorch and JAX arrays all pass through."""
    return 0.9 * x + 0.1 * x**2 / (1.0 + x**2) + t / 4000.0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_alpha_bar(schedule, zero_snr):
    theirs = scheduler("ddim", 10, zero_snr=zero_snr, schedule=schedule).alphas_cumprod.numpy()
    ours = np.asarray(make_schedule(schedule, 1000, zero_snr=zero_snr).alpha_bar)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert (ours[-1] == 0) == (theirs[-1] == 0) == zero_snr


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 30, 50, 250, 999, 1000])
def test_visited_timesteps(steps):
    expected = scheduler("ddim", steps).timesteps.numpy()
    np.testing.assert_array_equal(sampling_timesteps(1000, steps), expected[:steps])


def test_noising():
    schedule, theirs = make_schedule(), scheduler("ddpm", 1000, zero_snr=False)
    t = np.array([0, 3, 500, 999], np.int32)
    x_0, eps = np.clip(normal(0), -1, 1), normal(1)
    expected = theirs.add_noise(*map(torch.from_numpy, (x_0, eps, t.astype(np.int64))))
    np.testing.assert_allclose(q_sample(schedule, x_0, t, eps), expected, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_ddim_step(prediction, eta):
    steps = 10
    theirs = scheduler("ddim", steps, prediction=prediction)
    sampler = Sampler("ddim", steps, eta, prediction=prediction)
    alpha_bar = np.asarray(make_schedule(zero_snr=True).alpha_bar)
    for index, t in enumerate(sampling_timesteps(1000, steps)):
        x_t, output, noise = normal(3 * index), normal(3 * index + 1), normal(3 * index + 2)
        after = alpha_bar[t - 100] if t >= 100 else np.float32(1)
        expected = theirs.step(
            torch.from_numpy(output),
            int(t),
            torch.from_numpy(x_t),
            eta=eta,
            variance_noise=torch.from_numpy(noise) if eta else None,
        ).prev_sample
        ours = step_back(sampler, output, x_t, alpha_bar[t], after, noise)
        np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=f"t={t}")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [10, 1000])
def test_ddpm_steps(prediction, steps):
    theirs = scheduler("ddpm", steps, prediction=prediction)
    sampler = Sampler("ddpm", steps, prediction=prediction)
    alpha_bar = np.asarray(make_schedule(zero_snr=True).alpha_bar)
    visited = sampling_timesteps(1000, steps)
    for index in np.unique(np.linspace(0, steps - 1, 8).astype(int)):
        t, x_t, output = visited[index], normal(2 * index), normal(2 * index + 1)
        after = alpha_bar[visited[index + 1]] if index + 1 < steps else np.float32(1)
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)).numpy()
        expected = theirs.step(
            torch.from_numpy(output),
            int(t),
            torch.from_numpy(x_t),
            generator=torch.Generator().manual_seed(7),
        ).prev_sample
        ours = step_back(sampler, output, x_t, alpha_bar[t], after, noise)
        np.testing.assert_allclose(ours, expected, atol=1e-4, err_msg=f"t={t}")


@pytest.mark.parametrize("steps", [2, 20])
def test_a_whole_ddim_trajectory(steps):
    schedule = make_schedule(zero_snr=True)
    keys = jax.random.split(jax.random.key(0), SHAPE[0])

    def predict(x, t):
        return network(x, t[:, None, None, None].astype(jnp.float32))

    x_0, trajectory = sample(predict, schedule, Sampler("ddim", steps), keys, IMAGE)
    theirs = scheduler("ddim", steps)
    x = torch.from_numpy(np.array(trajectory.x_t[0]))
    for index, t in enumerate(theirs.timesteps):
        assert int(t) == int(trajectory.t[index])
        np.testing.assert_allclose(trajectory.x_t[index], x, atol=1e-3)
        x = theirs.step(network(x, float(t)), int(t), x).prev_sample
    np.testing.assert_allclose(x_0, x, atol=1e-3)
    assert np.isfinite(x_0).all() and np.abs(x_0).max() <= 1
