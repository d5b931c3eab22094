"""Buffers keep what they promise; the rehearsal coefficient weighs the buffer's loss in three forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key, subkeys
from jdcl_jax.methods.buffer import buffer_rows, empty_buffer, fill
from jdcl_jax.methods.method import Learned
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.state import Context

LEARNED = Learned({}, {})
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


W = 0.5
PARAMS = {"w": jnp.float32(W)}


def half(name: str, n: int = 8) -> Examples:
    key = named_key(1, name)
    images = jax.random.uniform(key, (n, 4, 4, 1), minval=-1.0)
    return Examples(images, jnp.zeros(n, jnp.int32), example_keys(key, jnp.arange(n)))


def errors(setup, examples: Examples, t=None) -> np.ndarray:
    """Squared error of W x_t against the noise, one for each image; t uniform unless given."""
    if t is None:
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(subkeys(examples.key, "t"))
    noise = jax.vmap(lambda key: jax.random.normal(key, setup.image_shape))(subkeys(examples.key, "eps"))
    eps, alpha_bar = np.asarray(noise, np.float64), np.asarray(setup.schedule.alpha_bar)[np.asarray(t)]
    alpha_bar = alpha_bar[:, None, None, None]
    x_t = np.sqrt(alpha_bar) * np.asarray(examples.image) + np.sqrt(1 - alpha_bar) * eps
    return np.mean((W * x_t - eps) ** 2, axis=(1, 2, 3))


def loss_of(method, batch) -> tuple[float, dict[str, float]]:
    (phase,) = method.phases(1)
    sizes = {name: stream.batch_size for name, stream in phase.streams.items()}
    assert sizes == {name: len(examples.label) for name, examples in batch.items()}
    loss, parts = phase.loss(PARAMS, batch, None)
    return float(loss), {name: float(value) for name, value in parts.items()}


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 1.0, 2.5])
def test_additive_is_current_plus_coefficient_times_buffer(setup, coefficient: float) -> None:
    batch = {"current": half("a"), "buffer": half("b")}
    loss, parts = loss_of(er(setup, rehearsal_coefficient=coefficient), batch)
    current, old = (errors(setup, batch[name]).mean() for name in ("current", "buffer"))
    assert abs(current - old) > 0.01
    assert parts == {"loss_current": pytest.approx(current, rel=1e-5), "loss_buffer": pytest.approx(old, rel=1e-5)}
    assert loss == pytest.approx(current + coefficient * old, rel=1e-5)


@pytest.mark.parametrize("coefficient", [0.0, 0.3, 0.9])
def test_convex_gives_the_rest_to_the_current_task(setup, coefficient: float) -> None:
    batch = {"current": half("a"), "buffer": half("b")}
    loss, _ = loss_of(er(setup, rehearsal_coefficient=coefficient, form="convex"), batch)
    current, old = (errors(setup, batch[name]).mean() for name in ("current", "buffer"))
    assert loss == pytest.approx((1 - coefficient) * current + coefficient * old, rel=1e-5)


@pytest.mark.parametrize(("coefficient", "old_images"), [(0.25, 2), (1.0, 8), (0.4, 3), (2.0, 16)])
def test_concatenated_is_one_batch_in_which_every_image_weighs_the_same(setup, coefficient, old_images) -> None:
    batch = {"current": half("a"), "buffer": half("b", old_images)}
    loss, _ = loss_of(er(setup, rehearsal_coefficient=coefficient, form="concatenated"), batch)
    of_images = [errors(setup, batch[name]) for name in ("current", "buffer")]
    assert loss == pytest.approx(np.concatenate(of_images).mean(), rel=1e-5)


@pytest.mark.parametrize("form", ["additive", "convex", "concatenated"])
def test_the_first_task_has_plain_training_in_every_form(setup, form: str) -> None:
    (alone,) = er(setup, form=form, rehearsal_coefficient=0.5).phases(0)
    assert set(alone.streams) == {"current"}
    examples = half("a")
    loss, _ = alone.loss(PARAMS, {"current": examples}, None)
    assert float(loss) == pytest.approx(errors(setup, examples).mean(), rel=1e-5)
    assert (alone.passes, alone.steps) == (3, 30)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 6),
        ({"form": "convex", "rehearsal_coefficient": 0.5}, 6),
        ({"form": "concatenated", "rehearsal_coefficient": 0.25}, 3 + 3 / 4),
    ],
)
def test_the_network_sees_as_many_images_as_the_passes_say(setup, options, passes: float) -> None:
    seen = []

    def counting(params, x_t, t, labels, keys):
        seen.append(len(x_t))
        return params["w"] * x_t

    (phase,) = er(dataclasses.replace(setup, apply=counting), **options).phases(1)
    phase.loss(PARAMS, {name: half(name, s.batch_size) for name, s in phase.streams.items()}, None)
    assert len(seen) == 1
    assert phase.passes == passes == 3 * seen[0] / 8


def test_only_old_images_follow_the_law_of_timesteps(setup) -> None:
    """With t_min=999 they are pure noise, whatever they show; the current ones stay uniform."""
    batch = {"current": half("a"), "buffer": half("b")}
    for options in ({"t_min": 999}, {"t_min": 999, "timesteps": "beta"}):
        _, parts = loss_of(er(setup, **options), batch)
        assert parts["loss_current"] == pytest.approx(errors(setup, batch["current"]).mean(), rel=1e-5)
        assert parts["loss_buffer"] == pytest.approx(errors(setup, batch["buffer"], [999] * 8).mean(), rel=1e-5)
    seen = []

    def spying(params, x_t, t, labels, keys):
        seen.extend(t.tolist())
        return params["w"] * x_t

    (phase,) = er(dataclasses.replace(setup, apply=spying), timesteps="beta").phases(1)
    phase.loss(PARAMS, {"current": half("a", 400), "buffer": half("b", 400)}, None)
    current, old = np.array(seen).reshape(2, 400)
    assert abs(current.mean() - 500) < 5 * 289 / 20
    assert abs(old.mean() - 1000 * 4 / 5.2) < 5 * 170 / 20  # the mean and spread of Beta(4, 1.2)


def test_the_buffer_is_filled_once_a_task_with_rows_of_that_task(setup) -> None:
    method = er(setup)
    memory = method.init_memory({})
    for task, (labels, offered) in enumerate([({3, 1}, 20), ({3, 1, 0, 2}, 40), ({3, 1, 0, 2, 5, 4}, 60)]):
        (phase,) = method.phases(task)
        assert method.end_phase(memory, LEARNED, task, phase) is memory
        context = method.context(memory, task)
        assert context["buffer"] is memory["buffer"]
        memory = method.end_task(memory, LEARNED, task)
        kept = method.kept_rows(memory)
        assert len(kept) == len(set(kept.tolist())) == 12
        assert set(setup.labels[kept].tolist()) == labels
        assert int(memory["buffer"]["offered"]) == offered


def test_which_rows_are_kept_depends_on_the_seed_and_the_task_alone(setup) -> None:
    def kept(seed: int) -> list[int]:
        method = er(dataclasses.replace(setup, seed=seed), buffer_size=8)
        return method.kept_rows(method.end_task(method.init_memory({}), LEARNED, 0)).tolist()

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)
    method = er(setup)
    places = [method.kept_rows(method.end_task(method.init_memory({}), LEARNED, task)) - 20 * task for task in (0, 2)]
    assert places[0].tolist() != places[1].tolist()


def test_a_reservoir_may_hold_fewer_images_than_there_are_classes(setup) -> None:
    method = er(setup, buffer_size=2, buffer_policy="reservoir")
    memory = method.init_memory({})
    for task in range(3):
        memory = method.end_task(memory, LEARNED, task)
        assert len(set(method.kept_rows(memory).tolist())) == 2
    assert int(memory["buffer"]["offered"]) == 60


def test_before_anything_is_kept_no_rows_are(setup) -> None:
    method = er(setup)
    assert method.kept_rows(method.init_memory({})).shape == (0,)


@pytest.mark.parametrize(
    "options",
    [
        {"buffer_size": 5},
        {"buffer_size": 0, "buffer_policy": "reservoir"},
        {"buffer_policy": "fifo"},
        {"rehearsal_coefficient": -0.1},
        {"form": "sum"},
        {"rehearsal_coefficient": 1.1, "form": "convex"},
        {"rehearsal_coefficient": 1.0, "form": "convex"},  # would learn nothing of the current task
        {"buffer_size": 1_000_000_000_000},
        {"rehearsal_coefficient": 0.05, "form": "concatenated"},
        {"timesteps": "normal"},
        {"t_min": 1000},
        {"t_min": -1},
    ],
)
def test_impossible_options_are_refused(setup, options) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(options))} ") as error:
        er(setup, **options)
    assert "\n" not in str(error.value)
    assert "write" in str(error.value)
