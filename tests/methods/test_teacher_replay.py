"""Generative replay and distillation (arXiv 2311.14028) differ in the target alone; the weights are the paper's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key, subkeys
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import draw_batch

STUDENT, TEACHER = {"w": jnp.float32(0.9)}, {"w": jnp.float32(0.4)}


def method_of(setup, name, **options):
    return make_method(name, setup, {**default_options(name), **options})


def context_of(method, task, teacher=TEACHER):
    memory = method.end_task(method.init_memory(STUDENT), teacher, task - 1)
    return Context(key=named_key(0, "task", task), pool=None, method=method.context(memory, task))


def half(name, batch=8, shape=(4, 4, 1)):
    key = named_key(1, name)
    keys = example_keys(key, jnp.arange(batch))
    return Examples(jax.random.uniform(key, (batch, *shape), minval=-1.0), jnp.zeros(batch, jnp.int32), keys)


def by_hand(setup, examples, target_of, w):
    """MSE of w * x_t against a target, noised here with the loss's own t and eps but our own arithmetic."""
    t = jax.vmap(lambda k: jax.random.randint(k, (), 0, 1000))(subkeys(examples.key, "t"))
    eps = np.asarray(jax.vmap(lambda k: jax.random.normal(k, setup.image_shape))(subkeys(examples.key, "eps")))
    alpha_bar = np.asarray(setup.schedule.alpha_bar)[np.asarray(t)][:, None, None, None]
    x_t = np.sqrt(alpha_bar) * np.asarray(examples.image) + np.sqrt(1 - alpha_bar) * eps
    return float(np.mean((w * x_t - target_of(x_t, eps)) ** 2))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(
    ("name", "weight", "target_of"),
    [("gr", 1.0, lambda x_t, eps: eps), ("gd", 0.75, lambda x_t, eps: 0.4 * x_t)],
)
def test_loss_is_the_papers_sum_and_only_the_target_differs(setup, name, weight, target_of, k) -> None:
    method = method_of(setup, name)
    (phase,) = method.phases(k - 1)
    batch = {"current": half("current"), "replay": half("replay")}
    loss, metrics = phase.loss(STUDENT, batch, context_of(method, k - 1))
    current = by_hand(setup, batch["current"], lambda x_t, eps: eps, 0.9)
    replay = by_hand(setup, batch["replay"], target_of, 0.9)
    assert float(metrics["loss_current"]) == pytest.approx(current, rel=1e-5)
    assert float(metrics["loss_replay"]) == pytest.approx(replay, rel=1e-5)
    assert float(loss) == pytest.approx(current / k + (1 - 1 / k) * weight * replay, rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_distil_but_something_to_replay(setup) -> None:
    batch = {"current": half("current"), "replay": half("replay")}
    for name, nothing in (("gd", True), ("gr", False)):
        method = method_of(setup, name)
        (phase,) = method.phases(1)
        context = context_of(method, 1, teacher=STUDENT)

        def replay_loss(params, phase=phase, context=context):
            return phase.loss(params, batch, context)[1]["loss_replay"]

        value, gradient = jax.value_and_grad(replay_loss)(STUDENT)
        assert (float(value) == 0.0 and float(gradient["w"]) == 0.0) is nothing


def test_no_gradient_reaches_the_teacher(setup) -> None:
    method = method_of(setup, "gd")
    (phase,) = method.phases(1)
    batch = {"current": half("current"), "replay": half("replay")}

    def loss(teacher):
        return phase.loss(STUDENT, batch, context_of(method, 1, teacher))[0]

    assert float(jax.grad(loss)(TEACHER)["w"]) == 0.0


def drawn(setup, method, step):
    (phase,) = method.phases(1)
    stream = {"replay": phase.streams["replay"]}
    return draw_batch(stream, context_of(method, 1), jnp.int32(step), {"replay": jnp.arange(8)}, {})["replay"]


def test_replay_is_drawn_afresh_at_every_step_and_lies_in_the_pixel_range(setup) -> None:
    method = method_of(setup, "gd")
    first, second = drawn(setup, method, 0), drawn(setup, method, 1)
    assert not np.allclose(first.image, second.image)
    assert not np.allclose(first.image[0], first.image[1])
    np.testing.assert_array_equal(first.image, drawn(setup, method, 0).image)
    assert float(jnp.max(jnp.abs(first.image))) <= 1.0


def test_replay_takes_as_many_teacher_steps_as_asked(setup) -> None:
    calls = []

    def counting(params, x_t, t, labels, keys):
        jax.debug.callback(lambda step: calls.append(int(step[0])), t)
        return params["w"] * x_t

    method = method_of(dataclasses.replace(setup, apply=counting), "gd", teacher_steps=4)
    jax.block_until_ready(drawn(setup, method, 0).image)
    jax.effects_barrier()
    assert calls == [999, 749, 499, 249]


def test_the_first_task_has_nobody_to_learn_from(setup) -> None:
    (phase,) = method_of(setup, "gd").phases(0)
    assert set(phase.streams) == {"current"}


def test_the_teacher_is_a_copy_of_the_parameters_after_the_task_before(setup) -> None:
    method = method_of(setup, "gd")
    params = {"w": jnp.arange(3.0)}
    memory = method.end_task(method.init_memory(params), params, 0)
    np.testing.assert_array_equal(memory["teacher"]["w"], [0.0, 1.0, 2.0])
    assert memory["teacher"]["w"] is not params["w"]


def test_a_conditional_teacher_is_asked_for_old_classes_only_and_for_all_of_them(setup) -> None:
    method = method_of(dataclasses.replace(setup, num_classes=6), "gd")
    (phase,) = method.phases(2)
    stream, ids = {"replay": phase.streams["replay"]}, {"replay": jnp.arange(200)}
    labels = draw_batch(stream, context_of(method, 2), jnp.int32(0), ids, {})["replay"].label
    assert set(labels.tolist()) == {3, 1, 0, 2}


@pytest.mark.parametrize(("name", "passes"), [("gr", 2 + 6), ("gd", 2 + 7)])
def test_cost_is_the_papers_arithmetic(setup, name, passes) -> None:
    (phase,) = method_of(setup, name).phases(1)
    assert phase.passes == passes
    (first,) = method_of(setup, name).phases(0)
    assert first.passes == 3


@pytest.mark.parametrize("options", [{"teacher_steps": 0}, {"teacher_steps": 1001}, {"replay_weight": -1.0}])
def test_impossible_options_are_refused(setup, options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        method_of(setup, "gd", **options)
