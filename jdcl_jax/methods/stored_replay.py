"""A set of teacher samples, drawn once at the beginning of a task and kept as uint8 until the next.

A store is {"images": uint8 [N, H, W, C], "labels": int32 [N]}, N enough for the last task; the same number of images
for every old class, or one more where they do not divide them, classes by turns. Of an unconditional teacher it is that
many images in all, whatever they show.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import Examples, to_float, to_uint8
from jdcl_jax.keys import fold_name, subkeys
from jdcl_jax.methods.method import Phase, Setup
from jdcl_jax.training.gradients import Across, Metrics
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream, View, examples_of

DRAW = "draw"  # the name of the phase

Draw = Callable[[Context, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(context, keys [B], labels [B] asked for) -> images float32 [B, H, W, C], labels int32 [B]."""


def store_size(setup: Setup, per_class: int, task: int) -> int:
    """Images that are drawn at the beginning of a task (from 0)."""
    return per_class * len(setup.seen_classes(task - 1))


def store_capacity(setup: Setup, per_class: int) -> int:
    """Room for the last task's store and the whole last batch."""
    largest = max(store_size(setup, per_class, setup.num_tasks - 1), 1)
    return -(-largest // setup.batch_size) * setup.batch_size


def empty_store(setup: Setup, capacity: int) -> dict[str, np.ndarray]:
    """A store without images."""
    images = np.zeros((capacity, *setup.image_shape), np.uint8)
    return {"images": images, "labels": np.zeros(capacity, np.int32)}


def draw_phase(
    setup: Setup, size: int, draw: Draw, *, passes: float, name: str = DRAW, any_turn: bool = False
) -> Phase:
    """Fills `TrainState.tracked["drawn"]`, or, of a phase with another name, that of its name; a batch a step.

    The first image is of the first old class, or with `any_turn` of a random one, another in every draw: then it is not
    always the same classes that have an image more than others.
    """
    batch_size, kept = setup.batch_size, "drawn" if name == DRAW else name

    def numbered(context: Context, keys: jax.Array) -> Examples:
        return Examples(
            image=jnp.zeros((len(keys), *setup.image_shape)), label=jnp.zeros(len(keys), jnp.int32), key=keys
        )

    def observe(
        tracked: Tracked, params: PyTree, batch: dict[str, Examples], context: Context, over: Across
    ) -> tuple[Tracked, Metrics]:
        del params
        keys = batch["replay"].key
        old, first = context.method["old"], context.step * batch_size
        turn = jax.random.randint(fold_name(context.key, "turn"), (), 0, old["count"]) if any_turn else 0
        everyone = old["classes"][(turn + first + jnp.arange(batch_size)) % old["count"]]
        labels = everyone[over.start(len(keys)) + jnp.arange(len(keys))]
        images, labels = draw(context, keys, labels)
        drawn = over.gather({"images": to_uint8(images), "labels": labels})
        store = jax.tree.map(
            lambda before, new: jax.lax.dynamic_update_slice_in_dim(before, new, first, 0), tracked[kept], drawn
        )
        return {**tracked, kept: store}, {"mean_pixel": over.mean(jnp.mean(images))}

    steps = -(-size // batch_size)
    return Phase(name, None, {"replay": Stream(batch_size, draw=numbered)}, steps, passes=passes, observe=observe)


def stored_stream(batch_size: int, name: str = "stored", view: View | None = None) -> Stream:
    """Uniform draws, with replacement, from the store in `context.method[name]`, augmented by `view`."""

    def draw(context: Context, keys: jax.Array) -> Examples:
        store = context.method[name]
        places = jax.vmap(lambda key: jax.random.randint(key, (), 0, store["count"]))(subkeys(keys, "place"))
        image, label = to_float(jnp.asarray(store["images"])[places]), jnp.asarray(store["labels"])[places]
        return Examples(image=image, label=label, key=keys) if view is None else examples_of(image, label, keys, view)

    return Stream(batch_size, draw=draw)
