"""Errors and bits/dim of a denoiser at every timestep, on images that it was not trained on.

Common random numbers: an image's noise at a timestep depends on the image's place in its set and on the timestep alone,
so that the curves of two checkpoints, methods or seeds differ by the networks and not by the noise.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.assembly import Parts
from jdcl_jax.data.arrays import Split
from jdcl_jax.data.batches import to_float
from jdcl_jax.data.tasks import TaskSplit
from jdcl_jax.diffusion.likelihood import VARIANCES, Bound, bits_per_dim_terms, make_bound, prior_bits
from jdcl_jax.diffusion.process import q_sample, squared_error, to_x0_and_eps
from jdcl_jax.diffusion.schedule import alpha_bars
from jdcl_jax.evaluation.scores import Measured
from jdcl_jax.keys import example_normal, named_key
from jdcl_jax.methods.method import Setup
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import PyTree

OnProgress = Callable[[int], None]
MEASURES = ("eps_mse", *(f"bits_{variance}" for variance in VARIANCES))
EVERY_IMAGE_AT = 20  # timesteps where only a mean over all is wanted [ours]
MOST_IMAGES = 250  # of a set where only a mean is wanted [ours]


@dataclass(frozen=True)
class Curves:
    """What is known of a denoiser after a task; T_tasks rows, NaN for tasks not seen yet.

    Attributes:
      eps_mse: float32 [T_tasks, T], mean squared error of the predicted noise on a task's test images at t.
      bits: variance -> float32 [T_tasks, T], L_t in bits/dim; column 0 is L_0.
      prior_bits: float32 [T_tasks], L_prior.
      images: test images of each task.
    """

    eps_mse: np.ndarray
    bits: Mapping[str, np.ndarray]
    prior_bits: np.ndarray
    images: int

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names under which they are saved."""
        named = {f"bits_{variance}": values for variance, values in self.bits.items()}
        return {
            "eps_mse": self.eps_mse,
            **named,
            "prior_bits": self.prior_bits,
            "images": np.array(self.images, np.int32),
        }

    def measured(self, counts: np.ndarray) -> dict[str, Measured]:
        """Bits/dim and the mean error over all t; the union weighs tasks by `counts`, their test images."""
        rows: dict[str, np.ndarray] = {
            f"bpd_{variance}": self.prior_bits + np.sum(values, axis=1, dtype=np.float64)
            for variance, values in self.bits.items()
        }
        rows["eps_mse"] = self.eps_mse.mean(axis=1, dtype=np.float64)
        seen = np.isfinite(self.prior_bits)
        images = np.minimum(counts, self.images)
        return {
            name: Measured(row, float(np.average(row[seen], weights=counts[seen])), images)
            for name, row in rows.items()
        }


class DenoiserMeter:
    """Measures denoisers of one run.

    Args:
      parts: the run's parts; `evaluation.likelihood` says how many images of each task, and how many pairs of image and
        timestep go through the network at a time.
      parallel: the devices.
    """

    def __init__(self, parts: Parts, parallel: Parallel):
        settings, diffusion = parts.config.evaluation.likelihood, parts.config.diffusion
        self._parts, self._parallel, self._setup = parts, parallel, parts.setup
        self._alpha_bars = alpha_bars(
            diffusion.schedule,
            diffusion.timesteps,
            beta_start=diffusion.beta_start,
            beta_end=diffusion.beta_end,
            zero_snr=diffusion.zero_snr,
        )
        self._bounds = {variance: make_bound(self._alpha_bars, variance) for variance in VARIANCES}
        self._clip, self.images = bool(settings.clip), int(settings.images)
        self._batch_size = -(-settings.batch_size // parallel.count) * parallel.count
        self._compiled: Callable[..., Any] | None = None
        self.compile_seconds = 0.0
        self.passes = 0

    def curves(self, params: PyTree, task: int, on_progress: OnProgress) -> Curves:
        """The curves of all tasks up to `task` (from 0)."""
        timesteps, tasks = self._setup.schedule.timesteps, self._setup.num_tasks
        found = {name: np.full((tasks, timesteps), np.nan, np.float32) for name in MEASURES}
        prior = np.full(tasks, np.nan, np.float32)
        done = 0
        for seen in range(task + 1):
            images = spread(self._parts.sequence.test.task(seen), self.images)
            progress = functools.partial(_onward, on_progress, done)
            values = self._measure(params, images, np.arange(timesteps), f"task {seen}", progress)
            done += timesteps * len(images)
            for place, name in enumerate(MEASURES):
                found[name][seen] = np.mean(values[..., place], axis=0, dtype=np.float64)
            prior[seen] = np.mean(prior_bits(self._alpha_bars, to_float(jnp.asarray(images.images))))
        bits = {variance: found[f"bits_{variance}"] for variance in VARIANCES}
        return Curves(found["eps_mse"], bits, prior, self.images)

    def total(self, task: int) -> int:
        """Pairs of image and timestep that `curves` takes."""
        tests = self._parts.sequence.test
        images = sum(len(spread(tests.task(seen), self.images)) for seen in range(task + 1))
        return images * self._setup.schedule.timesteps

    def error(self, params: PyTree, split: Split, name: str) -> float | None:
        """Mean error of the predicted noise over a set and over evenly spaced timesteps; None of an empty set."""
        if not len(split):
            return None
        images = spread(split, MOST_IMAGES)
        at = np.linspace(0, self._setup.schedule.timesteps - 1, EVERY_IMAGE_AT).round().astype(np.int32)
        return float(np.mean(self._measure(params, images, at, name)[..., 0], dtype=np.float64))

    def _measure(
        self, params: PyTree, split: Split, at: np.ndarray, name: str, on_progress: OnProgress | None = None
    ) -> np.ndarray:
        """All measures of all images at all timesteps, float32 [N, len(at), 3]."""
        shared = self._parallel.replicate((params, named_key(0, "curves", name)))
        total, values = len(split) * len(at), []
        for first in range(0, total, self._batch_size):
            pairs = np.minimum(np.arange(first, first + self._batch_size), total - 1)
            ids, t = (pairs // len(at)).astype(np.int32), at[pairs % len(at)].astype(np.int32)
            share = self._parallel.split((split.images[ids], split.labels[ids], ids, t))
            if self._compiled is None:
                self._compiled, self.compile_seconds = self._parallel.compile_map(self._errors, shared, share)
            values.append(np.asarray(self._compiled(shared, share)))
            if on_progress:
                on_progress(min(first + self._batch_size, total))
        self.passes += total
        return np.concatenate(values)[:total].reshape(len(split), len(at), len(MEASURES))

    def _errors(self, shared: tuple[PyTree, jax.Array], share: tuple[jax.Array, ...]) -> jax.Array:
        (params, key), (images, labels, ids, t) = shared, share
        return pair_errors(self._setup, self._bounds, self._clip, params, key, to_float(images), labels, ids, t)


def _onward(on_progress: OnProgress, done: int, more: int) -> None:
    on_progress(done + more)


def pair_errors(
    setup: Setup,
    bounds: Mapping[str, Bound],
    clip: bool,
    params: PyTree,
    key: jax.Array,
    x_0: jax.Array,
    labels: jax.Array,
    ids: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """Every measure of each pair of image [B, H, W, C] and timestep [B], float32 [B, 3]; noise by (key, id, t)."""
    keys = jax.vmap(lambda i, step: jax.random.fold_in(jax.random.fold_in(key, i), step))(ids, t)
    eps = example_normal(keys, setup.image_shape)
    x_t = q_sample(setup.schedule, x_0, t, eps)
    output = setup.apply(params, x_t, t, labels if setup.num_classes else None, None)
    kind = setup.sampler.prediction
    _, said = to_x0_and_eps(kind, output, x_t, setup.schedule.alpha_bar[t])
    bits = [bits_per_dim_terms(bounds[v], kind, output, x_0, x_t, t, clip=clip) for v in VARIANCES]
    return jnp.stack([squared_error(said, eps), *bits], axis=1)


def spread(split: Split, most: int) -> Split:
    """At most `most` images, evenly spaced over the rows, which are sorted by task and class."""
    if len(split) <= most:
        return split
    rows = np.linspace(0, len(split) - 1, most).round().astype(np.int64)
    return Split(split.images[rows], split.labels[rows])


def rows_of(split: TaskSplit, rows: np.ndarray) -> Split:
    """Some rows of a task split."""
    return Split(split.images[rows], split.labels[rows])
