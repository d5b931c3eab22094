"""How many steps a task has: as many as are asked for, or as many as its data holds."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.assembly import assemble, task_steps
from jdcl_jax.config import default_config
from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key
from jdcl_jax.training.state import Context, Range
from jdcl_jax.training.streams import Stream, range_rows, step_rows


def config_with(**train):
    config = default_config()
    config.train.update(train)
    return config


def test_steps_are_the_same_for_every_task_however_large() -> None:
    assert task_steps(config_with(steps=70, steps_per_call=10), [40, 5000, 3]) == (70, 70, 70)


def test_epochs_give_each_task_the_whole_calls_that_its_passes_hold() -> None:
    """One call of 5 steps of 8 reads 40 images."""
    config = config_with(epochs=1, batch_size=8, steps_per_call=5)
    assert task_steps(config, [40, 79, 80, 401]) == (5, 5, 10, 50)
    config = config_with(epochs=3, batch_size=8, steps_per_call=5)
    assert task_steps(config, [40, 79, 80, 14]) == (15, 25, 30, 5)


@pytest.mark.parametrize("size", [40, 45, 79, 100])
def test_a_single_pass_reads_no_row_twice(size: int) -> None:
    batch = 8
    (steps,) = task_steps(config_with(epochs=1, batch_size=batch, steps_per_call=1), [size])
    assert steps == size // batch
    stream = Stream(batch, rows=range_rows("current"))
    context = Context(named_key(0), None, {"current": Range(np.int32(100), np.int32(size))})
    read = [step_rows("current", stream, context, jnp.int32(step), jnp.arange(batch)) for step in range(steps)]
    rows = np.concatenate(read).tolist()
    assert len(rows) > size - batch
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(100, 100 + size))
    further = np.asarray(step_rows("current", stream, context, jnp.int32(steps), jnp.arange(batch)))
    assert not set(further.tolist()).isdisjoint(rows)  # one step more would


def test_a_task_too_small_for_one_call_is_refused() -> None:
    config = config_with(epochs=2, batch_size=16, steps_per_call=4)
    assert task_steps(config, [32, 100]) == (4, 12)
    with pytest.raises(UserError, match=r"2 passes over the 31 images of a task .* write train.steps_per_call=1") as e:
        task_steps(config, [100, 31])
    assert "\n" not in str(e.value)


def test_a_warm_up_longer_than_the_shortest_task_is_refused() -> None:
    config = config_with(epochs=1, batch_size=10, steps_per_call=1, warmup=5)
    assert task_steps(config, [60, 100]) == (6, 10)
    with pytest.raises(UserError, match=r"train.warmup=5 is not below the 5 steps"):
        task_steps(config, [59, 100])


def test_epochs_reach_the_phases_of_a_run(tiny_config) -> None:
    """Through `assemble`: every task's phase has its own number of steps."""
    parts = assemble(tiny_config("finetune", "train.epochs=2"))
    sizes = parts.setup.task_sizes
    wanted = [2 * size // (8 * 2) * 2 for size in sizes]
    assert len(set(sizes)) > 1
    assert parts.setup.steps == tuple(wanted)
    assert [parts.method.phases(task)[0].steps for task in range(3)] == wanted
