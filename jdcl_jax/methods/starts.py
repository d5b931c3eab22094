"""A stream of bare beginnings: keys and labels of old classes, for losses that make their own inputs from them."""

import jax
import jax.numpy as jnp

from jdcl_jax.data.batches import Examples
from jdcl_jax.methods.method import Setup
from jdcl_jax.methods.teacher import start_labels
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import Stream


def start_stream(setup: Setup) -> Stream:
    """Examples whose images are empty; each has a key of its own and the label of an old class."""

    def draw(context: Context, keys: jax.Array) -> Examples:
        empty = jnp.zeros((keys.shape[0], *setup.image_shape))
        return Examples(image=empty, label=start_labels(context, keys), key=keys)

    return Stream(setup.batch_size, draw=draw)
