"""JDCL's local stage: a network learns the new task's real data, all labelled or not (arXiv 2411.08224)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import Examples
from jdcl_jax.methods.buffer import buffer_rows
from jdcl_jax.methods.denoising import cross_entropy, denoising_losses, plain_phase, strong_logits
from jdcl_jax.methods.method import Phase, Setup
from jdcl_jax.training.state import Array, Context, PyTree
from jdcl_jax.training.streams import Stream, range_rows

LOCAL = "local"  # the name of the phase
LABELLED = "labelled"  # of a stream, and of its rows in the context

UNLABELLED = ("fixmatch", "denoise", "ignore")


def local_phase(setup: Setup, steps: int, *, unlabelled: str, threshold: float) -> Phase:
    """MSE + alpha CE where all labels are known; else what `unlabelled` says of the images without.

    - "fixmatch": MSE on all images + alpha CE on labelled ones + alpha FixMatch on all [code].
    - "denoise": MSE on all images + alpha CE on labelled ones.
    - "ignore": MSE and alpha CE on labelled images alone.

    A batch of labelled images is as large as one of all images, drawn with replacement, and shown to the classifier in
    strong views; the pseudo-label is that of the denoiser's weak view [ours].
    """
    current = Stream(setup.batch_size, rows=range_rows("current"), view=setup.views.weak)
    labelled = Stream(setup.batch_size, rows=buffer_rows(LABELLED), view=setup.views.weak)
    if not np.any(setup.labels < 0):
        return plain_phase(setup, current, steps, name=LOCAL)
    if unlabelled == "ignore":
        return plain_phase(_all_known(setup), labelled, steps, name=LOCAL)
    return _semi_supervised(setup, current, labelled, steps, threshold if unlabelled == "fixmatch" else None)


def _all_known(setup: Setup) -> Setup:
    assert setup.classifier is not None
    return replace(setup, classifier=replace(setup.classifier, label_fraction=1.0))


def _semi_supervised(setup: Setup, current: Stream, labelled: Stream, steps: int, threshold: float | None) -> Phase:
    classifier = setup.classifier
    assert classifier is not None
    weight = classifier.weight

    def loss(params: PyTree, batch: dict[str, Examples], context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        del context
        known, everything = batch[LABELLED], batch["current"]
        (mse,) = denoising_losses(setup, params, [everything])
        if threshold is None:
            supervised = jnp.mean(cross_entropy(strong_logits(setup, params, [known]), known.label))
            return mse + weight * supervised, {"loss_denoising": mse, "loss_class": weight * supervised}
        logits = strong_logits(setup, params, [known, everything])
        supervised = jnp.mean(cross_entropy(logits[: len(known.label)], known.label))
        pseudo, sure = pseudo_labels(classifier.logits(params, everything.image, None), threshold)
        consistency = jnp.mean(cross_entropy(logits[len(known.label) :], jnp.where(sure, pseudo, -1)))
        total = mse + weight * (supervised + consistency)
        return total, {
            "loss_denoising": mse,
            "loss_class": weight * supervised,
            "loss_fixmatch": weight * consistency,
            "sure": jnp.mean(sure.astype(jnp.float32)),
        }

    classes = setup.class_passes if threshold is None else 2 * setup.class_passes + classifier.passes
    return Phase(LOCAL, loss, {"current": current, LABELLED: labelled}, steps, passes=3 + classes)


def pseudo_labels(logits: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
    """The likeliest classes, int32 [B], and whether their probability reaches the threshold, bool [B]; no gradient."""
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits))
    labels = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
    return labels, jnp.max(probabilities, axis=-1) >= threshold


def labelled_rows(setup: Setup, task: int) -> dict[str, Array]:
    """The training rows of a task (from 0) whose labels are known, as a stream reads them; of one shape for all."""
    sizes = [int(np.sum(setup.labels[setup.start(k) : setup.start(k + 1)] >= 0)) for k in range(setup.num_tasks)]
    rows = np.zeros(max(sizes), np.int32)
    own = np.flatnonzero(setup.labels[setup.start(task) : setup.start(task + 1)] >= 0) + setup.start(task)
    rows[: len(own)] = own
    return {"rows": rows, "count": np.int32(len(own))}
