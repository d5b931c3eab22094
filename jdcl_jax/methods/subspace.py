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
    return sum(jax.tree.leaves(parts), start=jnp.zeros((), jnp.float32))


def combine(weights: jax.Array, directions: PyTree) -> PyTree:
    """Weighted sums of directions: [m, n] and [n, ...] -> [m, ...]."""
    return jax.tree.map(lambda x: _multiply(weights, _rows(x)).reshape((weights.shape[0], *x.shape[1:])), directions)


def orthonormal(directions: PyTree) -> PyTree:
    """Orthonormal directions with the same span, by Gram and Schmidt.

    One that all but depends on those before it becomes an arbitrary one beside them, or zeros; zeros stay zeros.
    """
    count = len(jax.tree.leaves(directions)[0])

    def place(index: jax.Array, kept: PyTree) -> PyTree:
        row = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), kept)
        # What the first subtraction leaves of a dependent one is rounding, which is not orthogonal itself.
        for _ in range(6):
            row = _unit(row)
            along = jnp.where(jnp.arange(count) < index, products(row, kept), 0.0)
            row = jax.tree.map(jnp.subtract, row, combine(along, kept))
        # Rounding that lies in the span of those before it shrinks every time: there is nothing beside them.
        nothing = products(row, row)[0, 0] < 0.25
        row = jax.tree.map(lambda r: jnp.where(nothing, 0.0, r), _unit(row))
        return jax.tree.map(lambda x, r: jax.lax.dynamic_update_slice_in_dim(x, r, index, 0), kept, row)

    return jax.lax.fori_loop(0, count, place, directions)


def _unit(row: PyTree) -> PyTree:
    """Of length 1; zeros stay zeros."""
    # By its largest entry first, so that the square of its length stays in float32's range.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(row)]))
    row = jax.tree.map(lambda x: x / jnp.where(largest == 0.0, 1.0, largest), row)
    norm = jnp.sqrt(products(row, row))
    return jax.tree.map(lambda x: x / jnp.where(norm == 0.0, 1.0, norm).reshape((1,) * x.ndim), row)


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
