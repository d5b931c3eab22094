"""Fine-tuning and joint training read the rows that they should; methods are found by name."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key
from jdcl_jax.methods.method import Learned
from jdcl_jax.methods.registry import default_options, known_methods, known_penalties, make_method
from jdcl_jax.training.state import Context, Pool, create_state
from jdcl_jax.training.step import observe_step, train_step


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


def test_it_is_matched_to_guided_distillation_too(setup) -> None:
    guided = dataclasses.replace(setup, num_classes=6, guidance=2.0, label_dropout=0.1, steps=(30, 30, 30))
    joint = make_method("joint", guided, default_options("joint") | {"compute_matched": True})
    gd = make_method("gd", guided, default_options("gd"))
    (a,), (b,) = joint.phases(1), gd.phases(1)
    assert a.passes * a.steps == b.passes * b.steps == 11 * 30  # 2 S + 7


@pytest.mark.parametrize("options", [{"teacher_steps": 5}, {"compute_matched": True, "teacher_steps": 0}])
def test_joint_training_has_no_teacher_steps_without_effect_and_no_negative_ones(setup, options) -> None:
    with pytest.raises(UserError, match=r"method\.teacher_steps"):
        make_method("joint", setup, default_options("joint") | options)


def test_all_methods_and_penalties_are_found_and_an_unknown_one_is_corrected() -> None:
    assert set(known_methods()) == {
        "finetune", "joint", "er", "agem", "gr", "gd", "trajectory", "lwf", "gaussian", "symmetric_gaussian", "jdcl",
        "continued", "gppdm", "ddgr", "guide",
    }  # fmt: skip
    assert set(known_penalties()) == {"l2", "ewc", "rank1_ewc", "si", "mas", "gpm"}
    with pytest.raises(UserError, match="did you mean 'finetune'"):
        default_options("finetun")


def names_to_try() -> list[str]:
    """Every method, every penalty, and some compositions; those that need a real network have tests of their own."""
    composed = ["ewc+gd", "rank1_ewc+gd", "l2+er", "mas+si+lwf", "ewc+l2+mas+rank1_ewc+si+gr"]
    apart = {"continued", "gppdm", "ddgr", "guide", "gpm"}
    return [*sorted(set(known_methods()) - apart), *sorted(set(known_penalties()) - apart), *composed]


def variants(name: str) -> list[dict]:
    """The default options, and those under which more is kept."""
    default = default_options(name)
    options = [default]
    if "replay" in default:
        options.append(default | {"replay": "stored", "stored_per_class": 3})
    if "quota" in default:
        few = {"quota": 3, "replay_batch": 4, "global_steps": 6, "replay_steps": 2, "class_delay": 2}
        options = [
            default | few | more for more in ({}, {"teacher": "last"}, {"local": False}, {"distillation": False})
        ]
    if "rank1_ewc" in default:
        options.append(default | {"rank1_ewc": {**default["rank1_ewc"], "form": "power", "rank": 3}})
    return options


def shapes(tree) -> str:
    return str([(np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(tree)]) + str(jax.tree.structure(tree))


def networks(setup, classifying, name: str) -> list:
    """Without a classifier and with one, as far as the method goes."""
    if name == "jdcl":
        return [classifying]
    return [setup] if {"ewc", "rank1_ewc", "mas"} & set(name.split("+")) else [setup, classifying]


@pytest.mark.parametrize("name", names_to_try())
def test_context_and_memory_have_the_same_shapes_for_every_task(setup, classifying, name: str) -> None:
    params = {"w": jnp.zeros(3), "b": {"c": jnp.zeros(())}}
    for network, options in itertools.product(networks(setup, classifying, name), variants(name)):
        method = make_method(name, network, options)
        memory = method.init_memory(params)
        contexts, memories = [], [shapes(memory)]
        for task in range(3):
            contexts.append(shapes(method.context(memory, task)))
            learned = Learned(params, params, method.init_tracked(params))
            for phase in method.phases(task)[:-1]:
                memory = method.end_phase(memory, learned, task, phase)
                contexts.append(shapes(method.context(memory, task)))
            memory = method.end_task(memory, learned, task)
            memories.append(shapes(memory))
        assert len(set(contexts)) == 1
        assert len(set(memories)) == 1


def traced(setup, method, task: int, phase) -> tuple[str, str]:
    """Shapes of the state before and after a step of a phase, traced and not run."""
    params, optimizer = {"w": jnp.float32(0.5)}, optax.sgd(0.1)
    state = create_state(params, optimizer, ema=False, tracked=method.init_tracked(params))
    pool = Pool(np.zeros((60, 4, 4, 1), np.uint8), setup.labels)
    context = Context(named_key(0), pool, method.context(method.init_memory(params), task))
    ids = {name: np.arange(stream.batch_size, dtype=np.int32) for name, stream in phase.streams.items()}
    if phase.observe is not None:
        step = functools.partial(observe_step, observe=phase.observe, streams=phase.streams)
    else:
        own = {"gradient": phase.descent, "penalty": phase.penalty, "track": phase.track}
        step = functools.partial(train_step, streams=phase.streams, optimizer=optimizer, ema=0.0, **own)
    after, _ = jax.eval_shape(step, state, context, ids, {})
    described = [str([(x.shape, x.dtype) for x in jax.tree.leaves(tree)]) for tree in (state, after)]
    return described[0] + str(jax.tree.structure(state)), described[1] + str(jax.tree.structure(after))


@pytest.mark.parametrize("name", names_to_try())
def test_every_phase_leaves_a_state_of_the_shape_that_it_got(setup, classifying, name: str) -> None:
    for network, options in itertools.product(networks(setup, classifying, name), variants(name)):
        method = make_method(name, network, options)
        names = [[phase.name for phase in method.phases(task)] for task in range(3)]
        assert all(len(set(own)) == len(own) for own in names)
        for task in (0, 1):
            for phase in method.phases(task):
                before, after = traced(network, method, task, phase)
                assert after == before, (name, phase.name)
