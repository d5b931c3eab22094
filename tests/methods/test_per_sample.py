"""Gradients of single examples are those that each has alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.methods.denoising import noise_examples
from jdcl_jax.methods.per_sample import half_mse, output_size, per_sample_gradients, running_mean


def examples(count: int = 6) -> Examples:
    key = named_key(1, "examples")
    labels = jnp.arange(count) % 6
    return Examples(
        jax.random.uniform(key, (count, 4, 4, 1), minval=-1.0), labels, example_keys(key, jnp.arange(count))
    )


@pytest.mark.parametrize("of", [half_mse, output_size])
@pytest.mark.parametrize("conditional", [False, True])
def test_each_example_has_the_gradient_that_it_has_alone(affine, of, conditional: bool) -> None:
    if conditional:
        affine.setup = dataclasses.replace(affine.setup, num_classes=6, label_dropout=0.5)
    setup, params, together = affine.setup, affine.params, examples()
    values, gradients = per_sample_gradients(params, noise_examples(setup, together), of(setup))
    assert values.shape == (6,)
    for i in range(6):
        alone = Examples(together.image[i : i + 1], together.label[i : i + 1], together.key[i : i + 1])
        value, gradient = per_sample_gradients(params, noise_examples(setup, alone), of(setup))
        np.testing.assert_allclose(values[i], value[0], rtol=1e-6)
        for name in gradient:
            np.testing.assert_allclose(gradients[name][i], gradient[name][0], rtol=1e-5, atol=1e-7)
    assert len({float(v) for v in values}) == 6


def test_networks_are_asked_without_dropout(affine) -> None:
    seen = []

    def apply(params, x_t, t, labels, keys):
        seen.append((x_t.shape, keys))
        return affine.setup.apply(params, x_t, t, labels, keys)

    setup = dataclasses.replace(affine.setup, apply=apply)
    for of in (half_mse, output_size):
        per_sample_gradients(affine.params, noise_examples(setup, examples()), of(setup))
    assert seen
    assert all(call == ((1, 4, 4, 1), None) for call in seen)


def test_a_running_mean_is_the_mean_so_far() -> None:
    values, mean = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32), jnp.full(3, jnp.nan)
    for step, value in enumerate(values):
        mean = running_mean(mean, value, jnp.int32(step))
        np.testing.assert_allclose(mean, values[: step + 1].mean(0), rtol=1e-5, atol=1e-6)
