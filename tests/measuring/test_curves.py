"""Errors at every timestep: the same noise for every network, the right images, the right sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.assembly import assemble
from jdcl_jax.data.arrays import Split
from jdcl_jax.diffusion.likelihood import VARIANCES, bits_per_dim_terms, make_bound
from jdcl_jax.diffusion.schedule import alpha_bars
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.curves import EVERY_IMAGE_AT, Curves, DenoiserMeter, spread
from jdcl_jax.measuring.evaluator import Evaluator
from jdcl_jax.training.parallel import Parallel

T = 12


def scaled(params, x_t, t, labels, keys):
    del t, labels, keys
    return params["w"] * x_t


@pytest.fixture(scope="module")
def parts(tiny_config):
    """A tiny run whose denoiser is one multiplication, with 12 timesteps."""
    words = ("er", f"diffusion.timesteps={T}", "evaluation.likelihood.images=3", "method.buffer_size=30")
    found = assemble(tiny_config(*words))
    return dataclasses.replace(found, setup=dataclasses.replace(found.setup, apply=scaled))


def meter_of(parts, *, batch_size: int = 1000, mode: str = "pmap", devices=None) -> DenoiserMeter:
    with parts.config.unlocked():
        parts.config.evaluation.likelihood.batch_size = batch_size
    return DenoiserMeter(parts, Parallel(mode, devices))


def curves_of(parts, w: float, task: int = 1, **how) -> Curves:
    return meter_of(parts, **how).curves({"w": jnp.float32(w)}, task, lambda done: None)


def noise(parts, name: str, image: int, t: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.fold_in(named_key(0, "curves", name), image), t)
    return np.asarray(jax.random.normal(key, parts.setup.image_shape), np.float64)


def test_every_entry_is_the_error_at_its_task_and_timestep(parts) -> None:
    found = curves_of(parts, 0.7)
    alpha_bar = np.asarray(parts.setup.schedule.alpha_bar, np.float64)
    for task in range(2):
        images = spread(parts.sequence.test.task(task), 3).images / 127.5 - 1.0
        for t in range(T):
            eps = np.stack([noise(parts, f"task {task}", i, t) for i in range(3)])
            x_t = np.sqrt(alpha_bar[t]) * images + np.sqrt(1 - alpha_bar[t]) * eps
            assert found.eps_mse[task, t] == pytest.approx(np.mean((0.7 * x_t - eps) ** 2), rel=1e-4)


def test_bits_are_those_of_each_variance_on_the_same_noise(parts) -> None:
    found = curves_of(parts, 0.7, task=0)
    diffusion = parts.config.diffusion
    exact = alpha_bars(
        diffusion.schedule,
        T,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        zero_snr=diffusion.zero_snr,
    )
    images = jnp.asarray(spread(parts.sequence.test.task(0), 3).images / 127.5 - 1.0, jnp.float32)
    for variance in VARIANCES:
        for t in (0, 1, 7, T - 1):
            eps = jnp.asarray(np.stack([noise(parts, "task 0", i, t) for i in range(3)]), jnp.float32)
            alpha_bar = parts.setup.schedule.alpha_bar[t]
            x_t = jnp.sqrt(alpha_bar) * images + jnp.sqrt(1 - alpha_bar) * eps
            at = jnp.full(3, t)
            bits = bits_per_dim_terms(make_bound(exact, variance), "eps", 0.7 * x_t, images, x_t, at, clip=True)
            assert found.bits[variance][0, t] == pytest.approx(float(jnp.mean(bits)), rel=1e-4)


def test_two_networks_see_the_same_noise(parts) -> None:
    """The error of w x_t is a parabola in w only if the noise does not change with the network."""
    zero, half, one, two = (curves_of(parts, w).eps_mse for w in (0.0, 0.5, 1.0, 2.0))
    np.testing.assert_allclose(two[:2], (3 * zero - 8 * half + 6 * one)[:2], rtol=1e-3)
    np.testing.assert_array_equal(zero, curves_of(parts, 0.0).eps_mse)


@pytest.mark.parametrize("how", [{"batch_size": 7}, {"mode": "jit"}, {"devices": "one"}])
def test_batches_and_devices_change_nothing(parts, how) -> None:
    if how.get("devices"):
        how = {"devices": jax.local_devices()[:1]}
    plain, other = curves_of(parts, 0.7), curves_of(parts, 0.7, **how)
    np.testing.assert_allclose(plain.eps_mse, other.eps_mse, rtol=1e-5)
    np.testing.assert_allclose(plain.bits["fixed_large"], other.bits["fixed_large"], rtol=1e-5)


def test_tasks_not_seen_are_unknown(parts) -> None:
    found = curves_of(parts, 0.7, task=1)
    assert np.isfinite(found.eps_mse[:2]).all()
    assert np.isnan(found.eps_mse[2]).all()
    assert np.isnan(found.prior_bits[2])
    assert found.arrays()["eps_mse"].shape == (3, T)


def test_bits_per_dim_is_the_whole_sum_and_the_union_weighs_tasks_by_their_images() -> None:
    bits = {v: np.array([[1, 2, 4], [1, 1, 1], [np.nan] * 3], np.float32) for v in VARIANCES}
    curves = Curves(np.array([[3, 3, 6], [1, 1, 1], [np.nan] * 3]), bits, np.array([0.5, 0.25, np.nan]), 2)
    row, union, images = curves.measured(np.array([30, 1, 50]))["bpd_fixed_small"]
    assert images.tolist() == [2, 1, 2]
    assert row[:2].tolist() == [7.5, 3.25]
    assert np.isnan(row[2])
    assert union == pytest.approx((30 * 7.5 + 3.25) / 31)
    assert curves.measured(np.array([30, 1, 50]))["eps_mse"][0][:2].tolist() == [4.0, 1.0]


def test_the_mean_error_is_over_evenly_spaced_timesteps(parts) -> None:
    split = parts.sequence.validation.task(0)
    found = meter_of(parts).error({"w": jnp.float32(0.0)}, split, "some")
    at = np.linspace(0, T - 1, EVERY_IMAGE_AT).round().astype(int)
    by_hand = np.mean([np.mean(noise(parts, "some", i, t) ** 2) for i in range(len(split)) for t in at])
    assert found == pytest.approx(by_hand, rel=1e-5)
    assert meter_of(parts).error({"w": jnp.float32(0.0)}, Split(split.images[:0], split.labels[:0]), "none") is None


def test_spread_keeps_few_images_and_takes_many_evenly() -> None:
    split = Split(np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10, dtype=np.int32))
    assert spread(split, 10) is split
    assert spread(split, 4).labels.tolist() == [0, 3, 6, 9]


def test_memorising_shows_as_buffer_against_held_out_images_of_old_tasks(parts, monkeypatch) -> None:
    """The buffer's images of the current task are no old ones, and held-out ones were never trained on."""
    asked = {}
    monkeypatch.setattr(
        DenoiserMeter, "error", lambda self, params, split, name: asked.update({name: split}) or float(len(split))
    )
    evaluator = object.__new__(Evaluator)
    evaluator._parts, evaluator._meter = parts, object.__new__(DenoiserMeter)
    setup, rows = parts.setup, np.array([0, 5, parts.setup.start(1) + 2, parts.setup.start(2) + 1], np.int32)
    memory = {"buffer": {"rows": np.append(rows, 0).astype(np.int32), "count": np.int32(4)}}
    found = evaluator._errors({}, memory, 1)
    assert set(found) == {"validation", "buffer", "held_out"}
    np.testing.assert_array_equal(asked["buffer"].images, parts.sequence.train.images[[0, 5]])
    np.testing.assert_array_equal(asked["held_out"].images, parts.sequence.validation.task(0).images)
    assert set(asked["validation"].labels) == {c for group in setup.groups[:2] for c in group}
    assert set(evaluator._errors({}, memory, 0)) == {"validation"}
