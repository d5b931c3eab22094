"""JDCL's local stage: what it reads, and its losses by hand where all labels are known and where most are hidden."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.data.views import Views
from jdcl_jax.keys import named_key, subkeys
from jdcl_jax.methods.local_stage import UNLABELLED, labelled_rows, local_phase, pseudo_labels
from jdcl_jax.methods.method import ClassTerm
from jdcl_jax.training.state import Context, Pool, Range
from jdcl_jax.training.streams import draw_batch

BATCH, ALPHA, THRESHOLD = 16, 0.6, 0.95
IN_TRAINING, IN_CLASSIFYING = 1.25, 0.7  # what stands for dropout: factors that are there only where keys are given
KNOWN = (
    *(0, 7, 10, 19),  # training rows with labels: four of the first task, two of the second, seven of the third
    *(21, 39),
    *(40, 44, 45, 49, 50, 55, 59),
)
PARAMS = {"w": np.float32(0.8), "v": np.random.default_rng(4).normal(0, 8, (2, 6)).astype(np.float32)}
IMAGES = np.random.default_rng(9).integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
LEFT, RIGHT = np.random.default_rng(8).integers(0, 160, (2, 60, 1, 1, 1))
IMAGES = np.concatenate([IMAGES[:, :, :2] // 3 + LEFT, IMAGES[:, :, 2:] // 3 + RIGHT], axis=2).astype(np.uint8)


def denoiser(params, x_t, t, labels, keys):
    assert labels is None
    return params["w"] * x_t * (1 + t[:, None, None, None] / 1000) * (1.0 if keys is None else IN_TRAINING)


def logits(params, images, keys):
    """Linear in the means of an image's left half and of its right half."""
    return images.reshape(-1, 4, 2, 2).mean((1, 3)) @ params["v"] * (1.0 if keys is None else IN_CLASSIFYING)


class Shifted(Views):
    """The weak view is brighter, the strong one mirrored and paler: nothing is random."""

    def weak(self, images, keys):
        return 0.7 * images + 0.3

    def strong(self, images, keys):
        return 0.9 * images[:, :, ::-1]


@pytest.fixture
def known(setup):
    """All labels are known."""
    views = Shifted(flip=False, crop_scale=1.0, operations=0, cutout=0.0)
    classifier = ClassTerm(logits, weight=ALPHA, passes=0.5)
    return dataclasses.replace(setup, apply=denoiser, classifier=classifier, views=views, batch_size=BATCH)


@pytest.fixture
def hidden(known):
    """A fifth of the labels is known."""
    labels = np.where(np.isin(np.arange(60), KNOWN), known.labels, -1).astype(np.int32)
    return dataclasses.replace(
        known, labels=labels, classifier=dataclasses.replace(known.classifier, label_fraction=len(KNOWN) / 60)
    )


def phase_of(setup, unlabelled="fixmatch", threshold=THRESHOLD):
    return local_phase(setup, 30, unlabelled=unlabelled, threshold=threshold)


def context_of(setup, task=1, images=IMAGES) -> Context:
    rows = jax.tree.map(jnp.asarray, labelled_rows(setup, task))
    current = Range(start=jnp.int32(setup.start(task)), count=jnp.int32(setup.task_sizes[task]))
    pool = Pool(jnp.asarray(images), jnp.asarray(setup.labels))
    return Context(named_key(0, "task", task), pool, {"current": current, "labelled": rows})


COMPILED = {}


def once(*name):
    """Compiles a function once for all tests; its name says all that its tracing depends on."""

    def jitted(function):
        return COMPILED.setdefault(name, jax.jit(function))

    return jitted


def drawn(setup, phase, task=1, step=3) -> tuple[dict, dict]:
    """A step's batch, and t and noise of its stream "current"."""

    @once("drawn", tuple(phase.streams), phase.streams["current"].rows.__qualname__)
    def draw(context, step):
        ids = {name: jnp.arange(BATCH) for name in phase.streams}
        batch = draw_batch(phase.streams, context.replace(step=step), ids, {})
        keys = batch["current"].key
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(subkeys(keys, "t"))
        eps = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(subkeys(keys, "eps"))
        return batch, {"t": t, "eps": eps}

    return draw(context_of(setup, task), step)


def evaluated(phase, batch):
    """(loss, metrics), gradient."""
    context = Context(named_key(0), None, {})
    return jax.jit(jax.value_and_grad(phase.loss, has_aux=True))(PARAMS, batch, context)


# -- by hand, float64


def number(image) -> int:
    """The training row of an image before it was augmented."""
    distance = np.abs(IMAGES / 127.5 - 1 - np.asarray(image, np.float64)).max((1, 2, 3))
    assert np.sort(distance)[0] < 1e-5 < np.sort(distance)[1]
    return int(np.argmin(distance))


def softmax(x: np.ndarray) -> np.ndarray:
    values = np.exp(x - x.max())
    return values / values.sum()


def pixels(row: int) -> np.ndarray:
    return IMAGES[row].astype(np.float64) / 127.5 - 1


def features(image: np.ndarray) -> np.ndarray:
    return np.array([image[:, :2].mean(), image[:, 2:].mean()])


def denoising_by_hand(setup, examples: Examples, noise) -> tuple[float, float]:
    """MSE and its slope in w, over weak views."""
    value, of_w = 0.0, 0.0
    for image, t, eps in zip(examples.original, noise["t"], noise["eps"], strict=True):
        alpha_bar = float(setup.schedule.alpha_bar[int(t)])
        weak, eps = 0.7 * pixels(number(image)) + 0.3, np.asarray(eps, np.float64)
        slope = (np.sqrt(alpha_bar) * weak + np.sqrt(1 - alpha_bar) * eps) * (1 + int(t) / 1000) * IN_TRAINING
        error = float(PARAMS["w"]) * slope - eps
        value, of_w = value + np.mean(error**2), of_w + np.mean(2 * error * slope)
    return value / BATCH, of_w / BATCH


def classes_by_hand(examples: Examples, labels) -> tuple[float, np.ndarray]:
    """Cross-entropy and its slope in v, over strong views, all examples counted; a label None adds nothing."""
    v, value, of_v = PARAMS["v"].astype(np.float64), 0.0, np.zeros((2, 6))
    for image, label in zip(examples.original, labels, strict=True):
        if label is None:
            continue
        seen = features(0.9 * pixels(number(image))[:, ::-1])
        own = softmax(IN_CLASSIFYING * seen @ v)
        value -= np.log(own[label])
        of_v += IN_CLASSIFYING * np.outer(seen, own - np.eye(6)[label])
    return value / BATCH, of_v / BATCH


def true_labels(setup, examples: Examples) -> list[int]:
    """Of the images' own rows, which must have labels."""
    labels = [int(setup.labels[number(image)]) for image in examples.original]
    assert min(labels) >= 0
    return labels


def pseudo_by_hand(examples: Examples, threshold=THRESHOLD) -> list[int | None]:
    """What the network says of the weak views, without dropout, where it is sure."""
    found = []
    for image in examples.original:
        said = softmax(features(0.7 * pixels(number(image)) + 0.3) @ PARAMS["v"].astype(np.float64))
        assert abs(said.max() - threshold) > 1e-4
        found.append(int(np.argmax(said)) if said.max() > threshold else None)
    return found


def check(phase, batch, terms: dict[str, float], of_w: float, of_v: np.ndarray) -> None:
    (loss, metrics), gradient = evaluated(phase, batch)
    for name, value in terms.items():
        assert float(metrics[name]) == pytest.approx(value, rel=2e-5), name
    assert {name for name in metrics if name.startswith("loss")} == set(terms)
    assert float(loss) == pytest.approx(sum(terms.values()), rel=2e-5)
    assert float(gradient["w"]) == pytest.approx(of_w, rel=2e-5)
    np.testing.assert_allclose(gradient["v"], of_v, rtol=1e-4, atol=1e-6)
    assert np.any(of_v)


# -- losses


def test_with_all_labels_it_is_mse_of_weak_views_and_alpha_cross_entropy_of_strong_ones(known) -> None:
    phase = phase_of(known)
    batch, noise = drawn(known, phase)
    mse, of_w = denoising_by_hand(known, batch["current"], noise)
    ce, of_v = classes_by_hand(batch["current"], true_labels(known, batch["current"]))
    check(phase, batch, {"loss_denoising": mse, "loss_class": ALPHA * ce}, of_w, ALPHA * of_v)


def test_denoise_is_mse_of_all_images_and_alpha_cross_entropy_of_those_with_labels(hidden) -> None:
    phase = phase_of(hidden, "denoise")
    batch, noise = drawn(hidden, phase)
    mse, of_w = denoising_by_hand(hidden, batch["current"], noise)
    ce, of_v = classes_by_hand(batch["labelled"], true_labels(hidden, batch["labelled"]))
    check(phase, batch, {"loss_denoising": mse, "loss_class": ALPHA * ce}, of_w, ALPHA * of_v)


def test_ignore_is_both_of_the_images_with_labels_alone_not_divided_by_their_share(hidden) -> None:
    phase = phase_of(hidden, "ignore")
    batch, noise = drawn(hidden, phase)
    assert set(batch) == {"current"}
    mse, of_w = denoising_by_hand(hidden, batch["current"], noise)
    ce, of_v = classes_by_hand(batch["current"], true_labels(hidden, batch["current"]))
    check(phase, batch, {"loss_denoising": mse, "loss_class": ALPHA * ce}, of_w, ALPHA * of_v)


@pytest.mark.parametrize("threshold", [THRESHOLD, 0.7])
def test_fixmatch_adds_alpha_cross_entropy_of_strong_views_against_what_is_said_of_weak_ones(hidden, threshold) -> None:
    """The mean is over all images; those that it is not sure of add nothing."""
    phase = phase_of(hidden, threshold=threshold)
    batch, noise = drawn(hidden, phase)
    everything, labelled = batch["current"], batch["labelled"]
    mse, of_w = denoising_by_hand(hidden, everything, noise)
    ce, of_v = classes_by_hand(labelled, true_labels(hidden, labelled))
    pseudo = pseudo_by_hand(everything, threshold)
    sure = np.mean([label is not None for label in pseudo])
    assert 0.1 < sure < 0.9
    assert len({label for label in pseudo if label is not None}) > 1
    consistency, of_v_too = classes_by_hand(everything, pseudo)
    terms = {"loss_denoising": mse, "loss_class": ALPHA * ce, "loss_fixmatch": ALPHA * consistency}
    check(phase, batch, terms, of_w, ALPHA * (of_v + of_v_too))
    assert float(evaluated(phase, batch)[0][1]["sure"]) == pytest.approx(sure)


def test_a_network_that_is_never_sure_learns_as_without_the_term(hidden) -> None:
    batch, _ = drawn(hidden, phase_of(hidden))
    (_, metrics), gradient = evaluated(phase_of(hidden, threshold=1.1), batch)
    assert (float(metrics["loss_fixmatch"]), float(metrics["sure"])) == (0.0, 0.0)
    _, without = evaluated(phase_of(hidden, "denoise"), batch)
    for name, value in gradient.items():
        np.testing.assert_allclose(value, without[name], rtol=1e-6)


def test_the_threshold_is_inclusive_and_pseudo_labels_have_no_gradient() -> None:
    given = jnp.array([[0.0, 3.0, -1.0], [2.0, 2.0, -40.0], [0.1, 0.0, 0.2]])
    chances = np.asarray(jax.nn.softmax(given)).max(1)
    for limit in chances.tolist():
        labels, sure = pseudo_labels(given, limit)
        assert labels.tolist() == [1, 0, 2]
        assert sure.tolist() == [chance >= limit for chance in chances.tolist()]
        _, above = pseudo_labels(given, np.nextafter(np.float32(limit), np.float32(2)))
        assert sure.sum() == above.sum() + 1
    assert labels.dtype == jnp.int32
    _, sure = pseudo_labels(jnp.log(jnp.array([[0.94, 0.06], [0.96, 0.04], [0.02, 0.98]])), THRESHOLD)
    assert sure.tolist() == [False, True, True]


@pytest.mark.parametrize("unlabelled", ["fixmatch", "denoise"])
def test_labels_in_the_stream_of_all_images_have_no_part(hidden, unlabelled) -> None:
    """Neither hidden ones nor known ones; it is a stream of images."""
    phase = phase_of(hidden, unlabelled)
    batch, _ = drawn(hidden, phase)
    assert set(np.unique(batch["current"].label)) & {-1, 0, 2} > {-1}
    changed = batch | {"current": batch["current"].replace(label=jnp.arange(BATCH) % 6)}
    for a, b in zip(*(jax.tree.leaves(evaluated(phase, each)) for each in (batch, changed)), strict=True):
        np.testing.assert_array_equal(a, b)


# -- what is read


@pytest.mark.parametrize("task", [0, 1, 2])
@pytest.mark.parametrize("unlabelled", UNLABELLED)
def test_streams_read_the_tasks_images_and_those_of_them_with_labels(hidden, unlabelled, task) -> None:
    """All images in epochs; those with labels by chance, each as often as any other."""
    phase, own = phase_of(hidden, unlabelled), range(20 * task, 20 * task + 20)
    plain = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 4, 4, 1))

    @once("read", tuple(phase.streams), phase.streams["current"].rows.__qualname__)
    def read(context):
        def numbers(step):
            ids = {name: jnp.arange(BATCH) for name in phase.streams}
            batch = draw_batch(phase.streams, context.replace(step=step), ids, {})
            return {name: (x.original[:, 0, 0, 0], x.label, x.image[:, 0, 0, 0]) for name, x in batch.items()}

        return jax.vmap(numbers)(jnp.arange(200))

    rows = {}
    for name, (original, label, image) in read(context_of(hidden, task, plain)).items():
        rows[name] = np.round((np.asarray(original) + 1) * 127.5).astype(int).ravel()
        np.testing.assert_array_equal(np.ravel(label), hidden.labels[rows[name]])
        np.testing.assert_allclose(image, 0.7 * original + 0.3, atol=1e-6)
    of_labelled = rows["current"] if unlabelled == "ignore" else rows["labelled"]
    known = [row for row in KNOWN if row in own]
    counts = np.bincount(of_labelled, minlength=60)
    assert np.flatnonzero(counts).tolist() == known
    expected = 200 * BATCH / len(known)
    assert np.all(np.abs(counts[known] - expected) < 5 * np.sqrt(expected))
    if unlabelled != "ignore":
        assert set(rows) == {"current", "labelled"}
        np.testing.assert_array_equal(np.sort(rows["current"].reshape(-1, 20)), np.broadcast_to(own, (160, 20)))
    assert {stream.batch_size for stream in phase.streams.values()} == {BATCH}


def test_with_all_labels_there_is_one_stream_whatever_is_asked_for(known) -> None:
    assert [set(phase_of(known, unlabelled).streams) for unlabelled in UNLABELLED] == [{"current"}] * 3


def test_rows_with_labels_have_one_shape_for_all_tasks(hidden, known) -> None:
    found = [labelled_rows(hidden, task) for task in range(3)]
    assert [(entry["rows"].shape, entry["rows"].dtype, entry["count"].dtype) for entry in found] == [
        ((7,), np.int32, np.int32)
    ] * 3
    kept = [entry["rows"][: int(entry["count"])].tolist() for entry in found]
    assert kept == [[0, 7, 10, 19], [21, 39], [40, 44, 45, 49, 50, 55, 59]]
    assert [labelled_rows(known, task)["rows"].tolist() for task in range(3)] == [
        list(range(first, first + 20)) for first in (0, 20, 40)
    ]


def test_costs_by_hand(known, hidden) -> None:
    """Denoising 3, classifying 3 * .5 for each of its two passes, pseudo-labels .5."""
    assert phase_of(known).passes == 4.5
    costs = {"fixmatch": 3 + 2 * 1.5 + 0.5, "denoise": 4.5, "ignore": 4.5}
    assert {unlabelled: phase_of(hidden, unlabelled).passes for unlabelled in UNLABELLED} == costs
    assert {phase_of(hidden, unlabelled).name for unlabelled in UNLABELLED} == {phase_of(known).name} == {"local"}
    assert phase_of(hidden).steps == 30
