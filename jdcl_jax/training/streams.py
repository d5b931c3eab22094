"""Where a step's examples come from.

A stream names either rows of the training data, which the step gathers, or draws its examples from the context by
itself, as samples of a teacher are drawn. Both are pure functions of keys, so every example is the same on any device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jdcl_jax.data.batches import Examples, shuffled_rows, to_float
from jdcl_jax.keys import example_keys, fold_name, subkeys
from jdcl_jax.training.state import Context, Range

Rows = Callable[[Context, jax.Array, jax.Array], jax.Array]
"""(context, key of the stream, positions int32 [B]) -> rows of the training data, int32 [B]."""

Draw = Callable[[Context, jax.Array], Examples]
"""(context, keys [B]) -> examples."""

View = Callable[[jax.Array, jax.Array], jax.Array]
"""(images [B, H, W, C] in [-1, 1], keys [B]) -> images of the same shape."""


@dataclass(frozen=True)
class Stream:
    """A source of `batch_size` examples a step: exactly one of `rows` and `draw` is given.

    Attributes:
      batch_size: examples a step, over all devices.
      rows: names rows of the training data.
      draw: makes the examples from the context.
      view: augments the images of `rows`.
      multiple: of which a device's share of the batch must be a multiple.
      option: the key of the config that sets `batch_size`, for messages; empty: it follows from train.batch_size.
    """

    batch_size: int
    rows: Rows | None = None
    draw: Draw | None = None
    view: View | None = None
    multiple: int = 1
    option: str = ""


Streams = Mapping[str, Stream]
Fed = Mapping[str, tuple[jax.Array, jax.Array]]
"""For data that is not on the device: stream -> (images uint8 [B, ...], labels int32 [B]) of one step."""


def range_rows(name: str) -> Rows:
    """Shuffled epochs over the `Range` that `context.method[name]` holds."""

    def rows(context: Context, key: jax.Array, positions: jax.Array) -> jax.Array:
        part: Range = context.method[name]
        return jnp.asarray(part.start) + shuffled_rows(key, positions, jnp.asarray(part.count))

    return rows


def step_rows(name: str, stream: Stream, context: Context, step: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows that a stream reads at a step, for examples `ids` int32 [b] of its batch."""
    assert stream.rows is not None
    return stream.rows(context, fold_name(context.key, name), step * stream.batch_size + ids)


def examples_of(images: jax.Array, labels: jax.Array, keys: jax.Array, view: View | None) -> Examples:
    """Examples of images float32 [B, H, W, C], augmented by `view`."""
    viewed = images if view is None else view(images, subkeys(keys, "view"))
    return Examples(image=viewed, label=labels, key=keys, original=images)


def draw_batch(streams: Streams, context: Context, ids: Mapping[str, jax.Array], fed: Fed) -> dict[str, Examples]:
    """All examples of one step.

    Args:
      streams: name -> stream.
      context: key, data, the method's arrays and the number of the step.
      ids: stream -> numbers of the examples in the whole batch that this device makes, int32 [b].
      fed: rows gathered by the host; empty where the data is in `context.pool`.
    """
    batch = {}
    for name, stream in streams.items():
        key = fold_name(fold_name(context.key, name), "example")
        keys = example_keys(jax.random.fold_in(key, context.step), ids[name])
        if stream.draw is not None:
            batch[name] = stream.draw(context, keys)
            continue
        if name in fed:
            images, labels = fed[name]
        else:
            assert context.pool is not None
            rows = step_rows(name, stream, context, jnp.asarray(context.step), ids[name])
            images, labels = jnp.asarray(context.pool.images)[rows], jnp.asarray(context.pool.labels)[rows]
        batch[name] = examples_of(to_float(images), labels, keys, stream.view)
    return batch
