"""How many steps a task has: as many as are asked for, or as many as its data holds; and what trains a solver."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.assembly import assemble, chain_steps, phase_optimizer, task_steps
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


# -- a solver: a classifier that is a network of its own

SOLVING = ("guide", "classifier.kind=solver", "method.guided_images=16", "method.replay_steps=3", "sampler.steps=3")


def test_a_solver_trains_as_long_as_it_is_told_or_else_as_the_denoiser(tiny_config) -> None:
    assert assemble(tiny_config(*SOLVING, "solver.steps=12")).setup.solver.steps == (12, 12, 12)
    parts = assemble(tiny_config(*SOLVING, "solver.steps=0", "train.epochs=2"))
    assert parts.setup.solver.steps == parts.setup.steps != (4, 4, 4)


def test_the_solvers_schedule_spans_its_own_steps_of_a_task_and_not_the_draws_between_them(tiny_config) -> None:
    parts = assemble(tiny_config(*SOLVING, "solver.steps=12", "method.every=5"))
    phases = list(parts.method.phases(1))
    spans = {place: chain_steps(phases, place) for place, phase in enumerate(phases) if phase.network == "solver"}
    assert [phases[place].steps for place in spans] == [5, 5, 2]
    assert set(spans.values()) == {12}


def test_the_solvers_optimiser_is_sgd_with_momentum_down_a_cosine(tiny_config) -> None:
    """By hand: v <- m v + (g + d w), w <- w - r v."""
    words = ("solver.learning_rate=0.5", "solver.momentum=0.8", "solver.weight_decay=0.1", "solver.schedule=cosine")
    optimizer = phase_optimizer(assemble(tiny_config(*SOLVING, *words)), 4, "solver")
    w, v = 2.0, 0.0
    params = {"w": jnp.float32(w)}
    state = optimizer.init(params)
    for step, gradient in enumerate((1.0, -0.5, 0.25)):
        updates, state = optimizer.update({"w": jnp.float32(gradient)}, state, params)
        params = {"w": params["w"] + updates["w"]}
        v = 0.8 * v + gradient + 0.1 * w
        w -= 0.25 * (1 + np.cos(np.pi * step / 4)) * v
        assert float(params["w"]) == pytest.approx(w, rel=1e-5)


def test_what_a_solver_costs_is_counted_in_passes_of_the_denoiser(tiny_config) -> None:
    setup = assemble(tiny_config(*SOLVING, "solver.network=cnn")).setup
    assert setup.solver.passes > 0
    larger = assemble(tiny_config(*SOLVING, "solver.network=resnet32")).setup
    assert larger.solver.passes > 5 * setup.solver.passes
