"""Class prototypes: where they begin, and what moves them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.data.batches import to_float
from jdcl_jax.methods.prototypes import (
    LABELS,
    PATH,
    PROTOTYPE,
    first_step_of_rows,
    noise_images,
    nothing_found,
    only_classes,
    prototype_optimizer,
    prototype_phase,
    with_prototypes,
)

PARAMS = {
    "conditioner": {"prototypes": jnp.ones((6, 4, 4, 1)), "labels": jnp.ones((6, 3)), "label": {"kernel": jnp.ones(3)}},
    "unet": {"kernel": jnp.ones(2)},
}


def brightness(context, images):
    """Log-probabilities [B, 6] of a classifier that is the surer of class c the nearer the mean pixel is to c / 10."""
    del context
    distance = (jnp.mean(images, axis=(1, 2, 3))[:, None] - jnp.arange(6.0) / 10) ** 2
    return jax.nn.log_softmax(-5.0 * distance)


def found(affine, start: str, task: int) -> dict:
    """What the phase leaves after it has looked at a task, in batches of 8 of 20 images."""
    setup = dataclasses.replace(affine.setup, num_classes=6)
    affine = dataclasses.replace(affine, setup=setup)
    method = affine.method("finetune")
    phase = prototype_phase(setup, task, start, brightness, 1.0, {"current": method.current_stream()})
    from jdcl_jax.training.state import create_state

    state = create_state({"w": jnp.float32(0)}, optax.sgd(0.0), ema=False, tracked=nothing_found(setup))
    state, _ = affine.run_phase(phase, affine.context(method, {}, task, 0), state, None)
    return jax.device_get(state.tracked[PROTOTYPE])


@pytest.mark.parametrize("task", [0, 2])
def test_a_confident_beginning_is_the_image_with_the_highest_probability_of_its_own_class(affine, task) -> None:
    left, setup = found(affine, "confident", task), affine.setup
    for c in setup.groups[task]:
        rows = np.flatnonzero(setup.labels == c)
        images = np.asarray(to_float(jnp.asarray(affine.images[rows])))
        sure = np.asarray(brightness(None, images))[:, c]
        np.testing.assert_allclose(left["image"][c], images[sure.argmax()], atol=1e-6)
        assert left["confidence"][c] == pytest.approx(sure.max(), rel=1e-5)
        assert left["count"][c] == len(rows)
    others = [c for c in range(6) if c not in setup.groups[task]]
    assert not left["image"][others].any()
    assert not left["count"][others].any()


@pytest.mark.parametrize("task", [0, 2])
def test_a_mean_beginning_is_the_mean_of_all_images_of_the_class_each_counted_once(affine, task) -> None:
    left, setup = found(affine, "mean", task), affine.setup
    for c in setup.groups[task]:
        images = np.asarray(to_float(jnp.asarray(affine.images[setup.labels == c])), np.float64)
        np.testing.assert_allclose(left["image"][c], images.mean(0), atol=1e-6)


def test_noise_is_another_for_each_class_within_the_range_of_pixels_and_by_names_alone(setup) -> None:
    setup = dataclasses.replace(setup, num_classes=6)
    images = noise_images(setup, [1, 3])
    assert images.shape == (6, 4, 4, 1)
    assert np.abs(images).max() <= 1
    assert 0.4 < images[[1, 3]].std() < 1.0
    assert not np.array_equal(images[1], images[3])
    assert not images[[0, 2, 4, 5]].any()
    np.testing.assert_array_equal(noise_images(setup, [3])[3], images[3])
    assert not np.array_equal(noise_images(dataclasses.replace(setup, seed=1), [3])[3], images[3])


def test_new_prototypes_take_the_place_of_their_classes_alone() -> None:
    images = np.full((6, 4, 4, 1), 0.5, np.float32)
    changed = with_prototypes(PARAMS, images, [2, 5])["conditioner"]["prototypes"]
    assert [float(row.mean()) for row in changed] == [1, 1, 0.5, 1, 1, 0.5]
    assert float(PARAMS["conditioner"]["prototypes"].mean()) == 1


def stepped(optimizer, gradients: list, method=None) -> list:
    """The updates of some steps."""
    optimizer, updates = optax.with_extra_args_support(optimizer), []
    state = optimizer.init(PARAMS)
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, PARAMS, method=method)
        updates.append(jax.device_get(update))
    return updates


ONES = jax.tree.map(jnp.ones_like, PARAMS)


def test_prototypes_have_an_optimiser_of_their_own_and_all_else_keeps_its() -> None:
    """The first step of Adam is the learning rate; weight decay and clipping of the others do not reach prototypes."""
    base = optax.chain(optax.clip_by_global_norm(1e-3), optax.add_decayed_weights(0.1), optax.sgd(0.5))
    (update,) = stepped(prototype_optimizer(base, "learned", 0.25), [ONES])
    np.testing.assert_allclose(update["conditioner"]["prototypes"], -0.25, rtol=1e-4)
    clipped = 1e-3 / np.sqrt(18 + 3 + 2)
    for leaf in (update["conditioner"]["labels"], update["conditioner"]["label"]["kernel"], update["unet"]["kernel"]):
        np.testing.assert_allclose(leaf, -0.5 * (clipped + 0.1), rtol=1e-4)


def test_without_learning_prototypes_do_not_move() -> None:
    for update in stepped(prototype_optimizer(optax.sgd(0.5), "none", 0.25), [ONES, ONES]):
        assert not update["conditioner"]["prototypes"].any()
        assert update["unet"]["kernel"].tolist() == [-0.5, -0.5]


def test_in_one_step_mode_each_prototype_moves_when_its_class_first_comes_and_never_again() -> None:
    def gradient(*classes: int):
        rows = jnp.isin(jnp.arange(6), jnp.array(classes))[:, None, None, None] * jnp.ones((6, 4, 4, 1))
        return {**ONES, "conditioner": {**ONES["conditioner"], "prototypes": rows}}

    steps = stepped(
        prototype_optimizer(optax.sgd(0.5), "one_step", 0.25), [gradient(1), gradient(1, 2), gradient(1, 2)]
    )
    moved = [sorted(set(np.flatnonzero(u["conditioner"]["prototypes"].any((1, 2, 3))).tolist())) for u in steps]
    assert moved == [[1], [2], []]
    np.testing.assert_allclose(steps[0]["conditioner"]["prototypes"][1], -0.25, rtol=1e-6)
    np.testing.assert_allclose(steps[1]["conditioner"]["prototypes"][2], -0.25, rtol=1e-6)  # however late it comes


def test_a_row_passes_once_whatever_comes_before_it_as_zeros() -> None:
    transform, seen = first_step_of_rows(), []
    state = transform.init(jnp.zeros((3, 2)))
    for rows in ([[0, 0], [1, 0], [0, 0]], [[2, 2], [3, 3], [0, 0]], [[4, 4], [4, 4], [0, -1]]):
        update, state = transform.update(jnp.array(rows, jnp.float32), state)
        seen.append(update.tolist())
    assert seen == [[[0, 0], [1, 0], [0, 0]], [[2, 2], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, -1]]]


def test_only_the_rows_of_the_named_classes_are_moved_in_the_named_parameters() -> None:
    new = jnp.array([False, True, False, False, True, False])
    bad = {**ONES, "conditioner": {**ONES["conditioner"], "prototypes": jnp.full((6, 4, 4, 1), jnp.nan).at[1].set(2.0)}}
    transform = only_classes(lambda method: method["new"], (PATH, LABELS))
    (update,) = stepped(transform, [bad], {"new": new})
    prototypes = update["conditioner"]["prototypes"]
    assert not prototypes[[0, 2, 3, 5]].any()  # not even what is no number
    assert (prototypes[1] == 2).all()
    assert update["conditioner"]["labels"].tolist() == [[float(c in (1, 4))] * 3 for c in range(6)]
    assert update["conditioner"]["label"]["kernel"].tolist() == [1, 1, 1]
    (update,) = stepped(only_classes(lambda method: method["new"], (PATH,)), [ONES], {"new": new})
    assert update["conditioner"]["labels"].all()
