"""Fine-tuning and joint training read the rows that they should; methods are found by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key
from jdcl_jax.methods.registry import default_options, known_methods, make_method
from jdcl_jax.training.state import Context


def rows_read(setup, name: str, task: int) -> set[int]:
    method = make_method(name, setup, default_options(name))
    (phase,) = method.phases(task)
    context = Context(named_key(0), None, method.context(method.init_memory({}), task))
    positions = jnp.arange(3 * 60)
    return set(np.asarray(phase.streams["current"].rows(context, named_key(1), positions)).tolist())


def test_fine_tuning_reads_the_current_task_only(setup) -> None:
    assert rows_read(setup, "finetune", 0) == set(range(20))
    assert rows_read(setup, "finetune", 2) == set(range(40, 60))


def test_joint_training_reads_all_tasks_so_far(setup) -> None:
    assert rows_read(setup, "joint", 0) == set(range(20))
    assert rows_read(setup, "joint", 1) == set(range(40))
    assert rows_read(setup, "joint", 2) == set(range(60))


def test_joint_training_matched_in_compute_makes_as_many_passes_as_distillation(setup) -> None:
    options = default_options("joint") | {"compute_matched": True, "teacher_steps": 2}
    joint = make_method("joint", setup, options)
    gd = make_method("gd", setup, default_options("gd"))
    for task in range(3):
        (a,), (b,) = joint.phases(task), gd.phases(task)
        assert a.passes * a.steps == b.passes * b.steps


def test_the_five_methods_are_found_and_an_unknown_one_is_corrected() -> None:
    assert {"finetune", "joint", "er", "gr", "gd"} <= set(known_methods())
    with pytest.raises(UserError, match="did you mean 'finetune'"):
        default_options("finetun")


def test_every_method_has_the_same_context_shapes_for_every_task(setup) -> None:
    for name in known_methods():
        method = make_method(name, setup, default_options(name))
        memory = method.init_memory({"w": jnp.zeros(3)})
        seen = []
        for task in range(3):
            context = method.context(memory, task)
            seen.append(str([(np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(context)]))
            memory = method.end_task(memory, {"w": jnp.zeros(3)}, task)
        assert len(set(seen)) == 1, name
