"""Each class's own logit, on its test images and on the generated ones that the classifier gives it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.assembly import assemble
from jdcl_jax.measuring import logits as module
from jdcl_jax.measuring.logits import own_logits
from jdcl_jax.restored import Restored

GROUPS = ((2, 6), (1, 8), (4, 5))
WORDS = ("jdcl", "classifier.kind=joint", "train.ema=0.9", "tasks.order=gd-42", "sampler.steps=2")


def linear_logits(params, images, keys):
    """Of all ten classes, float32 [B, 10]."""
    assert keys is None
    return images.reshape(len(images), -1) @ params["w"]


def scaled(params, x_t, t, labels, keys):
    """The denoiser: what it draws is noise that depends on the key alone."""
    assert keys is None
    return params["scale"] * x_t


def with_arithmetic(found):
    """The parts of a run, with lines of arithmetic for its network and names for its classes."""
    term = dataclasses.replace(found.setup.classifier, logits=linear_logits)
    names = tuple(f"digit {c}" for c in range(10))
    return dataclasses.replace(
        found,
        setup=dataclasses.replace(found.setup, apply=scaled, classifier=term),
        sequence=dataclasses.replace(found.sequence, class_names=names),
    )


@pytest.fixture(scope="module")
def parts(tiny_config):
    """A tiny run of three tasks."""
    found = assemble(tiny_config(*WORDS))
    assert found.sequence.groups == GROUPS
    return with_arithmetic(found)


@pytest.fixture(scope="module")
def params(parts):
    """A classifier that is often right."""
    train, noise = parts.dataset.train, np.random.default_rng(1)
    good = np.linalg.lstsq(flat(train.images), np.eye(10)[train.labels], rcond=None)[0]
    return {"w": jnp.float32(good + 0.04 * noise.standard_normal(good.shape)), "scale": jnp.float32(0.5)}


def flat(images: np.ndarray) -> np.ndarray:
    return (images / 127.5 - 1.0).reshape(len(images), -1)


def restored(parts, params, task: int) -> Restored:
    return Restored(parts, params, {"w": None, "scale": None}, task)


class Stored:
    """Gives stored images, in the generator's place, and remembers what it was asked for."""

    images: np.ndarray
    asked: dict

    def __init__(self, setup, parallel, batch_size):
        type(self).asked = {"setup": setup, "batch_size": batch_size}

    def __call__(self, params, key, num, labels, on_progress):
        type(self).asked |= {"params": params, "num": num, "labels": labels}
        return self.images[:num]


@pytest.fixture
def stored(parts, monkeypatch):
    """The training images, mixed, are what is generated: of all ten classes, also of those not seen yet."""
    train = parts.dataset.train
    Stored.images = train.images[np.random.default_rng(0).permutation(len(train.images))[:300]]
    monkeypatch.setattr(module, "Generator", Stored)
    return Stored


@pytest.mark.parametrize("task", [1, 2, 3])
def test_real_logits_are_a_classs_own_on_its_test_images_and_classes_are_those_seen(
    task, parts, params, stored
) -> None:
    real, generated = own_logits(restored(parts, params, task), 10)
    seen = [c for group in GROUPS[:task] for c in group]
    assert list(real) == list(generated) == [f"digit {c}" for c in seen]
    test = parts.dataset.test
    for c in seen:
        expected = flat(test.images[test.labels == c]) @ np.asarray(params["w"])[:, c]
        np.testing.assert_allclose(real[f"digit {c}"], expected, rtol=1e-4, atol=1e-4)
        assert real[f"digit {c}"].dtype == np.float32


@pytest.mark.parametrize("task", [1, 3])
def test_generated_images_belong_to_the_class_that_the_classifier_answers_among_all(
    task, parts, params, stored
) -> None:
    """An image that is given a class not seen yet belongs to none of those seen."""
    _, generated = own_logits(restored(parts, params, task), 300)
    logits = flat(stored.images) @ np.asarray(params["w"])
    answers = logits.argmax(1)
    seen = [c for group in GROUPS[:task] for c in group]
    for c in seen:
        expected = logits[answers == c, c]
        assert len(expected)
        np.testing.assert_allclose(generated[f"digit {c}"], expected, rtol=1e-4, atol=1e-4)
    assert sum(map(len, generated.values())) == np.isin(answers, seen).sum() < 300


def test_a_class_that_is_never_answered_has_no_generated_logit(parts, params, stored) -> None:
    stored.images = np.full((40, 8, 8, 1), 255, np.uint8)
    brightness = {**params, "w": jnp.zeros((64, 10)).at[:, 8].set(3 / 64)}  # of white images 3, of black ones -3
    real, generated = own_logits(restored(parts, brightness, 3), 40)
    assert {name: np.round(values, 4).tolist() for name, values in generated.items()} == {
        f"digit {c}": 40 * [3.0] if c == 8 else [] for group in GROUPS for c in group
    }
    assert all(len(values) for values in real.values())


@pytest.mark.parametrize(("guidance", "labels"), [(0.0, None), (2.0, [2, 6, 1, 8, 2, 6, 1])])
def test_images_are_asked_for_by_class_only_where_the_run_does_so(guidance, labels, parts, params, stored) -> None:
    setup = dataclasses.replace(parts.setup, classifier_guidance=guidance)
    own_logits(restored(dataclasses.replace(parts, setup=setup), params, 2), 7)
    asked = stored.asked
    assert asked["setup"] is setup
    assert asked["params"] is params
    assert (asked["num"], asked["batch_size"]) == (7, 7)
    assert labels == (None if asked["labels"] is None else asked["labels"].tolist())


def test_no_more_images_are_drawn_at_a_time_than_an_evaluation_does(parts, params, stored) -> None:
    own_logits(restored(parts, params, 1), 200)
    assert (stored.asked["num"], stored.asked["batch_size"]) == (200, 60)


def test_where_all_classes_are_seen_every_drawn_image_belongs_to_one_of_them(tiny_config, params) -> None:
    found = with_arithmetic(assemble(tiny_config(*WORDS, "tasks.first=0")))
    _, generated = own_logits(restored(found, params, 5), 65)
    counts = [len(values) for values in generated.values()]
    assert len(counts) == 10
    assert sum(counts) == 65
    assert max(counts) < 65
