"""What the network's classifier and its features say of real images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jdcl_jax.assembly import Parts
from jdcl_jax.data.arrays import Split
from jdcl_jax.data.batches import to_float
from jdcl_jax.data.tasks import TaskSplit
from jdcl_jax.evaluation.accuracy import Accuracies, accuracies
from jdcl_jax.evaluation.representation import balanced_rows, probe_row
from jdcl_jax.evaluation.scores import Measured
from jdcl_jax.methods.method import DENOISER, SOLVER
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import PyTree, TrainState

BATCH = 500  # images at a time [ours]
PROBES = {"linear_probe": "linear", "knn_probe": "knn"}


class Mapper:
    """A function of (params, images) over many images: compiled once, in batches, over all devices."""

    def __init__(self, parallel: Parallel, function: Callable[[PyTree, jax.Array], jax.Array], most: int):
        self._parallel, self._function = parallel, function
        self._batch = -(-min(BATCH, most) // parallel.count) * parallel.count
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, params: PyTree, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> float32 [N, ...]."""
        shared, found = self._parallel.replicate(params), []
        for first in range(0, len(images), self._batch):
            places = np.minimum(np.arange(first, first + self._batch), len(images) - 1)
            share = self._parallel.split(images[places])
            if self._compiled is None:
                self._compiled, _ = self._parallel.compile_map(self._of, shared, share)
            found.append(np.asarray(self._compiled(shared, share)))
        return np.concatenate(found)[: len(images)]

    def _of(self, params: PyTree, images: jax.Array) -> jax.Array:
        return self._function(params, to_float(images))


class ClassifierMeter:
    """Accuracy and quality of representation of a run's network after a task.

    Args:
      parts: the run's parts.
      parallel: the devices.
    """

    def __init__(self, parts: Parts, parallel: Parallel):
        self._parts, self._sequence = parts, parts.sequence
        classifier, solver, most = parts.setup.classifier, parts.setup.solver, len(parts.sequence.test.labels)
        self._classify: Mapper | None = None
        if classifier is not None:
            self._classify = Mapper(parallel, lambda p, x: classifier.logits(p, x, None), most)
        elif solver is not None:
            self._classify = Mapper(parallel, solver.logits, most)
        self._features = Mapper(parallel, parts.network.pooled, most)
        self._scores = parts.config.evaluation.scores

    def accuracies(self, params: PyTree, split: TaskSplit, task: int) -> Accuracies:
        """On all images of tasks up to `task` (from 0) of a split."""
        assert self._classify is not None
        seen = split.seen(task)
        logits = self._classify(params, seen.images)
        if self._parts.setup.solver is not None:  # classes that it has not seen compete with no other
            known = np.isin(np.arange(logits.shape[1]), self._parts.setup.seen_classes(task))
            logits = np.where(known, logits, -np.inf)
        return accuracies(logits, seen.labels, [int(n) for n in split.counts], self._sequence.groups, task)

    def by_task(self, networks: Mapping[str, TrainState], task: int) -> np.ndarray | None:
        """Accuracy on the test images of each task seen, float64 [T]; None where there is no classifier."""
        if self._classify is None:
            return None
        return self.accuracies(self._weights(networks), self._sequence.test, task).unmasked

    def measured(self, networks: Mapping[str, TrainState], task: int) -> tuple[dict[str, Measured], np.ndarray | None]:
        """The chosen scores after a task (from 0), and the confusion matrix int64 [C, C] on its test images."""
        found = {name: self._probe(PROBES[name], networks[DENOISER], task) for name in self._scores if name in PROBES}
        if self._classify is None:
            return found, None
        test, counts = self._sequence.test, self._sequence.test.counts
        headline = self.accuracies(self._weights(networks), test, task)
        found["accuracy"] = Measured(headline.unmasked, headline.union, counts)
        found["accuracy_masked"] = Measured(headline.masked, headline.union_masked, counts)
        found["accuracy_by_class"] = Measured(headline.unmasked_by_class, headline.union_by_class, counts)
        found["accuracy_masked_by_class"] = Measured(headline.masked_by_class, headline.union_masked_by_class, counts)
        state = networks.get(SOLVER, networks[DENOISER])
        others = {"accuracy_raw": state.params, "accuracy_ema": state.averaged}
        for name, params in others.items():
            if name in self._scores:
                other = self.accuracies(params, test, task)
                found[name] = Measured(other.unmasked, other.union, counts)
        validation = self._sequence.validation
        if len(validation.labels):
            held_out = self.accuracies(self._weights(networks), validation, task)
            found["accuracy_validation"] = Measured(held_out.unmasked, held_out.union, validation.counts)
        return found, headline.confusion

    def _weights(self, networks: Mapping[str, TrainState]) -> PyTree:
        """Those that classify; a solver has no average, so that its are raw."""
        return self._chosen(networks.get(SOLVER, networks[DENOISER]))

    def _chosen(self, state: TrainState) -> PyTree:
        return state.averaged if self._parts.config.evaluation.weights == "ema" else state.params

    def _probe(self, kind: str, state: TrainState, task: int) -> Measured:
        """Fitted with all labels of the training images, also those that the run does not know."""
        params, test = self._chosen(state), self._sequence.test.seen(task)
        images, labels = self._fitted_to(task)
        counts = self._sequence.test.counts
        row, union = probe_row(
            kind,
            self._features(params, images),
            labels,
            self._features(params, test.images),
            test.labels,
            [int(n) for n in counts],
            task,
        )
        return Measured(row, union, counts)

    def _fitted_to(self, task: int) -> tuple[np.ndarray, np.ndarray]:
        seen: Split = self._sequence.train.seen(task)
        labels = self._sequence.true_train_labels[: len(seen.labels)]
        rows = balanced_rows(labels, self._parts.config.evaluation.probe.images)
        return seen.images[rows], labels[rows]
