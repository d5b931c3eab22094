"""Class prototypes: an image for each class that the denoiser is shown, begun from the data and learned (2312.06710).

They are parameters, `params["conditioner"]["prototypes"]` float32 [C, H, W, channels], with an optimiser of their own.
A prototype is learned in the task of its class alone: before and after it is not moved by a bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdcl_jax.data.batches import Examples
from jdcl_jax.keys import named_key
from jdcl_jax.methods.method import Phase, Setup
from jdcl_jax.training.gradients import Across, Metrics
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked

STARTS = ("confident", "mean", "noise")
UPDATES = ("learned", "one_step", "none")
PROTOTYPE = "prototype"  # the name of the phase, and of what is tracked
PATH, LABELS = ("conditioner", "prototypes"), ("conditioner", "labels")
"""Paths of the parameters that have a row for each class."""

LogP = Callable[[Context, jax.Array], jax.Array]
"""(context, images [B, H, W, C]) -> log-probabilities [B, C] of a classifier."""


# -- where they begin


def nothing_found(setup: Setup) -> Tracked:
    """No image seen of any class: zeros for the best log-probability [C], its image and the number of images [C]."""
    return {
        PROTOTYPE: {
            "confidence": np.zeros(setup.num_classes, np.float32),
            "image": np.zeros((setup.num_classes, *setup.image_shape), np.float32),
            "count": np.zeros(setup.num_classes, np.int32),
        }
    }


def most_confident(found: dict[str, jax.Array], images: jax.Array, labels: jax.Array, log_p: jax.Array) -> Any:
    """The image of each class with the highest log-probability of that class, among these and those found before.

    Args:
      found: as `nothing_found` makes it.
      images: [B, H, W, channels].
      labels: int [B].
      log_p: [B], of each image's own class.
    """
    own = labels[None, :] == jnp.arange(len(found["count"]))[:, None]  # [C, B]
    offered = jnp.where(own, log_p[None, :], -jnp.inf)
    best, value = jnp.argmax(offered, axis=1), jnp.max(offered, axis=1)
    before = jnp.where(found["count"] > 0, found["confidence"], -jnp.inf)
    better = value > before
    return {
        "confidence": jnp.where(better, value, found["confidence"]),
        "image": jnp.where(better[:, None, None, None], images[best], found["image"]),
        "count": found["count"] + jnp.sum(own, axis=1, dtype=jnp.int32),
    }


def mean_image(found: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> Any:
    """The mean of all images of each class, these and those before; arguments as of `most_confident`."""
    own = (labels[None, :] == jnp.arange(len(found["count"]))[:, None]).astype(jnp.float32)
    count = found["count"] + jnp.sum(own, axis=1).astype(jnp.int32)
    moved = jnp.einsum("cb,bhwd->chwd", own, images) - jnp.sum(own, axis=1)[:, None, None, None] * found["image"]
    return {**found, "image": found["image"] + moved / jnp.maximum(count, 1)[:, None, None, None], "count": count}


def prototype_phase(setup: Setup, task: int, start: str, log_p: LogP, passes: float, streams: Any) -> Phase:
    """Looks at every image of the task (from 0) once, as it was before it was augmented: there its prototypes begin."""
    steps = -(-setup.task_sizes[task] // setup.batch_size)

    def observe(
        tracked: Tracked, params: PyTree, batch: dict[str, Examples], context: Context, over: Across
    ) -> tuple[Tracked, Metrics]:
        del params
        examples, part = batch["current"], context.method["current"]
        place = context.step * setup.batch_size + over.start(len(examples.label)) + jnp.arange(len(examples.label))
        labels = jnp.where(place < part.count, examples.label, -1)  # the last batch begins the task anew
        images = examples.image if examples.original is None else examples.original
        said = jnp.zeros(len(labels))
        if start == "confident":
            said = jnp.take_along_axis(log_p(context, images), examples.label[:, None], axis=1)[:, 0]
        seen = over.gather({"images": images, "labels": labels, "log_p": said})
        found = tracked[PROTOTYPE]
        if start == "confident":
            found = most_confident(found, seen["images"], seen["labels"], seen["log_p"])
        else:
            found = mean_image(found, seen["images"], seen["labels"])
        return {**tracked, PROTOTYPE: found}, {"log_p": jnp.mean(seen["log_p"])}

    return Phase(PROTOTYPE, None, streams, steps, passes=passes, observe=observe)


def noise_images(setup: Setup, classes: Sequence[int]) -> np.ndarray:
    """Standard normal noise clipped to [-1, 1], float32 [C, H, W, channels]; zeros for other classes."""
    images = np.zeros((setup.num_classes, *setup.image_shape), np.float32)
    for c in classes:
        images[c] = np.clip(jax.random.normal(named_key(setup.seed, "prototype", c), setup.image_shape), -1.0, 1.0)
    return images


def with_prototypes(params: PyTree, images: np.ndarray, classes: Sequence[int]) -> PyTree:
    """The parameters with the prototypes of some classes replaced; images [C, H, W, channels]."""
    conditioner = dict(params["conditioner"])
    prototypes = np.array(conditioner["prototypes"])
    prototypes[list(classes)] = np.asarray(images)[list(classes)]
    return {**params, "conditioner": {**conditioner, "prototypes": prototypes}}


# -- how they are learned


def prototype_optimizer(base: optax.GradientTransformation, update: str, rate: float) -> optax.GradientTransformation:
    """`base` for all parameters but the prototypes, which have Adam of their own; "one_step": each is moved once.

    The released code moves a prototype once per task, by what looks like a bug [code]: here when its class first comes,
    by `rate` against the sign of the gradient, which is Adam's first step.
    """
    if update == "none":
        own = optax.set_to_zero()
    elif update == "one_step":
        own = optax.chain(optax.scale_by_sign(), optax.scale(-rate), first_step_of_rows())
    else:
        own = optax.adam(rate)

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: "own" if _names(path) == PATH else "base", params)

    return optax.partition({"own": own, "base": base}, labels)


class Moved(NamedTuple):
    """Which rows have been moved, bool [C] for each leaf."""

    rows: PyTree


def first_step_of_rows() -> optax.GradientTransformation:
    """Lets the first update of each row pass that is not zero, and none after it."""

    def init(params: PyTree) -> Moved:
        return Moved(jax.tree.map(lambda x: jnp.zeros(x.shape[0], bool), params))

    def update(updates: PyTree, state: Moved, params: PyTree = None) -> tuple[PyTree, Moved]:
        del params

        def passed(u: jax.Array, moved: jax.Array) -> jax.Array:
            return jnp.where(moved.reshape(-1, *(1,) * (u.ndim - 1)), jnp.zeros_like(u), u)

        new = jax.tree.map(passed, updates, state.rows)
        rows = jax.tree.map(lambda u, moved: moved | jnp.any(u != 0, axis=tuple(range(1, u.ndim))), new, state.rows)
        return new, Moved(rows)

    return optax.GradientTransformation(init, update)


def only_classes(find: Callable[[Any], jax.Array], paths: Sequence[tuple[str, ...]]) -> optax.GradientTransformation:
    """Sets the updates of all other classes' rows of these parameters to zero; `find` gives bool [C]."""

    def update(updates: PyTree, state: Any, params: PyTree = None, *, method: Any, **extra: Any) -> tuple[PyTree, Any]:
        del params, extra
        kept = find(method)

        def masked(path: Any, u: jax.Array) -> jax.Array:
            if _names(path) not in paths:
                return u
            return jnp.where(kept.reshape(-1, *(1,) * (u.ndim - 1)), u, jnp.zeros_like(u))

        return jax.tree_util.tree_map_with_path(masked, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(part.key) for part in path)
