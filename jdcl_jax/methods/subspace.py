"""A few directions in parameter space: trees whose leaves are [r, ...], one direction each."""

import jax
import jax.numpy as jnp

from jdcl_jax.training.state import PyTree


def _rows(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(leaf.shape[0], -1)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    # The default keeps three digits on GPUs and TPUs, too few for differences of parameters and for orthogonality.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def products(a: PyTree, b: PyTree) -> jax.Array:
    """All inner products of trees [m, ...] and [n, ...], float32 [m, n]."""
    parts = jax.tree.map(lambda x, y: _multiply(_rows(x), _rows(y).T), a, b)
    return sum(jax.tree.leaves(parts), start=jnp.zeros(()))


def combine(weights: jax.Array, directions: PyTree) -> PyTree:
    """Weighted sums of directions: [m, n] and [n, ...] -> [m, ...]."""
    return jax.tree.map(lambda x: _multiply(weights, _rows(x)).reshape((weights.shape[0], *x.shape[1:])), directions)


def orthonormal(directions: PyTree) -> PyTree:
    """Orthonormal directions with the same span; those that are all but dependent get arbitrary ones beside it."""
    # The Gram matrix squares the ratio of the largest to the smallest, so that float32 is too coarse for the small ones
    # in the first round; after it they are all of about one size.
    for _ in range(3):
        directions = _whitened(directions)
    return directions


def _whitened(directions: PyTree) -> PyTree:
    """W -> (W W^T)^(-1/2) W, by the eigenvectors of the Gram matrix."""
    values, vectors = jnp.linalg.eigh(products(directions, directions))
    floor = jnp.maximum(values[-1] * 1e-10, jnp.finfo(jnp.float32).tiny)
    return combine(_multiply(vectors / jnp.sqrt(jnp.maximum(values, floor)), vectors.T), directions)


def random_directions(key: jax.Array, params: PyTree, count: int) -> PyTree:
    """Normal random directions like params, [count, ...]."""
    leaves, structure = jax.tree.flatten(params)
    drawn = [jax.random.normal(jax.random.fold_in(key, i), (count, *x.shape)) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def principal(basis: PyTree, form: jax.Array) -> tuple[jax.Array, PyTree]:
    """Eigenvalues [r], falling, and eigenvectors [r, ...] of an operator within the span of an orthonormal basis.

    `form` [r, r] holds basis_i . F basis_j (Rayleigh and Ritz).
    """
    values, vectors = jnp.linalg.eigh(form)
    return jnp.maximum(values[::-1], 0.0), combine(vectors[:, ::-1].T, basis)
