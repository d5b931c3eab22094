"""Training data that does not fit on the device: the host gathers the rows of one call and sends them along.

The rows are computed by the very functions that the compiled step uses when the data is on the device, so both ways
read the same examples at the same steps.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import Streams, step_rows

Feed = Callable[[Context, int], dict[str, tuple[np.ndarray, np.ndarray]]]


def make_feed(
    streams: Streams, images: np.ndarray, labels: np.ndarray, steps_per_call: int, own: Callable[[int], slice] = slice
) -> Feed:
    """Makes (context, first step) -> stream -> (images uint8 [b, K, H, W, C], labels int32 [b, K]) of the next call.

    Args:
      streams: which examples at which step.
      images: uint8 [N, H, W, C].
      labels: int32 [N].
      steps_per_call: K.
      own: (B) -> the rows of a batch that this process's devices take; all by default. No others are gathered.
    """
    reading = {name: stream for name, stream in streams.items() if stream.rows is not None}

    @jax.jit
    def rows_of_call(context: Context, first: jax.Array) -> dict[str, jax.Array]:
        steps = first + jnp.arange(steps_per_call)
        rows = {}
        for name, stream in reading.items():
            ids = jnp.arange(stream.batch_size)[own(stream.batch_size)]
            rows_at = functools.partial(step_rows, name, stream, context, ids=ids)
            rows[name] = jax.vmap(rows_at, out_axes=1)(steps)
        return rows

    def feed(context: Context, first: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        rows = jax.device_get(rows_of_call(context, jnp.int32(first)))
        return {name: (images[r], labels[r]) for name, r in rows.items()}

    return feed
