"""Teacher samples drawn once per task: how many, of which classes, on any devices, and what is read of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.data.batches import to_float, to_uint8
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.keys import example_keys, fold_name, named_key, subkeys
from jdcl_jax.methods.denoising import generate
from jdcl_jax.methods.method import Learned, Setup
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.methods.stored_replay import DRAW, store_capacity, store_size
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, create_state
from jdcl_jax.training.step import observe_step, scan_steps
from jdcl_jax.training.streams import draw_batch

STUDENT = {"w": np.float32(0.9), "e": np.float32(0.0)}
TEACHER = {"w": np.float32(0.4), "e": np.float32(0.15)}
GROUPS = ((3, 1, 0), (2, 5), (4,))
OLD = {1: [3, 1, 0], 2: [3, 1, 0, 2, 5]}  # before a task: neither batches nor devices' shares are multiples of these
PER_CLASS = 5


def labelled(params, x_t, t, labels, keys):
    """Brighter or darker by the label, so that an image tells which one it was drawn for."""
    del t, keys
    shift = jnp.zeros(()) if labels is None else params["e"] * (labels - 2.5)[:, None, None, None]
    return params["w"] * x_t + shift


@pytest.fixture
def plain(setup: Setup) -> Setup:
    return dataclasses.replace(setup, apply=labelled, groups=GROUPS, task_sizes=(32, 13, 15))


@pytest.fixture
def conditional(plain: Setup) -> Setup:
    return dataclasses.replace(plain, num_classes=6)


def method_of(setup: Setup, name: str = "gd", **options):
    return make_method(
        name, setup, {**default_options(name), "replay": "stored", "stored_per_class": PER_CLASS, **options}
    )


def context_of(method, memory, task: int, phase: int) -> Context:
    arrays = jax.tree.map(jnp.asarray, method.context(memory, task))
    return Context(named_key(0, "task", task, "phase", phase), None, arrays)


def after_task(method, task: int) -> dict:
    """The memory with which a task (from 0) begins."""
    memory = method.init_memory(STUDENT)
    return method.end_task(memory, Learned(TEACHER, TEACHER), task - 1) if task else memory


def drawn(method, task: int, mode: str = "jit", count: int = 1, per_call: int = 1) -> dict:
    """The store after the drawing phase of a task."""
    phase = method.phases(task)[0]
    parallel = Parallel(mode, jax.local_devices()[:count])
    step = functools.partial(observe_step, observe=phase.observe, streams=phase.streams)
    state = create_state(STUDENT, optax.sgd(0.1), ema=False, tracked=method.init_tracked(STUDENT))
    context = context_of(method, after_task(method, task), task, 0)
    state, context = parallel.replicate((state, context))
    ids = parallel.split({"replay": np.arange(8, dtype=np.int32)})
    call, _ = parallel.compile_step(scan_steps(step, per_call), state, context, ids, {})
    for _ in range(phase.steps // per_call):
        state, metrics = call(state, context, ids, {})
    assert np.all(np.abs(metrics["mean_pixel"]) <= 1)
    assert jax.device_get(state.params) == {"w": np.float32(0.9), "e": np.float32(0)}
    return jax.device_get(state.tracked["drawn"])


def by_hand(setup: Setup, task: int, rows: int, steps: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 and labels of the first `rows` of a store, each from the key of its step and place in the batch."""
    labels = np.resize(OLD[task], rows)
    stream = fold_name(fold_name(named_key(0, "task", task, "phase", 0), "replay"), "example")
    keys = [example_keys(jax.random.fold_in(stream, step), jnp.arange(8)) for step in range(-(-rows // 8))]
    keys = subkeys(jnp.concatenate(keys)[:rows], "sample")
    asked = jnp.asarray(labels) if setup.num_classes else None
    images = jax.jit(lambda: generate(setup, TEACHER, asked, keys, Sampler("ddim", steps)))()
    return np.asarray(to_uint8(images)), labels


@pytest.mark.parametrize("task", [1, 2])
def test_a_store_is_as_many_samples_of_every_old_class_each_under_its_label(conditional, task) -> None:
    method = method_of(conditional)
    store, size = drawn(method, task), len(OLD[task]) * PER_CLASS
    counts = dict(zip(*np.unique(store["labels"][:size], return_counts=True), strict=True))
    assert counts == dict.fromkeys(OLD[task], PER_CLASS)
    images, labels = by_hand(conditional, task, size)
    np.testing.assert_array_equal(store["labels"][:size], labels)
    np.testing.assert_array_equal(store["images"][:size], images)
    assert store["images"].dtype == np.uint8
    brightness = [images[labels == label].mean() for label in sorted(set(labels))]
    assert brightness == sorted(brightness, reverse=True)  # so that an image under another's label would show
    assert brightness[0] - brightness[-1] > 30
    assert len(np.unique(images, axis=0)) == size


@pytest.mark.parametrize(("mode", "count", "per_call"), [("pmap", 1, 2), ("pmap", 2, 1), ("jit", 2, 4)])
def test_a_store_is_the_same_on_any_devices_and_in_any_calls(conditional, mode, count, per_call) -> None:
    method = method_of(conditional)
    alone, other = drawn(method, 2), drawn(method, 2, mode, count, per_call)
    np.testing.assert_array_equal(other["labels"], alone["labels"])
    np.testing.assert_array_equal(other["images"], alone["images"])
    assert np.std(alone["images"].astype(float)) > 10


def test_an_unconditional_store_is_as_large_and_knows_no_labels(plain) -> None:
    store = drawn(method_of(plain, "gr", teacher_steps=3), 2)
    images, _ = by_hand(plain, 2, 25, steps=3)
    np.testing.assert_array_equal(store["images"][:25], images)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 8, 20, 64])
def test_the_last_batch_of_every_task_fits(setup, batch_size) -> None:
    """A slice that does not fit would be moved back over earlier images."""
    setup = dataclasses.replace(setup, batch_size=batch_size)
    method = method_of(setup)
    capacity = store_capacity(setup, PER_CLASS)
    assert method.init_tracked(STUDENT)["drawn"]["images"].shape == (capacity, 4, 4, 1)
    for task in (1, 2):
        draw, *_ = method.phases(task)
        assert store_size(setup, PER_CLASS, task) == 10 * task
        assert draw.steps * batch_size >= 10 * task > (draw.steps - 1) * batch_size
        assert draw.steps * batch_size <= capacity < 20 + batch_size


def test_there_is_one_drawing_at_the_beginning_of_every_task_but_the_first(setup) -> None:
    for name in ("gd", "gr"):
        method = method_of(setup, name)
        assert [phase.name for phase in method.phases(0)] == ["train"]
        for task in (1, 2):
            draw, train = method.phases(task)
            assert draw.name == DRAW
            assert draw.observe is not None
            assert train.observe is None
            assert train.steps == setup.steps[task]


def test_drawing_costs_the_chain_and_training_no_longer_does(setup) -> None:
    draw, train = method_of(setup, teacher_steps=5).phases(1)
    assert (draw.passes, train.passes) == (5, 7)
    draw, train = method_of(setup, "gr", teacher_steps=5).phases(1)
    assert (draw.passes, train.passes) == (5, 6)
    guided = dataclasses.replace(setup, num_classes=6, guidance=2.0)
    assert [phase.passes for phase in method_of(guided, teacher_steps=5).phases(1)] == [10, 7]
    calls = []

    def counting(params, x_t, t, labels, keys):
        jax.debug.callback(lambda step: calls.append(step.shape), t)
        return params["w"] * x_t

    counted = method_of(dataclasses.replace(guided, apply=counting), teacher_steps=5)
    drawn(counted, 1)
    jax.effects_barrier()
    assert calls == [(8,)] * 10 * 2  # of the two steps


def read(method, memory: dict, task: int, batches: int = 40):
    """Examples that the training of a task reads, 8 a step, with their whole numbers back."""
    (_, train) = method.phases(task)
    context = context_of(method, memory, task, 1)
    stream = {"replay": train.streams["replay"]}
    draw = jax.jit(lambda step: draw_batch(stream, context.replace(step=step), {"replay": jnp.arange(8)}, {})["replay"])
    parts = [draw(jnp.int32(step)) for step in range(batches)]
    return np.concatenate([p.image for p in parts]), np.concatenate([p.label for p in parts])


@pytest.mark.parametrize("task", [1, 2])
def test_training_reads_what_was_drawn_and_nothing_behind_it(conditional, task) -> None:
    """All images that were drawn, each with its label; the network that drew them is not asked again."""
    method = method_of(dataclasses.replace(conditional, apply=None))
    size, capacity = len(OLD[task]) * PER_CLASS, 32
    store = {"images": np.full((capacity, 4, 4, 1), 255, np.uint8), "labels": np.full(capacity, 9, np.int32)}
    store["images"][:size] = np.arange(size)[:, None, None, None]
    store["labels"][:size] = np.resize(OLD[task], size)
    memory = method.end_phase(after_task(method, task), Learned({}, {}, {"drawn": store}), task, method.phases(task)[0])
    images, labels = read(method, memory, task)
    numbers = np.round((images + 1) * 127.5).astype(int)[:, 0, 0, 0]
    assert set(numbers.tolist()) == set(range(size))
    np.testing.assert_array_equal(labels, store["labels"][numbers])
    np.testing.assert_allclose(images, np.broadcast_to(to_float(numbers)[:, None, None, None], images.shape), atol=1e-6)
    counts = np.bincount(numbers)
    assert np.all(np.abs(counts - 320 / size) < 5 * np.sqrt(320 / size))


def test_a_store_is_kept_until_the_next_is_drawn_with_the_same_shapes(conditional) -> None:
    method = method_of(conditional)
    draw, train = method.phases(1)
    memory = after_task(method, 1)
    store = drawn(method, 1)
    new = method.end_phase(memory, Learned(STUDENT, STUDENT, {"drawn": store}), 1, draw)
    np.testing.assert_array_equal(new["stored"]["images"], store["images"])
    assert new["teacher"] is memory["teacher"]
    assert method.end_phase(new, Learned(STUDENT, STUDENT, {"drawn": {}}), 1, train) is new
    later = method.end_task(new, Learned(STUDENT, STUDENT, {"drawn": {}}), 1)
    np.testing.assert_array_equal(later["stored"]["images"], store["images"])

    def shapes(tree):
        return jax.tree.map(lambda leaf: (np.shape(leaf), np.asarray(leaf).dtype), tree)

    assert shapes(method.init_memory(STUDENT)) == shapes(memory) == shapes(new) == shapes(later)
    contexts = [shapes(method.context(m, task)) for task, m in enumerate([method.init_memory(STUDENT), new, later])]
    assert contexts[0] == contexts[1] == contexts[2]
    assert [int(method.context(later, task)["stored"]["count"]) for task in (1, 2)] == [15, 25]


def test_fresh_replay_stores_nothing(setup) -> None:
    method = make_method("gd", setup, default_options("gd"))
    assert method.init_tracked(STUDENT) == {}
    assert set(method.init_memory(STUDENT)) == {"teacher"}
    assert len(method.phases(1)) == 1
