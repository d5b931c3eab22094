"""Buffers keep what they promise; the rehearsal coefficient weighs the buffer's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.methods.buffer import buffer_rows, empty_buffer, fill
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.state import Context

LABELS = np.repeat(np.arange(6, dtype=np.int32), 10)


def filled(policy: str, capacity: int, seed: int = 0, tasks: int = 3) -> dict:
    buffer = empty_buffer(capacity)
    for task in range(tasks):
        rows = np.arange(20 * task, 20 * (task + 1), dtype=np.int32)
        generator = np.random.default_rng([seed, task])
        buffer = fill(buffer, rows, LABELS, policy=policy, generator=generator)
    return buffer


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_a_buffer_keeps_its_shape_and_only_rows_that_were_offered_once(policy: str) -> None:
    for tasks in (1, 2, 3):
        buffer = filled(policy, 15, tasks=tasks)
        assert buffer["rows"].shape == (15,)
        kept = buffer["rows"][: buffer["count"]]
        assert len(set(kept.tolist())) == len(kept) == 15
        assert kept.max() < 20 * tasks
        assert buffer["offered"] == 20 * tasks


def test_a_reservoir_keeps_every_row_with_the_same_probability() -> None:
    counts = np.zeros(60)
    for seed in range(600):
        counts[filled("reservoir", 12, seed)["rows"]] += 1
    expected, spread = 600 * 12 / 60, np.sqrt(600 * 0.2 * 0.8)
    assert np.all(np.abs(counts - expected) < 4.5 * spread)
    by_task = counts.reshape(3, 20).sum(1)
    assert np.all(np.abs(by_task - 2400) < 150)


@pytest.mark.parametrize(("capacity", "wanted"), [(12, [2] * 6), (15, [3, 3, 3, 2, 2, 2])])
def test_a_balanced_buffer_shares_itself_between_the_classes(capacity: int, wanted: list[int]) -> None:
    buffer = filled("class_balanced", capacity)
    counts = np.bincount(LABELS[buffer["rows"]], minlength=6)
    assert sorted(counts.tolist(), reverse=True) == wanted


def test_a_buffer_larger_than_the_data_keeps_everything() -> None:
    buffer = filled("reservoir", 100, tasks=2)
    assert sorted(buffer["rows"][: buffer["count"]].tolist()) == list(range(40))
    assert int(buffer["count"]) == 40


def test_a_stream_reads_kept_rows_only_and_all_of_them() -> None:
    buffer = {"rows": jnp.array([7, 9, 11, 0]), "count": jnp.int32(3)}
    context = Context(key=named_key(0), pool=None, method={"buffer": buffer})
    rows = buffer_rows("buffer")(context, named_key(0, "stream"), jnp.arange(200))
    assert set(rows.tolist()) == {7, 9, 11}


def er(setup, **options):
    return make_method("er", setup, {**default_options("er"), "buffer_size": 12, **options})


def half(name: str) -> Examples:
    key = named_key(1, name)
    images = jax.random.uniform(key, (8, 4, 4, 1), minval=-1.0)
    return Examples(images, jnp.zeros(8, jnp.int32), example_keys(key, jnp.arange(8)))


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0])
def test_the_loss_is_current_plus_coefficient_times_buffer(setup, coefficient: float) -> None:
    method = er(setup, rehearsal_coefficient=coefficient)
    (phase,) = method.phases(1)
    batch = {"current": half("a"), "buffer": half("b")}
    loss, parts = phase.loss({"w": jnp.float32(0.5)}, batch, None)
    assert float(parts["loss_buffer"]) != pytest.approx(float(parts["loss_current"]), rel=1e-3)
    assert float(loss) == pytest.approx(float(parts["loss_current"]) + coefficient * float(parts["loss_buffer"]))
    (alone,) = method.phases(0)
    assert float(alone.loss({"w": jnp.float32(0.5)}, batch, None)[0]) == pytest.approx(float(parts["loss_current"]))


def test_the_buffer_grows_by_the_task_that_ended(setup) -> None:
    method = er(setup)
    memory = method.end_task(method.init_memory({}), {}, 0)
    kept = memory["buffer"]["rows"][: memory["buffer"]["count"]]
    assert set(setup.labels[kept]) == {3, 1}
    memory = method.end_task(memory, {}, 1)
    assert set(setup.labels[memory["buffer"]["rows"]]) == {3, 1, 0, 2}


@pytest.mark.parametrize("options", [{"buffer_size": 5}, {"buffer_policy": "fifo"}, {"rehearsal_coefficient": -0.1}])
def test_impossible_options_are_refused(setup, options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        er(setup, **options)
