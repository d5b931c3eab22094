"""Gradient norms layer by layer: where to look when a loss is no longer a number."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.training.state import PyTree

LAYER_NORMS = "gradient_norms"
"""The metric of a train step that holds them."""

MOST = 3  # layers that a message names


def layer_names(params: PyTree) -> list[str]:
    """The layers of a network's parameters, as "unet/middle/conv1", in the order of `layer_norms`."""
    return [name for name, _ in _layers(params)]


def layer_norms(gradients: PyTree) -> jax.Array:
    """The L2 norm of each layer's gradient, float32 [L]; kernel and bias of a layer together."""
    return jnp.sqrt(jnp.stack([sum(jnp.sum(jnp.square(leaf)) for leaf in leaves) for _, leaves in _layers(gradients)]))


def _layers(tree: PyTree) -> list[tuple[str, list[jax.Array]]]:
    leaves = [("/".join(map(_word, path[:-1])), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    groups = itertools.groupby(leaves, key=lambda pair: pair[0])
    return [(name, [leaf for _, leaf in group]) for name, group in groups]


def _word(key: object) -> str:
    return str(getattr(key, "key", getattr(key, "name", key)))


def largest(names: list[str], norms: np.ndarray) -> str:
    """The layers with the largest gradients in words, those that are not finite first; `norms` is [L]."""
    order = np.argsort(np.where(np.isfinite(norms), -norms, -np.inf), kind="stable")[:MOST]
    return ", ".join(f"{names[i]} {norms[i]:.3g}" for i in order)
