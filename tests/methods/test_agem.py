"""A-GEM (arXiv 1812.00420): a step on the current batch does not raise the loss on the buffer, to first order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key, subkeys
from jdcl_jax.methods.method import Learned, Setup
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.gradients import across

LEARNED = Learned({}, {})
PARAMS = {"w": jnp.float32(0.7), "b": jnp.float32(0.3)}


def affine(params, x_t, t, labels, keys):
    """Says w x_t + b: the gradient of the MSE is 2 E[(w x_t + b - eps) (x_t, 1)]."""
    del t, labels, keys
    return params["w"] * x_t + params["b"]


@pytest.fixture
def affine_setup(setup: Setup) -> Setup:
    return dataclasses.replace(setup, apply=affine)


def agem(setup: Setup, **options):
    return make_method("agem", setup, {**default_options("agem"), "buffer_size": 12, **options})


def half(name: str, level: float, n: int = 8) -> Examples:
    """Images of one brightness."""
    keys = example_keys(named_key(1, name), jnp.arange(n))
    return Examples(jnp.full((n, 4, 4, 1), level), jnp.zeros(n, jnp.int32), keys)


def slopes(setup: Setup, examples: Examples, params=None) -> tuple[float, np.ndarray]:
    """The MSE on examples and its gradient in (w, b), by hand, float64."""
    w, b = (float((params or PARAMS)[name]) for name in "wb")
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(subkeys(examples.key, "t"))
    noise = jax.vmap(lambda key: jax.random.normal(key, setup.image_shape))(subkeys(examples.key, "eps"))
    eps, alpha_bar = np.asarray(noise, np.float64), np.asarray(setup.schedule.alpha_bar, np.float64)[np.asarray(t)]
    alpha_bar = alpha_bar[:, None, None, None]
    x_t = np.sqrt(alpha_bar) * np.asarray(examples.image) + np.sqrt(1 - alpha_bar) * eps
    error = w * x_t + b - eps
    return float(np.mean(error**2)), 2 * np.array([np.mean(error * x_t), np.mean(error)])


def gradient_of(setup: Setup, batch) -> tuple[np.ndarray, dict[str, float]]:
    (phase,) = agem(setup).phases(1)
    assert phase.loss is None
    got, metrics = phase.descent(PARAMS, batch, None, across(None))
    return np.array([got["w"], got["b"]], np.float64), {name: float(value) for name, value in metrics.items()}


def test_the_current_gradient_is_projected_where_the_buffer_objects(affine_setup) -> None:
    batch = {"current": half("a", -1.0), "buffer": half("b", 1.0)}
    (current, g), (old, r) = (slopes(affine_setup, batch[name]) for name in ("current", "buffer"))
    assert g @ r < -0.05
    got, metrics = gradient_of(affine_setup, batch)
    np.testing.assert_allclose(got, g - (g @ r) / (r @ r) * r, atol=1e-5)
    assert abs(got @ r) < 1e-5
    assert np.linalg.norm(got - g) > 0.05
    assert metrics == {
        "loss": pytest.approx(current, rel=1e-5),
        "loss_current": pytest.approx(current, rel=1e-5),
        "loss_buffer": pytest.approx(old, rel=1e-5),
        "conflict": 1.0,
    }
    step = 1e-4  # and to first order the loss on the buffer does not rise
    moved = dict(zip("wb", np.array([PARAMS["w"], PARAMS["b"]]) - step * got, strict=True))
    straight = dict(zip("wb", np.array([PARAMS["w"], PARAMS["b"]]) - step * g, strict=True))
    assert slopes(affine_setup, batch["buffer"], moved)[0] - old < 1e-2 * step
    assert slopes(affine_setup, batch["buffer"], straight)[0] - old > 4e-2 * step


def test_without_conflict_it_is_plain_training(affine_setup) -> None:
    batch = {"current": half("a", 1.0), "buffer": half("b", 1.0)}
    (current, g), (old, r) = (slopes(affine_setup, batch[name]) for name in ("current", "buffer"))
    assert g @ r > 0.05
    got, metrics = gradient_of(affine_setup, batch)
    np.testing.assert_allclose(got, g, atol=1e-5)
    assert (metrics["loss"], metrics["loss_buffer"]) == (pytest.approx(current), pytest.approx(old))
    assert metrics["conflict"] == 0.0


def test_the_first_task_is_trained_plainly_and_later_ones_cost_twice_as_much(affine_setup) -> None:
    method = agem(affine_setup)
    (first,), (second,) = method.phases(0), method.phases(1)
    assert (set(first.streams), first.passes, first.steps) == ({"current"}, 3, 30)
    assert first.loss is not None
    sizes = {name: stream.batch_size for name, stream in second.streams.items()}
    assert (sizes, second.passes, second.steps) == ({"current": 8, "buffer": 8}, 6, 30)


def test_the_buffer_fills_up_by_the_task_that_ended(setup) -> None:
    method = agem(setup)
    memory = method.end_task(method.init_memory({}), LEARNED, 0)
    assert set(setup.labels[method.kept_rows(memory)].tolist()) == {3, 1}
    assert method.context(memory, 1)["buffer"] is memory["buffer"]
    memory = method.end_task(memory, LEARNED, 1)
    assert set(setup.labels[method.kept_rows(memory)].tolist()) == {3, 1, 0, 2}


@pytest.mark.parametrize("options", [{"buffer_size": 5}, {"buffer_policy": "ring"}])
def test_impossible_options_are_refused(setup, options) -> None:
    with pytest.raises(UserError, match=next(iter(options))) as error:
        agem(setup, **options)
    assert "\n" not in str(error.value)
