"""Replay with quotas: a model's samples, labelled by its own classifier, until every class has its share.

Images lie in a store by class: class number p of the sequence has the rows p * quota .. (p + 1) * quota - 1. All that
counting is done on the device, so no step waits for the host; when all quotas are filled the steps that are left do
nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import Examples, to_float, to_uint8
from jdcl_jax.data.views import Views
from jdcl_jax.keys import example_keys
from jdcl_jax.methods.method import Phase, Setup
from jdcl_jax.training.gradients import Across, Metrics
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import ACTIVE, Tracked
from jdcl_jax.training.streams import Stream

SOURCES = ("old", "local")
BUDGET = 2  # samples that are drawn at most, over the sum of the quotas (arXiv 2411.08224 [code])
AT_ONCE = 1000  # images that are topped up at a time

Sample = Callable[[Context, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(context, source int32 [], keys [B]) -> images float32 [B, H, W, C] in [-1, 1], labels int32 [B]."""


def draw_steps(num_classes: int, quota: int, batch_size: int) -> int:
    """Steps in which the budget for so many classes is drawn."""
    return -(-BUDGET * num_classes * quota // batch_size)


def empty_draw(classes: Sequence[int], quota: int, image_shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Nothing drawn yet.

    Returns: "images" uint8 [P * quota, H, W, C]; "counts" int32 [P], accepted; "labelled" int32 [2, P + 1], how often
    each source's samples were given each class, and last how often one that is in no task.
    """
    return {
        "images": np.zeros((len(classes) * quota, *image_shape), np.uint8),
        "counts": np.zeros(len(classes), np.int32),
        "labelled": np.zeros((len(SOURCES), len(classes) + 1), np.int32),
    }


def accept(
    drawn: dict[str, jax.Array],
    images: jax.Array,
    labels: jax.Array,
    *,
    classes: jax.Array,
    wanted: jax.Array,
    source: jax.Array,
) -> dict[str, jax.Array]:
    """Puts samples where their classes still lack some, in the order of the batch.

    Args:
      drawn: as `empty_draw` makes it.
      images: uint8 [B, H, W, C].
      labels: int32 [B].
      classes: int32 [P], the classes in the order of the sequence.
      wanted: int32 [P], quotas of this source; 0 for classes that it is not asked for.
      source: int32 [], its number in `SOURCES`.
    """
    capacity, quota = len(drawn["images"]), len(drawn["images"]) // len(drawn["counts"])
    hits = labels[:, None] == classes[None, :]
    places = drawn["counts"] + jnp.cumsum(hits, axis=0) - 1
    taken = hits & (places < wanted)
    rows = jnp.sum(jnp.where(taken, jnp.arange(len(classes)) * quota + places, 0), axis=1)
    rows = jnp.where(jnp.any(taken, axis=1), rows, capacity)  # a row that does not exist is dropped
    strange = jnp.sum(~jnp.any(hits, axis=1))
    counted = jnp.append(jnp.sum(hits, axis=0), strange).astype(jnp.int32)
    return {
        "images": drawn["images"].at[rows].set(images, mode="drop"),
        "counts": drawn["counts"] + jnp.sum(taken, axis=0, dtype=jnp.int32),
        "labelled": drawn["labelled"].at[source].add(counted),
    }


def quota_phase(setup: Setup, name: str, steps: int, batch_size: int, sample: Sample, passes: float) -> Phase:
    """Fills `TrainState.tracked["drawn"]`.

    The context holds under "draw": "classes" int32 [P]; "wanted" int32 [2, P], the quotas of each source; "old_steps"
    int32 [], after which the second source is asked.

    Args:
      setup: of the run.
      name: of the phase.
      steps: the budget of both sources.
      batch_size: samples a step, over all devices.
      sample: draws and labels them.
      passes: cost of one sample, in forward passes.
    """

    def empty(context: Context, keys: jax.Array) -> Examples:
        del context
        return Examples(image=jnp.zeros((len(keys), 0)), label=jnp.zeros(len(keys), jnp.int32), key=keys)

    def observe(
        tracked: Tracked, params: PyTree, batch: dict[str, Examples], context: Context, over: Across
    ) -> tuple[Tracked, Metrics]:
        del params
        plan, drawn, keys = context.method["draw"], tracked["drawn"], batch["sample"].key
        source = (context.step >= plan["old_steps"]).astype(jnp.int32)
        wanted = jnp.asarray(plan["wanted"])[source]

        def more() -> dict[str, jax.Array]:
            images, labels = sample(context, source, keys)
            found = over.gather({"images": to_uint8(images), "labels": labels})
            return accept(drawn, **found, classes=jnp.asarray(plan["classes"]), wanted=wanted, source=source)

        lacking = jnp.any(drawn["counts"] < wanted)
        drawn = jax.lax.cond(lacking, more, lambda: drawn)
        filled = jnp.sum(jnp.minimum(drawn["counts"], wanted)) / jnp.maximum(jnp.sum(wanted), 1)
        return {**tracked, "drawn": drawn}, {ACTIVE: lacking.astype(jnp.float32), "filled": filled.astype(jnp.float32)}

    cost = passes * batch_size / setup.batch_size
    return Phase(
        name,
        None,
        {"sample": Stream(batch_size, draw=empty, option="method.replay_batch")},
        steps,
        passes=cost,
        observe=observe,
    )


def top_up(drawn: dict[str, Any], wanted: np.ndarray, views: Views, key: jax.Array) -> np.ndarray:
    """Fills what a class lacks with weak views of its own samples (arXiv 2411.08224 [code]); uint8 like the images.

    Args:
      drawn: what was drawn.
      wanted: int [P], the quotas.
      views: flips and crops.
      key: names the task.
    """
    images, counts = np.array(drawn["images"]), np.asarray(drawn["counts"])
    quota = len(images) // len(counts)
    short = [p for p in range(len(counts)) if 0 < counts[p] < wanted[p]]
    rows = np.concatenate([p * quota + np.arange(counts[p], wanted[p]) for p in short] or [np.zeros(0, np.int64)])
    place, number = rows // quota, rows % quota
    originals = images[place * quota + number % counts[place]]
    for first in range(0, len(rows), AT_ONCE):
        some = slice(first, first + AT_ONCE)
        keys = example_keys(key, jnp.asarray(rows[some]))
        images[rows[some]] = np.asarray(to_uint8(views.weak(to_float(jnp.asarray(originals[some])), keys)))
    return images


def replay_facts(
    drawn: dict[str, Any], wanted: np.ndarray, classes: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """What is recorded of a draw: for each class asked for, and a warning for each that never appeared.

    Args:
      drawn: what was drawn.
      wanted: int [2, P].
      classes: the P classes.
      names: of all classes of the data set, or none.
    """
    counts, labelled = np.asarray(drawn["counts"]), np.asarray(drawn["labelled"])
    replay, warnings = [], []
    for source, place in zip(*np.nonzero(wanted), strict=True):
        asked, accepted = int(wanted[source, place]), int(counts[place])
        number = classes[place]
        replay.append(
            {
                "class": number,
                "source": SOURCES[source],
                "quota": asked,
                "drawn": int(labelled[source, place]),
                "accepted": accepted,
                "topped_up": asked - accepted if accepted else 0,
            }
        )
        if not accepted:
            name = f"class {number} ({names[number]})" if names else f"class {number}"
            samples = int(labelled[source].sum())
            warnings.append(
                f"{name} never appeared in {samples:,} samples of the {SOURCES[source]} model; it is not replayed "
                "and will be forgotten"
            )
    totals = {name: int(labelled[i].sum()) for i, name in enumerate(SOURCES) if wanted[i].any()}
    return {"samples": totals, "replay": replay, **({"warnings": warnings} if warnings else {})}
