"""Methods with a teacher (arXiv 2311.14028): targets on its samples, weights, who the teacher is, and options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key, subkeys
from jdcl_jax.methods.method import Learned
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import draw_batch

STUDENT, TEACHER = {"w": jnp.float32(0.9)}, {"w": jnp.float32(0.4)}
WITH_TEACHER = ("gr", "gd", "trajectory", "lwf", "gaussian", "symmetric_gaussian")


def method_of(setup, name, **options):
    return make_method(name, setup, {**default_options(name), **options})


def context_of(method, task, teacher=TEACHER):
    memory = method.end_task(method.init_memory(STUDENT), Learned(teacher, teacher), task - 1)
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


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_weights_are_one_in_k_or_one_each_and_lambda_times_the_old(setup, monkeypatch, name) -> None:
    for weighting, replay_weight, task in [("by_task", 3.0, 1), ("by_task", 0.5, 2), ("sum", 3.0, 1), ("sum", 0.5, 2)]:
        method = method_of(setup, name, weighting=weighting, replay_weight=replay_weight)
        monkeypatch.setattr(type(method), "losses", lambda *args: (jnp.float32(7.0), jnp.float32(5.0)))
        loss, metrics = method.phases(task)[-1].loss(STUDENT, {}, context_of(method, task))
        assert metrics == {"loss_current": 7.0, "loss_replay": 5.0}
        k = task + 1
        of_current, of_old = (1 / k, 1 - 1 / k) if weighting == "by_task" else (1, 1)
        assert float(loss) == pytest.approx(of_current * 7 + of_old * replay_weight * 5, rel=1e-6)


def test_default_weights_are_the_papers() -> None:
    weights = {name: default_options(name)["replay_weight"] for name in ("gr", "gd", "lwf", "gaussian")}
    assert weights == {"gr": 1.0, "gd": 0.75, "lwf": 1.25, "gaussian": 8.0}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in WITH_TEACHER), ("gd", {"distil_on": "all_states"}), ("gd", {"stop_snr": 1.0})],
)
def test_no_gradient_reaches_the_teacher(setup, name, options) -> None:
    """Neither through its outputs nor through its samples."""
    method = method_of(dataclasses.replace(setup, num_classes=6), name, **options)
    (phase,) = method.phases(1)
    keys = half("replay").key
    memory = method.init_memory(STUDENT)

    @jax.jit
    def gradients(student, teacher):
        def loss(student, teacher):
            arrays = jax.tree.map(jnp.asarray, method.context({**memory, "teacher": teacher}, 1))
            context = Context(named_key(0), None, arrays)
            drawn = {name: stream.draw(context, keys) for name, stream in phase.streams.items() if stream.draw}
            return phase.loss(student, {"current": half("current"), **drawn}, context)[0]

        return jax.grad(loss, argnums=(0, 1))(student, teacher)

    to_student, to_teacher = gradients(STUDENT, TEACHER)
    assert float(to_teacher["w"]) == 0.0
    assert float(to_student["w"]) != 0.0


def drawn(setup, method, step):
    (phase,) = method.phases(1)
    stream = {"replay": phase.streams["replay"]}
    context = context_of(method, 1).replace(step=jnp.int32(step))
    return draw_batch(stream, context, {"replay": jnp.arange(8)}, {})["replay"]


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


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_first_task_has_nobody_to_learn_from(setup, name) -> None:
    (phase,) = method_of(setup, name).phases(0)
    assert set(phase.streams) == {"current"}
    assert (phase.passes, phase.steps) == (3, 30)


def test_the_teacher_is_a_copy_of_the_parameters_after_the_task_before(setup) -> None:
    method = method_of(setup, "gd")
    params = {"w": jnp.arange(3.0)}
    memory = method.end_task(method.init_memory(params), Learned(params, {"w": -params["w"]}), 0)
    np.testing.assert_array_equal(memory["teacher"]["w"], [0.0, 1.0, 2.0])
    assert memory["teacher"]["w"] is not params["w"]


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_teacher_may_be_the_average_instead(setup, name) -> None:
    raw, averaged = {"w": jnp.float32(1)}, {"w": jnp.float32(2)}
    kept = []
    for choice in ("last", "ema"):
        method = method_of(dataclasses.replace(setup, ema=True), name, teacher=choice)
        memory = method.end_task(method.init_memory(raw), Learned(raw, averaged), 0)
        kept.append(float(method.context(memory, 1)["teacher"]["w"]))
    assert kept == [1.0, 2.0]


def test_steps_are_those_of_the_task(setup) -> None:
    for name in WITH_TEACHER:
        method = method_of(dataclasses.replace(setup, steps=(10, 20, 40)), name)
        assert [method.phases(task)[-1].steps for task in range(3)] == [10, 20, 40]


@pytest.mark.parametrize("t_min", [100, 900])
def test_the_law_of_a_stopped_chain_keeps_the_larger_t_min(setup, t_min) -> None:
    alpha_bar = np.asarray(setup.schedule.alpha_bar)
    first = int(np.flatnonzero(alpha_bar <= 0.5)[0])
    law = method_of(setup, "gd", stop_snr=1.0, t_min=t_min, timesteps="beta").law()
    assert (law.timesteps, law.kind, law.t_min) == (1000, "beta", max(t_min, first))
    assert 100 < first < 900


def test_a_conditional_teacher_is_asked_for_old_classes_only_and_for_all_of_them(setup) -> None:
    method = method_of(dataclasses.replace(setup, num_classes=6), "gd")
    (phase,) = method.phases(2)
    stream, ids = {"replay": phase.streams["replay"]}, {"replay": jnp.arange(200)}
    labels = draw_batch(stream, context_of(method, 2), ids, {})["replay"].label
    assert set(labels.tolist()) == {3, 1, 0, 2}


@pytest.mark.parametrize(("name", "passes"), [("gr", 2 + 6), ("gd", 2 + 7)])
def test_cost_is_the_papers_arithmetic(setup, name, passes) -> None:
    (phase,) = method_of(setup, name).phases(1)
    assert phase.passes == passes
    (first,) = method_of(setup, name).phases(0)
    assert first.passes == 3


REFUSED = [
    *((name, {"replay_weight": -1.0}) for name in WITH_TEACHER),
    *((name, {"teacher": "first"}) for name in WITH_TEACHER),
    *((name, {"teacher": "ema"}) for name in WITH_TEACHER),  # the setup keeps no average
    *((name, {"weighting": "equal"}) for name in WITH_TEACHER),
    *((name, {"teacher_steps": steps}) for name in ("gr", "gd", "trajectory") for steps in (0, 1001)),
    *((name, {"replay": "kept"}) for name in ("gr", "gd")),
    *((name, {"stored_per_class": 0, "replay": "stored"}) for name in ("gr", "gd")),
    *((name, {"stored_per_class": 20}) for name in ("gr", "gd")),  # of fresh replay nothing is stored
    *((name, {"timesteps": "normal"}) for name in ("gr", "gd")),
    *((name, {"t_min": t_min}) for name in ("gr", "gd") for t_min in (-1, 1000)),
    ("gd", {"distil_on": "some_states"}),
    ("gd", {"stop_snr": -0.1}),
    ("gd", {"stop_snr": 1e9}),
    ("gd", {"replay": "stored", "distil_on": "all_states"}),
    ("gd", {"timesteps": "beta", "distil_on": "all_states"}),
    ("gd", {"t_min": 5, "distil_on": "all_states"}),
]


@pytest.mark.parametrize(("name", "options"), REFUSED)
def test_impossible_options_are_refused(setup, name, options) -> None:
    with pytest.raises(UserError, match=rf"method\.{next(iter(options))}\b") as error:
        method_of(setup, name, **options)
    assert "\n" not in str(error.value)


def test_outputs_with_guidance_are_not_taught(setup) -> None:
    guided = dataclasses.replace(setup, num_classes=6, guidance=1.0)
    with pytest.raises(UserError, match=r"sampler\.guidance=0"):
        method_of(guided, "gd", distil_on="all_states")
    method_of(guided, "gd")


def test_an_average_is_found_where_one_is_kept(setup) -> None:
    with pytest.raises(UserError, match=r"train\.ema"):
        method_of(setup, "gd", teacher="ema")
    method_of(dataclasses.replace(setup, ema=True), "gd", teacher="ema")
