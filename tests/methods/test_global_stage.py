"""JDCL's global stage: whose answer an image gets, which images come how often, and the loss, term by term by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.data.views import UNCHANGED, Views
from jdcl_jax.keys import named_key, subkeys
from jdcl_jax.methods.global_stage import GROUPS, by_teacher, global_loss, old_groups, soft_divergence
from jdcl_jax.methods.method import ClassTerm, Learned
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, create_state
from jdcl_jax.training.step import scan_steps, train_step
from jdcl_jax.training.streams import draw_batch

QUOTA, BATCH, DELAY = 5, 16, 3
CLASSES = (3, 1, 0, 2, 5, 4)
HALVES = 2  # the classifier sees the mean of an image's left half, and of its right half
IN_TRAINING, IN_CLASSIFYING = 1.25, 0.5  # what stands for dropout: factors that are there only where keys are given
WEIGHTS = {
    "denoising_weight": 0.3,
    "class_weight": 0.7,
    "distillation_weight": 1.9,
    "class_distillation_weight": 0.4,
}


def params_of(seed: int, w: float) -> dict:
    """A denoiser w x_t (1 + t / 1000), and a classifier that is linear, with v [2, 6], in the halves' means."""
    return {"w": np.float32(w), "v": np.random.default_rng(seed).normal(0, 2, (HALVES, 6)).astype(np.float32)}


STUDENT, OLD, LOCAL = params_of(0, 0.9), params_of(1, 0.4), params_of(2, -0.6)


def denoiser(params, x_t, t, labels, keys):
    assert labels is None
    return params["w"] * x_t * (1 + t[:, None, None, None] / 1000) * (1.0 if keys is None else IN_TRAINING)


def halves(images):
    return images.reshape(-1, 4, 2, 2).mean((1, 3))


def logits(params, images, keys):
    return halves(images) @ params["v"] * (1.0 if keys is None else IN_CLASSIFYING)


class Shifted(Views):
    """The weak view is darker, the strong one negative: nothing is random."""

    def weak(self, images, keys):
        return 0.5 * images - 0.2

    def strong(self, images, keys):
        return -images


@pytest.fixture
def joint(setup):
    """Three tasks of two classes; 60 images whose pixels tell their row."""
    views = Shifted(flip=False, crop_scale=1.0, operations=0, cutout=0.0)
    classifier = ClassTerm(logits, weight=0.6, passes=0.5)
    return dataclasses.replace(
        setup, apply=denoiser, classifier=classifier, views=views, batch_size=BATCH, ema=True, steps=(30, 30, 30)
    )


def method_of(setup, **options):
    few = {"quota": QUOTA, "replay_batch": 8, "global_steps": 30, "replay_steps": 2, "class_delay": DELAY}
    return make_method("jdcl", setup, {**default_options("jdcl"), **few, **WEIGHTS, **options})


POOL = np.random.default_rng(9).integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
STORED = np.random.default_rng(5).integers(0, 256, (6 * QUOTA, 4, 4, 1)).astype(np.uint8)


def context_of(method, task=1, old=OLD, local=LOCAL, counts=None, images=STORED, averaged=None) -> Context:
    """What the global stage of a task (from 0) reads, put into memory as training puts it; raw weights as averaged."""
    setup, phases = method.setup, {phase.name: phase for phase in method.phases(task)}
    memory = method.end_task(method.init_memory(STUDENT), Learned(old, averaged or old), task - 1)
    if method.options["local"]:
        memory = method.end_phase(memory, Learned(local, averaged or local), task, phases["local"])
    if counts is None:
        asked = sum(map(len, setup.groups[: task + 1 if method.options["local"] else task]))
        counts = [QUOTA] * asked + [0] * (6 - asked)
    drawn = {"images": images, "counts": np.array(counts, np.int32), "labelled": np.zeros((2, 7), np.int32)}
    memory = method.end_phase(memory, Learned(STUDENT, STUDENT, {"drawn": drawn}), task, phases["draw"])
    arrays = jax.tree.map(jnp.asarray, method.context(memory, task))
    return Context(named_key(0, "task", task), Pool(jnp.asarray(POOL), jnp.asarray(setup.labels)), arrays)


def global_phase(method):
    """The same for every task."""
    return method.phases(1)[-1]


def at(phase, context, step) -> dict:
    """The batch of a step."""
    ids = {name: jnp.arange(stream.batch_size) for name, stream in phase.streams.items()}
    return draw_batch(phase.streams, context.replace(step=jnp.int32(step)), ids, {})


COMPILED = {}


def once(*name):
    """Compiles a function once for all tests; its name says all that its tracing depends on."""

    def jitted(function):
        return COMPILED.setdefault(name, jax.jit(function))

    return jitted


# -- each image's own teacher


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_every_image_gets_the_answer_of_its_own_teacher_in_one_pass(share) -> None:
    """Images 0, 4, 8, ... are of group 0, and so on; the first groups are old."""
    seen, images = [], jnp.arange(1.0, 13.0)[:, None] * jnp.array([1.0, 10.0])
    context = Context(named_key(0), None, {"store": {"share": jnp.float32(share)}})

    def answer(params, images, numbers):
        jax.debug.callback(lambda w, numbers: seen.append((float(w), numbers.tolist())), params["w"], numbers)
        return params["w"] * images, numbers

    def ask(teachers):
        return by_teacher(teachers, context, answer, images, jnp.arange(12))

    said, numbers = jax.jit(ask)({"w": jnp.array([3.0, 7.0])})
    jax.effects_barrier()
    old = np.arange(12) % 4 < 4 * share
    np.testing.assert_array_equal(said, np.where(old, 3.0, 7.0)[:, None] * np.asarray(images))
    np.testing.assert_array_equal(numbers, np.arange(12))
    assert sorted(n for _, group in seen for n in group) == list(range(12))
    assert sorted(n for w, group in seen if w == 3 for n in group) == np.flatnonzero(old).tolist()
    assert [len(group) for _, group in seen] == [3] * GROUPS

    def total(teachers, images):
        said, _ = by_teacher(teachers, context, lambda params, images: (params["w"] * images, images), images)
        return jnp.sum(said**2)

    to_teachers, to_images = jax.grad(total, argnums=(0, 1))({"w": jnp.array([3.0, 7.0])}, images)
    assert not np.any(to_teachers["w"])
    assert not np.any(to_images)


def test_a_single_teacher_answers_for_all() -> None:
    context = Context(named_key(0), None, {"store": {"share": jnp.float32(0.5)}})
    said = by_teacher({"w": jnp.array([3.0])}, context, lambda params, x: params["w"] * x, jnp.arange(8.0))
    np.testing.assert_array_equal(said, 3 * np.arange(8.0))


@pytest.mark.parametrize("share", [0.5, 2 / 3, 0.8, 0.05])
def test_as_many_groups_are_old_in_the_mean_as_the_share_says(share) -> None:
    context = Context(named_key(0), None, {"store": {"share": jnp.float32(share)}})
    count = jax.jit(jax.vmap(lambda step: old_groups(context.replace(step=step))))(jnp.arange(20_000))
    low = np.floor(GROUPS * share)
    part = GROUPS * share - low
    assert set(np.unique(count)) <= {low, low + 1}
    assert abs(np.mean(count) - GROUPS * share) <= 5 * np.sqrt(part * (1 - part) / 20_000)
    if part:
        assert abs(np.mean(count[1:] == count[:-1]) - (part**2 + (1 - part) ** 2)) < 0.02  # steps are independent


# -- which images


STEPS = 2000

SPLITS = {
    "1/2": (((3, 1), (0, 2), (5, 4)), 1, None, 1 / 2),
    "2/3": (((3, 1), (0, 2), (5, 4)), 2, None, 2 / 3),
    "0.8": (((3, 1, 0, 2), (5,), (4,)), 1, None, 0.8),
    "an old class is empty": (((3, 1), (0, 2), (5, 4)), 1, (5, 0, 5, 5, 0, 0), 1 / 3),
    "a new class is empty": (((3, 1), (0, 2), (5, 4)), 2, (5, 5, 5, 0, 0, 5), 3 / 4),
}


def store_by_hand(groups, task, counts) -> list[int]:
    """The rows with images in them; a class that is not asked for has none, one that is has none or all."""
    classes = sum(map(len, groups[: task + 1]))
    filled = [True] * classes if counts is None else [count > 0 for count in counts[:classes]]
    return [p * QUOTA + n for p in range(classes) if filled[p] for n in range(QUOTA)]


@pytest.mark.parametrize("name", SPLITS)
def test_every_stored_image_comes_as_often_as_any_other_and_under_its_label(joint, name) -> None:
    groups, task, counts, share = SPLITS[name]
    rows = store_by_hand(groups, task, counts)
    method = method_of(dataclasses.replace(joint, groups=groups, views=UNCHANGED))
    stored = np.broadcast_to(np.arange(6 * QUOTA, dtype=np.uint8)[:, None, None, None], (6 * QUOTA, 4, 4, 1))
    context, phase = context_of(method, task, counts=counts, images=stored), global_phase(method)
    assert float(context.method["store"]["share"]) == pytest.approx(share)

    @once("replay")
    def read(context):
        def pixel_and_label(step):
            examples = at(phase, context, step)["replay"]
            return examples.original[:, 0, 0, 0], examples.label

        return jax.vmap(pixel_and_label)(jnp.arange(STEPS))

    pixels, labels = read(context)
    numbers = np.round((np.asarray(pixels) + 1) * 127.5).astype(int)
    assert numbers.shape == (STEPS, BATCH)
    np.testing.assert_array_equal(labels, np.array(CLASSES)[numbers // QUOTA])
    assert sorted(set(numbers.ravel())) == rows
    old = numbers // QUOTA < sum(map(len, groups[:task]))
    part = GROUPS * share % 1
    assert abs(np.mean(old) - share) <= 5 * np.sqrt(part * (1 - part) / STEPS) / GROUPS + 1e-9
    for side in (old, ~old):
        often = np.bincount(numbers[side])
        often = often[often > 0]
        assert np.all(np.abs(often - side.sum() / len(often)) < 5 * np.sqrt(side.sum() / len(often)))
    assert len(np.unique(numbers[0])) > 4  # an image is drawn for itself, not with its group


# -- the loss


def inputs(method, task, step) -> tuple[np.ndarray, ...]:
    """Images as the denoiser is to see them and as they were, labels, t and noise of a step."""
    phase, context = global_phase(method), context_of(method, task)

    @once("inputs", method.options["local"])
    def drawn(context, step):
        batch = at(phase, context, step)
        keys = batch["replay"].key
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(subkeys(keys, "t"))
        eps = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(subkeys(keys, "eps"))
        return (
            {name: (x.image, x.original, x.label) for name, x in batch.items()},
            t,
            eps,
            old_groups(context.replace(step=step)),
        )

    found, t, eps, count = drawn(context, step)
    new = np.arange(BATCH) % GROUPS >= count
    image, original, label = (np.array(x) for x in found["replay"])
    if method.options["local"]:
        assert new.tolist() == (~np.isin(label, sum(method.setup.groups[:task], ()))).tolist()
    else:
        for mine, real in zip((image, original, label), found["current"], strict=True):
            mine[new] = np.asarray(real)[new]
    np.testing.assert_allclose(image, 0.5 * original - 0.2, atol=1e-6)
    return image.astype(np.float64), original.astype(np.float64), label, np.asarray(t), np.asarray(eps, np.float64)


def by_hand(method, task, step) -> dict:
    """The long form at a step, image by image in float64: its sums without their weights, and their slopes."""
    image, original, label, t, eps = inputs(method, task, step)
    is_old = np.isin(label, sum(method.setup.groups[:task], ()))
    alpha_bar = np.asarray(method.setup.schedule.alpha_bar, np.float64)[t]
    sums = dict.fromkeys(("mse", "ce", "distance", "soft", "w_mse", "w_distance"), 0.0)
    sums |= {"v_ce": np.zeros((HALVES, 6)), "v_soft": np.zeros((HALVES, 6))}
    truth = not method.options["local"]
    for i in range(len(image)):
        teacher = {k: np.asarray(v, np.float64) for k, v in (OLD if is_old[i] else LOCAL).items()}
        x_t = np.sqrt(alpha_bar[i]) * image[i] + np.sqrt(1 - alpha_bar[i]) * eps[i]
        x_t = x_t * (1 + t[i] / 1000)  # as both networks see it
        said = eps[i] if truth and not is_old[i] else teacher["w"] * x_t
        slope = IN_TRAINING * x_t
        for name, target in (("mse", eps[i]), ("distance", said)):
            error = float(STUDENT["w"]) * slope - target
            sums[name] += np.mean(error**2)
            sums[f"w_{name}"] += np.mean(2 * error * slope)
        strong = -original[i]
        seen = np.array([strong[:, :2].mean(), strong[:, 2:].mean()])
        own = softmax(IN_CLASSIFYING * seen @ STUDENT["v"].astype(np.float64))
        hard = np.eye(6)[label[i]]
        soft = hard if truth and not is_old[i] else softmax(seen @ teacher["v"])
        sums["ce"] -= np.log(own[label[i]])
        sums["soft"] -= np.sum(soft * np.log(own))
        sums["soft"] += np.sum(soft[soft > 0] * np.log(soft[soft > 0]))  # minus the teacher's entropy
        sums["v_ce"] += IN_CLASSIFYING * np.outer(seen, own - hard)
        sums["v_soft"] += IN_CLASSIFYING * np.outer(seen, own - soft)
    return {name: value / BATCH for name, value in sums.items()}


def slopes_by_hand(sums: dict) -> tuple[float, np.ndarray]:
    """Of the whole loss, in w and in v."""
    of_w = WEIGHTS["denoising_weight"] * sums["w_mse"] + WEIGHTS["distillation_weight"] * sums["w_distance"]
    return of_w, WEIGHTS["class_weight"] * sums["v_ce"] + WEIGHTS["class_distillation_weight"] * sums["v_soft"]


def softmax(x: np.ndarray) -> np.ndarray:
    values = np.exp(x - x.max())
    return values / values.sum()


def evaluated(method, task, step, teachers=(OLD, LOCAL)):
    """(loss, metrics), gradient; compiled for all weights."""
    options, setup = method.options, method.setup
    phase, context = global_phase(method), context_of(method, task, *teachers)
    weights = {name: options[name] for name in WEIGHTS}
    static = [options[name] for name in ("local", "distillation", "class_delay")]

    @once("loss", *static, setup.classifier.label_fraction, IN_TRAINING)
    def slope(student, context, weights):
        def loss(student):
            batch = at(phase, context, context.step)
            return global_loss(setup, {**options, **weights})(student, batch, context)

        return jax.value_and_grad(loss, has_aux=True)(student)

    return slope(STUDENT, context.replace(step=jnp.int32(step)), weights)


@pytest.mark.parametrize("teacher", ["ema", "last"])
def test_averaged_weights_teach_and_raw_ones_where_they_are_asked_to(joint, teacher, monkeypatch) -> None:
    """With the student's own as the averaged weights, there is something to distil from the raw ones alone."""
    for name in ("IN_TRAINING", "IN_CLASSIFYING"):
        monkeypatch.setitem(globals(), name, 1.0)
    method = method_of(joint, teacher=teacher)
    context = context_of(method, averaged=STUDENT).replace(step=jnp.int32(DELAY))
    loss = global_loss(method.setup, method.options)
    batch = at(global_phase(method), context, context.step)
    metrics = jax.jit(lambda context: loss(STUDENT, batch, context)[1])(context)
    for name in ("loss_distillation", "loss_class_distillation"):
        assert (float(metrics[name]) > 1e-3) is (teacher == "last"), name


TERMS = {
    "loss_denoising": ("denoising_weight", "mse"),
    "loss_class": ("class_weight", "ce"),
    "loss_distillation": ("distillation_weight", "distance"),
    "loss_class_distillation": ("class_distillation_weight", "soft"),
}


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("task", [1, 2])
def test_the_loss_is_the_long_form_term_by_term_and_so_is_its_gradient(joint, task, local) -> None:
    """Without the local stage new images are the real ones of the task, and their teacher is the truth."""
    method = method_of(joint, local=local)
    (loss, metrics), gradient = evaluated(method, task, DELAY + 4)
    expected = by_hand(method, task, DELAY + 4)
    assert set(metrics) == set(TERMS)
    for name, (weight, term) in TERMS.items():
        assert float(metrics[name]) == pytest.approx(WEIGHTS[weight] * expected[term], rel=2e-5)
    assert float(loss) == pytest.approx(sum(float(value) for value in metrics.values()), rel=1e-6)
    of_w, of_v = slopes_by_hand(expected)
    assert float(gradient["w"]) == pytest.approx(of_w, rel=2e-5)
    np.testing.assert_allclose(gradient["v"], of_v, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_each_weight_scales_its_own_term_alone(joint, weight) -> None:
    (_, metrics), gradient = evaluated(method_of(joint, **{weight: 3 * WEIGHTS[weight]}), 1, DELAY)
    (_, alone), alone_gradient = evaluated(method_of(joint, **(dict.fromkeys(WEIGHTS, 0.0) | {weight: 1.0})), 1, DELAY)
    expected = by_hand(method_of(joint), 1, DELAY)
    for name, (of_term, term) in TERMS.items():
        scale = 3 if of_term == weight else 1
        assert float(metrics[name]) == pytest.approx(scale * WEIGHTS[of_term] * expected[term], rel=2e-5)
        assert float(alone[name]) == pytest.approx(expected[term] if of_term == weight else 0.0, rel=2e-5)
    reached = {"w": "class" not in weight, "v": "class" in weight}
    assert {name: bool(np.any(value)) for name, value in alone_gradient.items()} == reached
    assert all(np.all(value != 0) for value in jax.tree.leaves(gradient))


def test_default_weights_and_delay_are_the_published_ones() -> None:
    names = ("denoising_weight", "class_weight", "distillation_weight", "class_distillation_weight", "class_delay")
    assert [default_options("jdcl")[name] for name in names] == [0.01, 1e-5, 2.0, 0.002, 10_000]


def test_soft_divergence_is_soft_cross_entropy_minus_an_entropy_with_the_same_gradient() -> None:
    random = np.random.default_rng(2)
    student, target = random.normal(0, 3, (7, 6)), np.array([softmax(x) for x in random.normal(0, 3, (7, 6))])
    target[0] = np.eye(6)[2]
    own = np.array([softmax(x) for x in student])
    given = jnp.asarray(target, jnp.float32)
    values, pull = jax.vjp(lambda x: soft_divergence(x, given), jnp.asarray(student, jnp.float32))
    entropy = -np.sum(target * np.log(np.maximum(target, 1e-300)), axis=1)
    assert values.shape == (7,)
    np.testing.assert_allclose(values, -np.sum(target * np.log(own), axis=1) - entropy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(7))[0], own - target, atol=1e-6)
    np.testing.assert_allclose(soft_divergence(jnp.log(given[1:]), given[1:]), 0.0, atol=1e-6)


@pytest.mark.parametrize("delay", [0, DELAY])
def test_class_terms_are_nothing_before_the_delay_and_whole_from_then_on(joint, delay) -> None:
    method = method_of(joint, class_delay=delay)
    for step in range(delay + 2):
        (loss, metrics), gradient = evaluated(method, 1, step)
        terms = [float(metrics[name]) for name in ("loss_class", "loss_class_distillation")]
        rest = float(metrics["loss_denoising"] + metrics["loss_distillation"])
        if step < delay:
            assert terms == [0.0, 0.0]
            assert not np.any(gradient["v"])
            assert float(loss) == pytest.approx(rest, rel=1e-6)
        else:
            expected = by_hand(method, 1, step)
            assert terms == pytest.approx(
                [WEIGHTS["class_weight"] * expected["ce"], WEIGHTS["class_distillation_weight"] * expected["soft"]],
                rel=2e-5,
            )
            assert float(loss) == pytest.approx(rest + sum(terms), rel=1e-6)


def test_a_student_that_is_both_its_teachers_has_nothing_to_distil(joint, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "IN_TRAINING", 1.0)
    monkeypatch.setitem(globals(), "IN_CLASSIFYING", 1.0)
    only = dict.fromkeys(WEIGHTS, 0.0) | {"distillation_weight": 2.0, "class_distillation_weight": 2.0}
    method = method_of(joint, **only)
    (loss, _), gradient = evaluated(method, 1, DELAY, (STUDENT, STUDENT))
    assert float(loss) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient["w"], 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient["v"], 0.0, atol=1e-6)
    for teachers in ((OLD, STUDENT), (STUDENT, LOCAL)):
        (loss, metrics), gradient = evaluated(method, 1, DELAY, teachers)
        assert float(metrics["loss_distillation"]) > 0.01
        assert float(metrics["loss_class_distillation"]) > 0.01
        assert all(np.max(np.abs(value)) > 0.01 for value in jax.tree.leaves(gradient))


@pytest.mark.parametrize("local", [True, False])
def test_without_distillation_it_is_mse_and_alpha_cross_entropy(joint, local) -> None:
    """Alpha is the classifier's, 0.6; the four weights have no part."""
    method = method_of(joint, distillation=False, local=local)
    (loss, metrics), gradient = evaluated(method, 1, DELAY)
    expected = by_hand(method, 1, DELAY)
    assert float(metrics["loss_denoising"]) == pytest.approx(expected["mse"], rel=2e-5)
    assert float(metrics["loss_class"]) == pytest.approx(0.6 * expected["ce"], rel=2e-5)
    assert float(metrics["loss_distillation"]) == float(metrics["loss_class_distillation"]) == 0.0
    assert float(loss) == pytest.approx(expected["mse"] + 0.6 * expected["ce"], rel=2e-5)
    assert float(gradient["w"]) == pytest.approx(expected["w_mse"], rel=2e-5)
    np.testing.assert_allclose(gradient["v"], 0.6 * expected["v_ce"], rtol=1e-4, atol=1e-6)
    (_, early), gradient = evaluated(method, 1, DELAY - 1)
    assert float(early["loss_class"]) == 0.0
    assert not np.any(gradient["v"])


def test_known_labels_count_whole_however_few_training_labels_are_known(joint) -> None:
    """All images of the store have labels."""
    few = dataclasses.replace(joint, classifier=dataclasses.replace(joint.classifier, label_fraction=0.1))
    pair = [evaluated(method_of(setup, distillation=False), 1, DELAY)[0][1] for setup in (joint, few)]
    assert float(pair[0]["loss_class"]) == float(pair[1]["loss_class"]) > 0


def test_new_images_without_the_local_stage_are_the_tasks_real_ones(joint) -> None:
    method = method_of(joint, local=False)
    phase = global_phase(method)
    assert {name: stream.batch_size for name, stream in phase.streams.items()} == {"replay": BATCH, "current": BATCH}
    _, original, label, *_ = inputs(method, 1, 0)
    real = label[:, None] == np.array([0, 2])
    assert 0 < real.sum() < BATCH
    own = POOL[20:40].astype(np.float64) / 127.5 - 1
    for row in np.flatnonzero(np.any(real, axis=1)):
        place = int(np.argmin(np.abs(own - original[row]).max((1, 2, 3))))
        np.testing.assert_allclose(original[row], own[place], atol=1e-6)
        assert label[row] == method.setup.labels[20 + place]
    assert set(global_phase(method_of(joint)).streams) == {"replay"}


# -- devices


@pytest.mark.parametrize(("mode", "count"), [("pmap", 2), ("jit", 2)])
def test_steps_on_two_devices_are_the_long_form_too(joint, mode, count) -> None:
    """Losses and lengths of gradients at steps that change nothing, before and after the class terms begin."""
    method, task, steps = method_of(joint), 2, DELAY + 2
    phase, context, still = global_phase(method), context_of(method, task), optax.sgd(0.0)
    parallel = Parallel(mode, jax.local_devices()[:count])
    step = functools.partial(train_step, gradient=phase.descent, streams=phase.streams, optimizer=still, ema=0.0)
    state, arrays = parallel.replicate((create_state(STUDENT, still, ema=False), context))
    ids = parallel.split({"replay": np.arange(BATCH, dtype=np.int32)})
    call, _ = parallel.compile_step(scan_steps(step, steps), state, arrays, ids, {})
    metrics = jax.device_get(call(state, arrays, ids, {})[1])
    for number in range(steps):
        expected, late = by_hand(method, task, number), number >= DELAY
        for name, (weight, term) in TERMS.items():
            value = WEIGHTS[weight] * expected[term] if late or "class" not in name else 0.0
            assert float(metrics[name][number]) == pytest.approx(value, rel=2e-5)
        of_w, of_v = slopes_by_hand(expected)
        length = np.sqrt(of_w**2 + late * np.sum(of_v**2))
        assert float(metrics["gradient_norm"][number]) == pytest.approx(length, rel=2e-5)


def test_a_device_has_whole_groups(joint) -> None:
    assert global_phase(method_of(joint)).streams["replay"].multiple == GROUPS
