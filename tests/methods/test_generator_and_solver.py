"""DDGR, GUIDE and what they share with GPPDM: losses, replay and guidance, with networks that are a line each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jdcl_jax.data.batches import Examples, to_float
from jdcl_jax.diffusion.schedule import make_schedule
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.methods.generator_and_solver import GENERATE, REPLAYED, SOLVE
from jdcl_jax.methods.method import SOLVER, Learned, Setup, Solver
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import draw_batch

GENERATOR, KEPT = {"w": jnp.float32(0.5)}, {"v": jnp.float32(2.0)}
SCALE = 1.0
SCHEDULE = make_schedule("linear", 1000)
SLOPES = jnp.array([-5.0, -3.0, -1.0, 1.0, 3.0, 5.0])


def bright_logits(params, images):
    """The brighter the likelier is a class of a high number: logits [B, 6] of images [B, H, W, C]."""
    return params["v"] * jnp.mean(images, axis=(1, 2, 3))[:, None] * SLOPES


def denoised(params, x_t, t, labels, keys):
    """The noise of x_t as it is best told where pixels are N(label / 100, w^2)."""
    del keys
    alpha_bar = SCHEDULE.alpha_bar[t][:, None, None, None]
    mean = 0.01 * labels.astype(jnp.float32)[:, None, None, None]
    spread = alpha_bar * params["w"] ** 2 + 1.0 - alpha_bar
    return jnp.sqrt(1.0 - alpha_bar) * (x_t - jnp.sqrt(alpha_bar) * mean) / spread


@pytest.fixture
def solving(setup: Setup) -> Setup:
    """Three tasks of two classes; the classifier's passes cost a quarter of the denoiser's."""
    solver = Solver(bright_logits, lambda key: {"v": jax.random.normal(key)}, (40, 40, 40), 0.25)
    return dataclasses.replace(setup, apply=denoised, num_classes=6, solver=solver, schedule=SCHEDULE)


def make(setup: Setup, name: str, **options):
    sizes = {"replay_per_class": 8, "replay_steps": 10}
    return make_method(name, setup, {**default_options(name), **sizes, **options})


def memory_of(method, task: int):
    """What is kept after the task before, with some images of old classes in the store."""
    memory = method.init_memory({"w": jnp.float32(9.0)})
    for before in range(task):
        memory = method.end_task(memory, Learned({"w": jnp.float32(7.0)}, GENERATOR, {}, KEPT), before)
    return memory


def context_of(method, memory, task: int) -> Context:
    context = method.context(memory, task)
    return Context(named_key(0, "test"), None, jax.tree.map(jnp.asarray, context))


def examples(labels, seed: int) -> Examples:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 4, 1)).astype(np.uint8)
    return Examples(
        to_float(jnp.asarray(images)),
        jnp.array(labels, jnp.int32),
        example_keys(named_key(seed), jnp.arange(len(labels))),
    )


def phase_called(method, task: int, name: str):
    return next(phase for phase in method.phases(task) if phase.name == name)


NAMES = ("ddgr", "guide")


# -- losses


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", [1, 2])
def test_the_classifiers_loss_is_cross_entropy_among_seen_classes_weighed_by_numbers_of_classes(
    solving, name, task
) -> None:
    method = make(solving, name)
    batch = {"current": examples([[0, 2], [5, 4]][task - 1] * 4, 1), "replay": examples([3, 1] * 4, 2)}
    context, params = context_of(method, memory_of(method, task), task), {"v": jnp.float32(0.7)}
    loss, metrics = phase_called(method, task, SOLVE + REPLAYED).loss(params, batch, context)
    seen = [3, 1, 0, 2, 5, 4][: 2 * (task + 1)]
    values = []
    for one in batch.values():
        logits = np.asarray(bright_logits(params, one.image), np.float64)[:, seen]
        places = [seen.index(label) for label in one.label.tolist()]
        values.append(-log_softmax(logits, axis=1)[np.arange(8), places].mean())
    assert float(metrics["loss_current"]) == pytest.approx(values[0], rel=1e-5)
    assert float(metrics["loss_replay"]) == pytest.approx(values[1], rel=1e-5)
    assert float(loss) == pytest.approx((2 * values[0] + 2 * task * values[1]) / (2 + 2 * task), rel=1e-5)


def test_the_first_tasks_classifier_answers_that_tasks_classes_alone(solving) -> None:
    method, batch = make(solving, "ddgr"), {"current": examples([3, 1, 1, 3], 5)}
    params = {"v": jnp.float32(0.7)}
    loss, _ = phase_called(method, 0, SOLVE).loss(params, batch, context_of(method, memory_of(method, 0), 0))
    logits = np.asarray(bright_logits(params, batch["current"].image), np.float64)[:, [3, 1]]
    assert float(loss) == pytest.approx(-log_softmax(logits, axis=1)[np.arange(4), [0, 1, 1, 0]].mean(), rel=1e-5)


@pytest.mark.parametrize("task", [1, 2])
def test_the_generators_loss_is_weighed_by_numbers_of_classes_too(solving, task) -> None:
    method = make(solving, "ddgr")
    batch = {"current": examples([5, 4] * 4, 1), "replay": examples([3, 1] * 4, 2)}
    context = context_of(method, memory_of(method, task), task)
    loss, metrics = phase_called(method, task, GENERATE + REPLAYED).loss(GENERATOR, batch, context)
    new, old = (float(metrics[key]) for key in ("loss_current", "loss_replay"))
    assert new != pytest.approx(old, rel=1e-3)
    assert float(loss) == pytest.approx((2 * new + 2 * task * old) / (2 + 2 * task), rel=1e-5)


# -- replay


def observed(method, task: int, phase, memory, context=None) -> dict:
    """Goes through an observing phase, step by step."""
    tracked, context = method.init_tracked(GENERATOR), context or context_of(method, memory, task)
    from jdcl_jax.training.gradients import across

    @jax.jit
    def step(tracked, number):
        now = context.replace(step=number)
        ids = {name: jnp.arange(stream.batch_size) for name, stream in phase.streams.items()}
        return phase.observe(tracked, {}, draw_batch(phase.streams, now, ids, {}), now, across(None))[0]

    for number in range(phase.steps):
        tracked = step(tracked, jnp.int32(number))
    return jax.device_get(tracked)


def drawn(setup: Setup, name: str, task: int = 2, **options) -> tuple[np.ndarray, np.ndarray]:
    """Images in [-1, 1] and labels of the replay that the classifier learns from."""
    method = make(setup, name, **options)
    memory = memory_of(method, task)
    phase = phase_called(method, task, "guided_draw" if name == "guide" else "draw")
    tracked = observed(method, task, phase, memory)
    left = method.end_phase(memory, Learned({}, {}, tracked, KEPT), task, phase)
    images, labels = method.replay_set(left, task)
    return np.asarray(to_float(jnp.asarray(images))), labels


def log_p(images, classes) -> np.ndarray:
    """Of the kept classifier among some classes, [B, n]."""
    return log_softmax(np.asarray(bright_logits(KEPT, images), np.float64)[:, classes], axis=1)


def test_ddgr_draws_every_old_class_and_raises_its_probability_by_the_kept_classifier(solving) -> None:
    plain, labels = drawn(solving, "ddgr", scale=0.0)
    guided, same = drawn(solving, "ddgr", scale=SCALE)
    assert labels.tolist() == same.tolist() == [3, 1, 0, 2] * 8
    places = np.array([[3, 1, 0, 2].index(label) for label in labels])
    before, after = (log_p(images, [3, 1, 0, 2])[np.arange(32), places] for images in (plain, guided))
    decided = np.isin(labels, [0, 3])  # the darkest and the brightest of these
    assert (after[decided] > before[decided]).all()
    assert after.mean() > before.mean() + 0.01


def test_guide_raises_the_probability_of_the_current_tasks_classes_and_away_lowers_it(solving) -> None:
    """Classes 5 and 4 are the brightest: towards them images get brighter."""
    plain, labels = drawn(solving, "guide", guided_images=32, scale=0.0)
    new, _ = drawn(solving, "guide", guided_images=32, scale=SCALE)
    away, _ = drawn(solving, "guide", guided_images=32, scale=SCALE, direction="away")
    assert sorted(labels.tolist()) == sorted([3, 1, 0, 2] * 8)
    seen = [3, 1, 0, 2, 5, 4]
    p = [np.exp(log_p(images, seen)[:, 4:]).sum(1) for images in (away, plain, new)]
    assert (p[0] < p[1]).all()
    assert (p[1] < p[2]).all()


def test_guide_can_aim_at_the_likeliest_old_class_or_at_the_one_asked_for(solving) -> None:
    shots = {}
    for target in ("new", "old", "asked"):
        images, labels = drawn(solving, "guide", guided_images=32, scale=SCALE, target=target)
        shots[target] = images.mean((1, 2, 3))
    plain = drawn(solving, "guide", guided_images=32, scale=0.0)[0].mean((1, 2, 3))
    assert (shots["new"] > plain).all()
    assert (shots["asked"][labels == 0] < plain[labels == 0]).all()  # class 0 is the darkest
    dark = plain < -0.05
    assert dark.any()
    assert (shots["old"][dark] < plain[dark]).all()  # for dark images class 0 is the likeliest


def test_guide_begins_each_draw_with_another_class(solving) -> None:
    """So that it is not always the same classes that have an image more, where they do not divide the images."""
    method = make(solving, "guide", guided_images=8, scale=0.0)
    memory, firsts = memory_of(method, 2), set()
    phase = phase_called(method, 2, "guided_draw")
    for draw in range(12):
        context = context_of(method, memory, 2)
        context = context.replace(key=jax.random.fold_in(context.key, draw))
        labels = observed(method, 2, phase, memory, context)["guided_draw"]["labels"].tolist()
        assert labels == np.resize(np.roll([3, 1, 0, 2], -[3, 1, 0, 2].index(labels[0])), 8).tolist()
        firsts.add(labels[0])
    assert len(firsts) > 1


def test_guide_is_scored_on_as_many_images_of_a_class_after_every_task(solving) -> None:
    for task in (1, 2):
        _, labels = drawn(solving, "guide", task, guided_images=24, scale=0.0)
        classes, counts = np.unique(labels, return_counts=True)
        assert sorted(classes) == sorted([3, 1, 0, 2][: 2 * task])
        assert set(counts) == {6}


@pytest.mark.parametrize("name", NAMES)
def test_scale_0_draws_bit_for_bit_what_no_guidance_draws(solving, name, monkeypatch) -> None:
    zero, _ = drawn(solving, name, scale=0.0)
    guided, _ = drawn(solving, name, scale=3.0)
    method = type(make(solving, name))
    monkeypatch.setattr(method, "_guiding" if name == "guide" else "terms", lambda self, context, labels: ())
    none, _ = drawn(solving, name, scale=3.0)
    np.testing.assert_array_equal(zero, none)
    assert not np.array_equal(zero, guided)


def test_the_generator_of_the_task_before_draws_and_not_the_one_in_training(solving) -> None:
    method = make(solving, "ddgr", scale=0.0)
    memory = memory_of(method, 1)
    assert memory["generator"] == GENERATOR  # the averaged weights
    other = {**memory, "generator": {"w": jnp.float32(0.9)}}
    phase = phase_called(method, 1, "draw")
    first, second = (observed(method, 1, phase, kept)["drawn"]["images"] for kept in (memory, other))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_context_and_memory_have_the_same_shapes_for_every_task(solving, name) -> None:
    def shapes(tree) -> str:
        return str([(np.shape(x), np.asarray(x).dtype) for x in jax.tree.leaves(tree)]) + str(jax.tree.structure(tree))

    method = make(solving, name)
    memory = method.init_memory(GENERATOR)
    contexts, memories = set(), {shapes(memory)}
    for task in range(3):
        learned = Learned(GENERATOR, GENERATOR, method.init_tracked(GENERATOR), KEPT)
        for phase in method.phases(task):
            contexts.add(shapes(method.context(memory, task)))
            memory = method.end_phase(memory, learned, task, phase)
        memory = method.end_task(memory, learned, task)
        memories.add(shapes(memory))
    assert len(contexts) == len(memories) == 1


# -- phases


def test_ddgr_draws_then_trains_generator_and_classifier(solving) -> None:
    method = make(solving, "ddgr")
    assert [phase.name for phase in method.phases(0)] == [GENERATE, SOLVE]
    assert [phase.name for phase in method.phases(1)] == ["draw", GENERATE + REPLAYED, SOLVE + REPLAYED]
    assert [phase.network for phase in method.phases(1)] == ["denoiser", "denoiser", SOLVER]
    assert [phase.scored for phase in method.phases(2)] == [True, False, False]


def test_guide_draws_the_classifiers_replay_anew_every_n_steps(solving) -> None:
    phases = make(solving, "guide", every=15).phases(2)
    assert [phase.name for phase in phases] == ["draw", GENERATE + REPLAYED, *["guided_draw", SOLVE + REPLAYED] * 3]
    assert [phase.steps for phase in phases if phase.network == SOLVER] == [15, 15, 10]
    assert [phase.continues for phase in phases] == [False, False, False, False, True, True, True, True]
    assert [place for place, phase in enumerate(phases) if phase.scored] == [6]


def test_guide_trains_its_generator_on_replay_without_guidance(solving) -> None:
    plain, guided = (make(solving, "guide", scale=scale) for scale in (0.0, 20.0))
    first, second = (
        observed(m, 1, phase_called(m, 1, "draw"), memory_of(m, 1))["drawn"]["images"] for m in (plain, guided)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("name", "steps"), [("ddgr", 10 * (1 + 2 * 0.25)), ("guide", 10 * (1 + 1 + 2 * 0.25))])
def test_what_guided_images_cost_is_counted_in_passes(solving, name, steps) -> None:
    """A step with guidance: the denoiser forward, with GUIDE also back to the image, and the classifier both ways."""
    phase = phase_called(
        make(solving, name, guided_images=16) if name == "guide" else make(solving, name),
        1,
        "guided_draw" if name == "guide" else "draw",
    )
    assert phase.passes == pytest.approx(steps)
    plain = make(solving, name, scale=0.0)
    assert phase_called(plain, 1, phase.name).passes == pytest.approx(10)


def test_with_classifier_free_guidance_the_way_back_is_twice_as_long_too(solving) -> None:
    asked_twice = dataclasses.replace(solving, guidance=2.0)
    assert asked_twice.sampling_passes == 2
    guided, plain = (make(asked_twice, "guide", guided_images=16, scale=scale) for scale in (0.5, 0.0))
    assert phase_called(guided, 1, "guided_draw").passes == pytest.approx(10 * (2 + 2 + 2 * 0.25))
    assert phase_called(plain, 1, "guided_draw").passes == pytest.approx(10 * 2)


def test_a_cold_classifier_starts_each_task_anew_and_a_warm_one_goes_on(solving) -> None:
    cold = dataclasses.replace(solving, solver=dataclasses.replace(solving.solver, warm_start=False))
    phase = functools.partial(phase_called, task=1, name=SOLVE + REPLAYED)
    warm, memory = make(solving, "ddgr"), memory_of(make(solving, "ddgr"), 1)
    assert warm.start(memory, 1, phase(warm)) is None
    method = make(cold, "ddgr")
    first, again, later = (method.start(memory, task, phase(method)) for task in (1, 1, 2))
    assert first["v"] == again["v"] != later["v"]
    assert method.start(memory, 1, phase_called(method, 1, GENERATE + REPLAYED)) == GENERATOR


# -- what cannot be


@pytest.mark.parametrize(
    ("name", "change", "options", "message"),
    [
        ("ddgr", {"solver": None}, {}, "classifier.kind=solver"),
        ("guide", {"num_classes": 0}, {}, "model.class_conditional=True"),
        ("ddgr", {"reset_optimizer": False}, {}, "train.reset_optimizer=True"),
        ("ddgr", {"labels": np.full(60, -1)}, {}, "data.label_fraction=1"),
        ("ddgr", {}, {"replay_per_class": 0}, "counts from 1"),
        ("ddgr", {}, {"replay_per_class": 10**12}, "memory; write less"),
        ("guide", {}, {"replay_steps": 1001}, "write 1 to 1000"),
        ("ddgr", {}, {"scale": -1.0}, "write 0 or more"),
        ("ddgr", {}, {"scale_schedule": "slow"}, "constant, rising, falling"),
        ("ddgr", {}, {"scale": 0.0, "scale_schedule": "rising"}, "no effect with method.scale=0"),
        ("guide", {}, {"target": "7"}, "method.target is '7'; write one of: new, old, asked"),
        ("guide", {}, {"direction": "up"}, "toward, away"),
        ("guide", {}, {"every": 0}, "method.every counts from 1"),
        ("guide", {}, {"guided_images": 12}, "a multiple of train.batch_size=8"),
        ("guide", {"batch_size": 4}, {"guided_images": 4}, "two of each of the 4 classes .* write 8 or more"),
        ("guide", {}, {"scale": 0.0, "direction": "away"}, "method.direction has no effect with method.scale=0"),
        ("guide", {}, {"scale": 0.0, "target": "old"}, "method.target has no effect with method.scale=0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(solving, name, change, options, message) -> None:
    with pytest.raises(UserError, match=message) as refused:
        make(dataclasses.replace(solving, **change), name, **options)
    assert "\n" not in str(refused.value)
