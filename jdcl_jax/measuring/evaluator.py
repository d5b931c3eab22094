"""What is measured after a task: samples, their scores, and the denoiser's own errors."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jdcl_jax.assembly import Parts
from jdcl_jax.data.arrays import Split
from jdcl_jax.evaluation.evaluate import Evaluation
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.classifying import ClassifierMeter
from jdcl_jax.measuring.curves import Curves, DenoiserMeter, rows_of
from jdcl_jax.measuring.generation import Generator, balanced_labels
from jdcl_jax.measuring.scoring import Scorer
from jdcl_jax.methods.method import DENOISER, Memory
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.training.memory import PeakMemory
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import TrainState


@dataclass(frozen=True)
class Cost:
    """Seconds, the part of them that was compilation, forward passes of one image, and memory, see `PeakMemory`."""

    seconds: float
    compile_seconds: float
    passes: int
    memory: Mapping[str, int | None]


@dataclass(frozen=True)
class Evaluated:
    """All that was measured after a task.

    Attributes:
      images: uint8 [N, H, W, C], the samples.
      evaluation: their scores, and bits/dim where they were asked for.
      curves: errors at every timestep, or None where they were not asked for.
      errors: mean errors of the predicted noise: "validation" on held-out training images of all tasks so far, and for
        methods with a buffer "buffer", on the old tasks' images in it, beside "held_out", on the old tasks' held-out
        ones; None where there are no such images.
      cost: of "evaluate" and of "measure".
      confusion: int64 [C, C], true class by answer of the network's classifier on the test images seen; None without.
    """

    images: np.ndarray
    evaluation: Evaluation
    curves: Curves | None
    errors: dict[str, float | None]
    cost: dict[str, Cost]
    confusion: np.ndarray | None = None


class Evaluator:
    """Measures the denoiser of a run after each task.

    Args:
      parts: the run's parts.
      parallel: the devices.
      say: takes lines for the person who waits.

    Raises:
      UserError: what the scores need is not there.
    """

    def __init__(self, parts: Parts, parallel: Parallel, say: Callable[[str], None]):
        self._parts = parts
        self.scorer = Scorer(parts, say)
        self._generator = Generator(parts.setup, parallel, parts.config.evaluation.batch_size)
        self._meter = DenoiserMeter(parts, parallel)
        self._classifier = ClassifierMeter(parts, parallel)
        self._memory = PeakMemory()

    def __call__(self, networks: Mapping[str, TrainState], memory: Memory, task: int, progress: Progress) -> Evaluated:
        """Measures after a task (from 0), with the weights that the config names."""
        state = networks[DENOISER]
        params = state.averaged if self._parts.config.evaluation.weights == "ema" else state.params
        started, compiled = time.perf_counter(), self._meter.compile_seconds
        self._memory.start()
        self._meter.passes = 0
        curves = self._curves(params, task, progress)
        errors = self._errors(params, memory, task)
        classified, confusion = self._classifier.measured(networks, task)
        measuring = self._cost(started, self._meter.compile_seconds - compiled, self._meter.passes)
        started, compiled = time.perf_counter(), self._generator.compile_seconds
        self._memory.start()
        images, labels = self._sample(params, task, progress)
        measured = {**classified, **(curves.measured(self._parts.sequence.test.counts) if curves else {})}
        evaluation = self.scorer(images, task, labels=labels, measured=measured)
        drawing = self._cost(started, self._generator.compile_seconds - compiled, len(images) * self._passes())
        cost = {"measure": measuring, "evaluate": drawing}
        return Evaluated(images, evaluation, curves, errors, cost, confusion)

    def _cost(self, started: float, compiling: float, passes: int) -> Cost:
        return Cost(time.perf_counter() - started, compiling, passes, self._memory.read())

    def accuracy_by_task(self, networks: Mapping[str, TrainState], task: int) -> np.ndarray | None:
        """Accuracy on each task's test images, float64 [T], with the config's weights; None without a classifier."""
        return self._classifier.by_task(networks, task)

    def _passes(self) -> int:
        setup = self._parts.setup
        return setup.sampler.steps * setup.sampling_passes

    def _sample(self, params: Any, task: int, progress: Progress) -> tuple[np.ndarray, np.ndarray | None]:
        num, setup = self._parts.config.evaluation.num_samples, self._parts.setup
        labels = balanced_labels(setup.seen_classes(task), num) if setup.asks_for_classes else None
        progress.start("sample", num, task=task + 1, counts=False)
        key = named_key(setup.seed, "task", task, "evaluate")
        images = self._generator(params, key, num, labels, progress.update)
        progress.finish()
        return images, labels

    def _curves(self, params: Any, task: int, progress: Progress) -> Curves | None:
        if not self._meter.images:
            return None
        progress.start("measure", self._meter.total(task), task=task + 1, counts=False)
        curves = self._meter.curves(params, task, progress.update)
        progress.finish()
        return curves

    def _errors(self, params: Any, memory: Memory, task: int) -> dict[str, float | None]:
        setup, sequence = self._parts.setup, self._parts.sequence
        errors = {"validation": self._meter.error(params, sequence.validation.seen(task), "validation")}
        kept = self._parts.method.kept_rows(memory)
        old = kept[kept < setup.start(task)]
        if len(old):
            held_out: Split = sequence.validation.seen(task - 1)
            errors["buffer"] = self._meter.error(params, rows_of(sequence.train, old), "buffer")
            errors["held_out"] = self._meter.error(params, held_out, "held_out")
        return errors
