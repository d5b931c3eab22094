"""Inner products of a denoiser's per-sample gradients at one timestep."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.arrays import Split
from jdcl_jax.data.batches import Examples, to_float
from jdcl_jax.diffusion.process import prediction_target, q_sample
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.gradient_structure import Structure, structure
from jdcl_jax.keys import example_keys, example_normal, named_key, subkeys
from jdcl_jax.methods.denoising import Noised
from jdcl_jax.methods.method import Setup
from jdcl_jax.methods.per_sample import half_mse, per_sample_gradients
from jdcl_jax.training.backend import compiler_options
from jdcl_jax.training.state import PyTree

BATCH = 16  # gradients at a time, each a copy of the parameters
MEMORY_GIB = 4  # for all gradients of one timestep, on the host
BLOCK = 2**18  # parameters whose inner products are added up in float64 at a time


def fitting(parameters: int) -> int:
    """How many gradients of so many numbers fit into memory."""
    return int(MEMORY_GIB * 2**30 / (4 * parameters))


def structures(setup: Setup, params: PyTree, split: Split, timesteps: np.ndarray) -> Iterator[tuple[int, Structure]]:
    """(t, what the images' gradients at t have in common), t after t.

    Gradients are of half the MSE, each image with noise of its own, the same at every t.

    Raises:
      UserError: the gradients do not fit into memory.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if len(split) > (most := fitting(size)):
        raise UserError(f"{len(split)} gradients of {size:,} numbers do not fit into memory; write --images={most}")
    # Compiled once: t is an argument.
    gradients = jax.jit(lambda p, examples, t: _gradients(setup, p, examples, t), compiler_options=compiler_options())
    keys = example_keys(named_key(0, "gradients"), jnp.arange(len(split)))
    for t in timesteps:
        flat = np.empty((len(split), size), np.float32)
        for first in range(0, len(split), BATCH):
            places = np.minimum(np.arange(first, first + BATCH), len(split) - 1)
            examples = Examples(
                to_float(jnp.asarray(split.images[places])), jnp.asarray(split.labels[places]), keys[places]
            )
            found = np.asarray(gradients(params, examples, jnp.int32(t)))
            flat[first : first + BATCH] = found[: len(split) - first]
        yield int(t), structure(inner_products(flat))


def inner_products(rows: np.ndarray) -> np.ndarray:
    """All inner products of rows float32 [N, P], float64 [N, N], without a float64 copy of the whole."""
    blocks = (rows[:, first : first + BLOCK].astype(np.float64) for first in range(0, rows.shape[1], BLOCK))
    return sum((block @ block.T for block in blocks), start=np.zeros((len(rows), len(rows))))


def _gradients(setup: Setup, params: PyTree, examples: Examples, t: jax.Array) -> jax.Array:
    """Float32 [b, P]: every example's gradient at timestep t [], all parameters in a row."""
    steps = jnp.full(len(examples.label), t)
    eps = example_normal(subkeys(examples.key, "eps"), setup.image_shape)
    x_t = q_sample(setup.schedule, examples.image, steps, eps)
    target = prediction_target(setup.schedule, setup.sampler.prediction, examples.image, steps, eps)
    noised = Noised(x_t, steps, examples.label if setup.num_classes else None, target)
    _, found = per_sample_gradients(params, noised, half_mse(setup))
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(found)], axis=1)
