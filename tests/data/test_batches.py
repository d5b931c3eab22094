"""The order of examples: every row once an epoch, each epoch anew, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import random_flip, shuffled_rows, to_float, to_uint8
from jdcl_jax.keys import example_keys

KEY = jax.random.key(7)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 97, 1000])
def test_an_epoch_reads_every_row_once(count: int) -> None:
    for epoch in range(3):
        rows = shuffled_rows(KEY, jnp.arange(count * epoch, count * (epoch + 1)), count)
        assert sorted(rows.tolist()) == list(range(count))


def test_epochs_and_keys_have_orders_of_their_own() -> None:
    rows = np.asarray(shuffled_rows(KEY, jnp.arange(3000), 1000)).reshape(3, 1000)
    other = np.asarray(shuffled_rows(jax.random.key(8), jnp.arange(1000), 1000))
    orders = [*rows, other, np.arange(1000)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.mean(a == b) < 0.02
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_batches_do_not_depend_on_how_positions_are_grouped() -> None:
    whole = shuffled_rows(KEY, jnp.arange(40), 17)
    parts = [shuffled_rows(KEY, jnp.arange(first, first + 8), 17) for first in range(0, 40, 8)]
    assert whole.tolist() == np.concatenate(parts).tolist()


def test_the_number_of_rows_may_be_traced() -> None:
    traced = jax.jit(shuffled_rows)(KEY, jnp.arange(20), jnp.int32(20))
    assert traced.tolist() == shuffled_rows(KEY, jnp.arange(20), 20).tolist()


def test_pairs_of_rows_are_spread_evenly() -> None:
    # Over many epochs the first position reads every row about equally often.
    first = np.asarray(shuffled_rows(KEY, jnp.arange(0, 8 * 4000, 8), 8))
    counts = np.bincount(first, minlength=8)
    assert np.all(np.abs(counts - 500) < 5 * np.sqrt(500))


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    pixels = jnp.arange(256, dtype=jnp.uint8)
    values = to_float(pixels)
    assert (float(values[0]), float(values[-1])) == (-1.0, 1.0)
    assert to_uint8(values).tolist() == pixels.tolist()
    assert to_uint8(jnp.array([-5.0, 5.0])).tolist() == [0, 255]


def test_about_half_of_the_images_are_mirrored_left_to_right() -> None:
    images = jnp.broadcast_to(jnp.arange(6.0).reshape(1, 2, 3, 1), (400, 2, 3, 1))
    flipped = np.asarray(random_flip(images, example_keys(KEY, jnp.arange(400))))
    mirrored = np.asarray(images)[:, :, ::-1]
    is_mirrored = (flipped == mirrored).all(axis=(1, 2, 3))
    is_same = (flipped == np.asarray(images)).all(axis=(1, 2, 3))
    assert np.all(is_mirrored ^ is_same)
    assert 150 < is_mirrored.sum() < 250
