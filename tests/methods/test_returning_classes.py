"""Methods where classes come again in later tasks: who was seen, how much is stored, and who shares a buffer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.methods.buffer import empty_buffer, fill
from jdcl_jax.methods.method import Learned, Setup
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.methods.stored_replay import store_capacity, store_size
from jdcl_jax.methods.teacher import start_labels
from jdcl_jax.training.state import Context

GROUPS = ((3, 1), (1, 0, 3), (0, 5, 1))
LABELS = np.concatenate([np.resize(group, 20) for group in GROUPS]).astype(np.int32)


@pytest.fixture
def returning(setup: Setup) -> Setup:
    return dataclasses.replace(setup, groups=GROUPS, labels=LABELS)


def test_seen_classes_are_each_there_once_in_the_order_in_which_they_came(returning: Setup) -> None:
    assert [returning.seen_classes(task) for task in (-1, 0, 1, 2)] == [(), (3, 1), (3, 1, 0), (3, 1, 0, 5)]
    assert returning.classes_return


def test_classes_of_one_task_each_do_not_return(setup: Setup) -> None:
    assert setup.seen_classes(1) == (3, 1, 0, 2)
    assert not setup.classes_return


def test_a_teacher_is_asked_for_every_old_class_equally_often(returning: Setup) -> None:
    method = make_method("gr", dataclasses.replace(returning, num_classes=6), default_options("gr"))
    shapes = set()
    for task, old in ((1, (3, 1)), (2, (3, 1, 0))):
        arrays = method.context(method.init_memory({}), task)
        shapes.add(arrays["old"]["classes"].shape)
        context = Context(named_key(0, "x"), None, jax.tree.map(jnp.asarray, arrays))
        labels = np.asarray(start_labels(context, example_keys(named_key(0, "y"), np.arange(6000))))
        counts = np.bincount(labels, minlength=6)
        assert set(np.flatnonzero(counts).tolist()) == set(old)
        assert np.all(np.abs(counts[list(old)] - 6000 / len(old)) < 200)
    assert len(shapes) == 1


def test_stored_samples_are_so_many_for_each_old_class(returning: Setup) -> None:
    assert [store_size(returning, 10, task) for task in range(3)] == [0, 20, 30]
    assert store_capacity(returning, 10) == 32, "30 in whole batches of 8"


def test_a_balanced_buffer_shares_a_class_between_the_tasks_that_it_came_in() -> None:
    labels, tasks = np.tile(np.repeat([0, 1], 10), 3).astype(np.int32), np.repeat([0, 1, 2], 20)
    buffer, wanted = empty_buffer(12), ([6], [3, 3], [2, 2, 2])
    for task in range(3):
        rows = np.arange(20 * task, 20 * task + 20, dtype=np.int32)
        generator = np.random.default_rng(task)
        buffer = fill(buffer, rows, labels, tasks, policy="class_balanced", generator=generator)
        kept = buffer["rows"][: buffer["count"]]
        assert len(set(kept.tolist())) == 12
        for c in (0, 1):
            assert np.bincount(tasks[kept[labels[kept] == c]]).tolist() == wanted[task]


def test_a_buffer_that_does_not_come_out_even_gives_the_first_task_more() -> None:
    labels, tasks = np.zeros(20, np.int32), np.repeat([0, 1], 10)
    buffer = empty_buffer(5)
    for rows in np.arange(20, dtype=np.int32).reshape(2, 10):
        buffer = fill(buffer, rows, labels, tasks, policy="class_balanced", generator=np.random.default_rng(0))
    assert np.bincount(tasks[buffer["rows"]]).tolist() == [3, 2]


def test_experience_replay_keeps_every_session_of_a_class(returning: Setup) -> None:
    method = make_method("er", returning, {**default_options("er"), "buffer_size": 24})
    memory = method.init_memory({})
    for task in range(3):
        memory = method.end_task(memory, Learned({}, {}), task)
    rows = method.kept_rows(memory)
    found = np.stack([LABELS[rows], rows // 20], axis=1).tolist()
    # 24 for classes 3, 1, 0 and 5: six each. Class 1 came in three tasks, 3 and 0 in two, 5 in the last.
    expected = {(1, 0): 2, (1, 1): 2, (1, 2): 2, (3, 0): 3, (3, 1): 3, (0, 1): 3, (0, 2): 3, (5, 2): 6}
    assert {(c, t): found.count([c, t]) for c, t in expected} == expected
    assert len(found) == 24


def test_a_buffer_needs_room_for_one_image_of_every_class_and_no_more(returning: Setup) -> None:
    make_method("er", returning, {**default_options("er"), "buffer_size": 4})
    with pytest.raises(UserError, match="less than one per class; write at least 4"):
        make_method("er", returning, {**default_options("er"), "buffer_size": 3})


def test_jdcl_refuses_classes_that_return_and_takes_those_that_do_not(returning: Setup, classifying: Setup) -> None:
    again = dataclasses.replace(classifying, groups=GROUPS, labels=LABELS)
    with pytest.raises(UserError, match=r"and here classes come again in later tasks; write tasks\.domain="):
        make_method("jdcl", again, default_options("jdcl"))
    make_method("jdcl", classifying, default_options("jdcl"))
