"""What the steps of a phase report: collected on the device, looked at and written from time to time."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Phase
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.reporting.writer import Writer
from jdcl_jax.results import Results
from jdcl_jax.training.layers import LAYER_NORMS, largest
from jdcl_jax.training.step import ACTIVE

Metrics = dict[str, Any]
"""Name -> one value for each step, float32 [K, ...]."""
WATCHED = ("loss", "gradient_norm")


@dataclasses.dataclass(frozen=True)
class Sinks:
    """Where the metrics go."""

    results: Results
    writer: Writer
    progress: Progress


class PhaseLog:
    """Collects the metrics of calls, and fetches them only when there is something to say.

    Args:
      to: where they go.
      task: the task's number, from 0.
      phase: the phase.
      step: steps of it that are done.
      every: so many steps are one line.
      skippable: steps of the run that may be left out because their loss or gradient was not finite.
      layers: () -> names of the layers behind "gradient_norms", for messages.
      carried: what `carry` gave before the run was stopped.
    """

    def __init__(
        self,
        to: Sinks,
        task: int,
        phase: Phase,
        step: int,
        *,
        every: int,
        skippable: int,
        layers: Callable[[], list[str]],
        carried: Metrics,
    ):
        self._to, self._task, self._phase, self._every = to, task, phase, every
        self._skippable, self._layers = skippable, layers
        self._pending: list[Metrics] = []
        self._step = self._flushed = step
        if carried:
            self._pending.append({name: np.array(values, np.float32) for name, values in carried.items()})
            self._flushed -= len(next(iter(carried.values())))
        self._time = time.perf_counter()
        self._images = sum(stream.batch_size for stream in phase.streams.values())
        self._last_norms: np.ndarray | None = None  # of the last step that was finite

    def compiled(self, seconds: float) -> None:
        """Notes that compiling the phase took so long, just now."""
        self._to.results.add_training(self._task, self._phase, 0, self._images, seconds, seconds)
        self._time = time.perf_counter()

    def add(self, step: int, metrics: dict[str, jax.Array], global_step: int) -> None:
        """Takes the metrics of the call that ended with `step`; waits for the call before it."""
        if self._pending:
            jax.block_until_ready(self._pending[-1])
        self._pending.append(metrics)
        due = step // self._every > self._step // self._every
        if due or jax.default_backend() == "cpu":
            jax.block_until_ready(metrics)
        self._step = step
        if due:
            self.flush(global_step)

    def carry(self, global_step: int) -> Metrics:
        """The metrics not written yet, as JSON; they are part of the line that a resumed run writes.

        Raises:
          UserError: as `flush`.
        """
        values = self._values()
        if np.sum(~self._finite(values)) > self._skippable - self._to.results.num_skipped():
            self.flush(global_step)
        return {name: value.tolist() for name, value in values.items()}

    def flush(self, global_step: int) -> None:
        """Writes the means since the last time.

        Raises:
          UserError: a loss or gradient is not finite, and no more steps may be left out.
        """
        if not self._pending:
            return
        values = self._values()
        self._pending = []
        good = self._good(values)
        now, steps = time.perf_counter(), self._step - self._flushed
        seconds, self._time = now - self._time, now
        rate = steps * self._images / max(seconds, 1e-9)
        values.pop(LAYER_NORMS, None)
        active = int(np.sum(values.pop(ACTIVE, np.ones(steps))))  # steps that did anything
        means = {
            name: float(np.mean(v[good], dtype=np.float64)) if good.any() else np.nan for name, v in values.items()
        }
        facts = {"task": self._task + 1, "phase": self._phase.name, "phase_step": self._step}
        skipped = {} if good.all() else {"skipped": int(np.sum(~good))}
        self._to.writer.write_scalars(global_step, {**facts, **means, **skipped, "images_per_second": rate})
        shown = {"loss": means["loss"]} if "loss" in means else {}
        self._to.progress.update(self._step, **shown, images_per_second=rate)
        self._to.results.add_training(self._task, self._phase, active, self._images, seconds, 0.0)
        self._flushed = self._step

    def _values(self) -> Metrics:
        pending = jax.device_get(self._pending)
        return (
            {name: np.concatenate([np.atleast_1d(m[name]) for m in pending]) for name in pending[0]} if pending else {}
        )

    def _finite(self, values: Metrics) -> np.ndarray:
        """Which steps had a finite loss and gradient, bool [K]."""
        watched = [np.isfinite(values[name]) for name in WATCHED if name in values]
        return np.all(watched, axis=0) if watched else np.ones(self._step - self._flushed, bool)

    def _good(self, values: Metrics) -> np.ndarray:
        """Which steps count, bool [K]; notes those that were left out.

        Where the gradients are not finite, the parameters no longer are either, unless the step was left out.
        """
        good, norms = self._finite(values), values.get(LAYER_NORMS)
        left = self._skippable - self._to.results.num_skipped()
        for place in np.flatnonzero(~good):
            if norms is not None and place and good[place - 1]:
                self._last_norms = norms[place - 1]
            if left <= 0:
                raise UserError(self._not_finite(values, int(place)))
            left -= 1
            step = self._flushed + int(place) + 1
            self._to.results.add_skipped(self._task, self._phase.name, step)
            self._to.progress.message(
                f"warning: task {self._task + 1}, phase {self._phase.name}: step {step} is left out, its "
                f"{self._wrong(values, int(place))}"
            )
        if norms is not None and good[-1]:
            self._last_norms = norms[-1]
        return good

    def _wrong(self, values: Metrics, place: int) -> str:
        name = next(name for name in WATCHED if name in values and not np.isfinite(values[name][place]))
        return f"{name} became {values[name][place]}"

    def _not_finite(self, values: Metrics, place: int) -> str:
        step, norms = self._flushed + place + 1, values.get(LAYER_NORMS)
        where = f"in task {self._task + 1}, phase {self._phase.name}, step {step}"
        layers = ""
        if norms is not None:
            names = self._layers()
            bad = f"{int(np.sum(~np.isfinite(norms[place])))} of {len(names)} layers have gradients that are not finite"
            before = "" if self._last_norms is None else f"; the step before: {largest(names, self._last_norms)}"
            layers = f"; {bad}; largest: {largest(names, norms[place])}{before}"
        limit = f" after {self._skippable} steps that were left out" if self._skippable else ""
        return (
            f"the {self._wrong(values, place)} {where}{limit}{layers}; the checkpoint before it is kept; write a "
            "smaller train.learning_rate or train.clip_norm in a new workdir, or train.skip_bad_steps=10 to leave such "
            "steps out"
        )
