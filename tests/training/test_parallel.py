"""One device, two under pmap, two under jit, another number of steps per call: the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.assembly import RunArrays, assemble, phase_optimizer
from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key
from jdcl_jax.methods.method import DENOISER
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, create_state
from jdcl_jax.training.step import scan_steps, train_step

pytestmark = pytest.mark.end_to_end

WAYS = [("pmap", 1), ("pmap", 2), ("jit", 1), ("jit", 2)]
STEPS = 20


def devices(mode: str, count: int) -> Parallel:
    return Parallel(mode, jax.local_devices()[:count])


def test_two_devices_are_at_hand() -> None:
    assert len(jax.local_devices()) >= 2
    assert Parallel("pmap").count == len(jax.local_devices())


# -- the UNet under generative distillation


@pytest.fixture(scope="module")
def distil(tiny_config):
    """(mode, devices, steps a call) -> parameters and metrics after 20 steps of GD's second task."""
    config = tiny_config("gd", f"train.steps={STEPS}", "train.learning_rate=2e-4")
    parts = assemble(config)
    assert (config.train.optimizer, config.train.clip_norm) == ("adam", 1.0)
    arrays = jax.device_get(RunArrays(parts).initial())
    teacher = jax.tree.map(lambda leaf: leaf * 1.1, arrays["networks"][DENOISER].params)
    (phase,) = parts.method.phases(1)
    optimizer = phase_optimizer(parts, phase.steps)
    train = parts.sequence.train
    context = Context(
        named_key(0, "task", 1, phase.name), Pool(train.images, train.labels),
        parts.method.context({"teacher": teacher}, 1),
    )  # fmt: skip

    def go(mode: str, count: int, steps_per_call: int):
        parallel = devices(mode, count)

        def step(*args, axis_name=None):
            return train_step(
                *args, gradient=phase.descent, streams=phase.streams, optimizer=optimizer, ema=0.0, axis_name=axis_name
            )

        state, shared = parallel.replicate((arrays["networks"][DENOISER], context))
        ids = parallel.split({name: np.arange(8, dtype=np.int32) for name in phase.streams})
        call, _ = parallel.compile_step(scan_steps(step, steps_per_call), state, shared, ids, {})
        metrics = []
        for _ in range(STEPS // steps_per_call):
            state, values = call(state, shared, ids, {})
            metrics.append(jax.device_get(values))
        values = {name: np.concatenate([m[name] for m in metrics]) for name in metrics[0]}
        return jax.device_get(state.params), values

    return go


@pytest.fixture(scope="module")
def alone(distil):
    """One device, five steps a call."""
    return distil("pmap", 1, 5)


@pytest.mark.parametrize(("mode", "count", "steps_per_call"), [("pmap", 2, 10), ("jit", 2, 5)])
def test_training_is_the_same_however_it_is_spread(alone, distil, mode, count, steps_per_call) -> None:
    (params, metrics), (wanted, wanted_metrics) = distil(mode, count, steps_per_call), alone
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert len(leaves) > 50
    far = {
        jax.tree_util.keystr(path): float(np.abs(leaf - other).max())
        for (path, leaf), other in zip(leaves, jax.tree.leaves(wanted), strict=True)
    }
    assert {name: d for name, d in far.items() if d > 1e-5} == {}
    # Before clipping and Adam, which would hide a gradient that is twice too large.
    np.testing.assert_allclose(metrics["gradient_norm"], wanted_metrics["gradient_norm"], rtol=1e-3)
    for name in ("loss", "loss_current", "loss_replay"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-3)


def test_those_twenty_steps_went_somewhere(alone, tiny_config) -> None:
    """Or parameters that nobody moved would be equal too."""
    params, metrics = alone
    start = RunArrays(assemble(tiny_config("gd"))).initial()["networks"][DENOISER].params
    moved = [float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True)]
    assert np.median(moved) > 1e-3
    assert metrics["loss_replay"][0] > 0


# -- plain gradient descent, where nothing hides a gradient N times too large


@pytest.mark.parametrize("steps_per_call", [1, 4])
@pytest.mark.parametrize(("mode", "count"), WAYS)
def test_descent_is_the_one_worked_out_by_hand(regression, descended, mode, count, steps_per_call) -> None:
    parallel, optimizer = devices(mode, count), optax.sgd(0.05)
    state, context = parallel.replicate((create_state(regression.params, optimizer, ema=False), regression.context))
    ids = parallel.split(regression.ids)
    call, _ = parallel.compile_step(regression.scanned(optimizer, steps_per_call), state, context, ids, {})
    for _ in range(8 // steps_per_call):
        state, metrics = call(state, context, ids, {})
    wanted = descended(0.05, 8)
    for key in wanted:
        np.testing.assert_allclose(state.params[key], wanted[key], rtol=1e-5)
    loss, gradient = regression.gradient(descended(0.05, 7), 7)
    assert float(metrics["loss"][-1]) == pytest.approx(loss, rel=1e-4)
    assert float(metrics["gradient_norm"][-1]) == pytest.approx(
        float(np.sqrt(np.sum(gradient["w"] ** 2) + gradient["b"] ** 2)), rel=1e-4
    )
    assert float(metrics["mean_label"][-1]) == pytest.approx(regression.inputs(7)[1].mean())


@pytest.mark.parametrize(("mode", "count"), WAYS)
def test_a_penalty_counts_once_however_many_devices_there_are(regression, mode, count) -> None:
    """With 2 |w|^2 as the penalty, by hand; what is tracked is the gradient without it, of the whole batch."""
    parallel, optimizer = devices(mode, count), optax.sgd(0.02)
    params = {name: np.asarray(value, np.float64) for name, value in regression.params.items()}
    tracked = {name: np.zeros_like(value) for name, value in params.items()}
    for step in range(3):
        loss, gradient = regression.gradient(params, step)
        loss += 2 * np.sum(params["w"] ** 2)
        tracked = {name: tracked[name] + gradient[name] for name in params}
        gradient = {"w": gradient["w"] + 4 * params["w"], "b": gradient["b"]}
        params = {name: params[name] - 0.02 * gradient[name] for name in params}
    many = regression.scanned(
        optimizer, 3,
        penalty=lambda params, context: context.method["strength"] * jnp.sum(params["w"] ** 2),
        track=lambda tracked, gradient, update: jax.tree.map(jnp.add, tracked, gradient),
    )  # fmt: skip
    start = create_state(
        regression.params, optimizer, ema=False, tracked=jax.tree.map(jnp.zeros_like, regression.params)
    )
    context = dataclasses.replace(regression.context, method={"strength": np.float32(2.0)})
    start, context = parallel.replicate((start, context))
    ids = parallel.split(regression.ids)
    call, _ = parallel.compile_step(many, start, context, ids, {})
    state, metrics = call(start, context, ids, {})
    for name in params:
        np.testing.assert_allclose(state.params[name], params[name], rtol=1e-5)
        np.testing.assert_allclose(state.tracked[name], tracked[name], rtol=1e-5)
    assert float(metrics["loss"][-1]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_a_compiled_step_refuses_other_shapes_and_eats_the_state_it_is_given(regression, mode) -> None:
    parallel, optimizer = devices(mode, 2), optax.sgd(0.05)
    state, context = parallel.replicate((create_state(regression.params, optimizer, ema=False), regression.context))
    ids = parallel.split(regression.ids)
    call, seconds = parallel.compile_step(regression.scanned(optimizer, 2), state, context, ids, {})
    assert seconds > 0
    with pytest.raises(TypeError):
        call(state, context, parallel.split({"current": np.arange(16, dtype=np.int32)}), {})
    new, _ = call(state, context, ids, {})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, context)))


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_a_batch_that_the_devices_cannot_share_is_refused(mode) -> None:
    with pytest.raises(UserError, match="batch of 7 can't be shared by 2 devices"):
        devices(mode, 2).split({"current": np.arange(7)})


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="pmap, jit"):
        Parallel("vmap")


@pytest.mark.parametrize(("mode", "count"), WAYS)
def test_a_mapped_function_gives_its_results_back_whole_and_in_order(mode, count) -> None:
    parallel = devices(mode, count)
    shared = parallel.replicate(np.float32(3.0))
    split = parallel.split((np.arange(6, dtype=np.float32), None))
    call, _ = parallel.compile_map(lambda factor, parts: factor * parts[0], shared, split)
    np.testing.assert_array_equal(call(shared, split), 3.0 * np.arange(6))
