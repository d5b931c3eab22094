"""What a method is: phases, each with a loss and streams, and the memory that it keeps between tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.diffusion.schedule import Schedule
from jdcl_jax.training.state import PyTree, Range
from jdcl_jax.training.step import Loss
from jdcl_jax.training.streams import Stream, range_rows

DENOISER = "denoiser"

Memory = dict[str, PyTree]
"""A method's own arrays. Their shapes are the same before the first task and after the last."""

Apply = Callable[..., jax.Array]
"""(params, x_t [B, H, W, C], t int [B], labels int [B] or None, keys [B] or None) -> the network's output."""


@dataclass(frozen=True)
class Setup:
    """All that a method may know of the run.

    Attributes:
      apply: the denoiser.
      schedule: its noise schedule.
      sampler: how images are drawn for evaluation, and what the network predicts.
      image_shape: (H, W, C).
      num_classes: classes the denoiser is conditioned on; 0 for an unconditional one.
      guidance: weight w of classifier-free guidance when a conditional denoiser is sampled; 0 is off.
      label_dropout: share of labels replaced by "no class" while training a conditional denoiser.
      groups: the classes of every task.
      task_sizes: training examples of every task.
      labels: label of every training row, rows sorted by task; int32 [N].
      steps: train steps a task.
      batch_size: examples a step of the current task (and as many again of replay).
      flip: mirror training images at random.
      seed: the run's seed.
    """

    apply: Apply
    schedule: Schedule
    sampler: Sampler
    image_shape: tuple[int, int, int]
    num_classes: int
    guidance: float
    label_dropout: float
    groups: tuple[tuple[int, ...], ...]
    task_sizes: tuple[int, ...]
    labels: np.ndarray
    steps: int
    batch_size: int
    flip: bool
    seed: int

    def start(self, task: int) -> int:
        """The first training row of a task (from 0)."""
        return int(sum(self.task_sizes[:task]))


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one loss; compiled once for the whole run under its name.

    Attributes:
      name: what the person sees; also names the random keys.
      loss: (params, batch, context) -> (loss, metrics).
      streams: name -> where examples come from.
      steps: how many steps.
      passes: cost of a step in forward passes of `batch_size` images, a backward pass counting as two
        (arXiv 2311.14028's own account: 3 for plain training).
      network: which network is updated.
    """

    name: str
    loss: Loss
    streams: Mapping[str, Stream]
    steps: int
    passes: float
    network: str = DENOISER


@dataclass(frozen=True)
class Method:
    """The base of all methods: one phase that trains on something, and nothing kept.

    Subclasses say what differs. Tasks count from 0 here. `options` are the method's entries of the config.
    """

    setup: Setup
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises `UserError` where the options can't be."""

    def phases(self, task: int) -> Sequence[Phase]:
        """The phases of a task, in order."""
        raise NotImplementedError

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        """The arrays that the phases of a task read; same shapes for every task."""
        del memory
        return {"current": self.task_range(task)}

    def init_memory(self, params: PyTree) -> Memory:
        """What the method keeps, before the first task."""
        del params
        return {}

    def end_task(self, memory: Memory, params: PyTree, task: int) -> Memory:
        """What it keeps after a task, given the denoiser's raw parameters."""
        del params, task
        return memory

    def task_range(self, task: int) -> Range:
        """The training rows of one task."""
        return Range(start=np.int32(self.setup.start(task)), count=np.int32(self.setup.task_sizes[task]))

    def seen_range(self, task: int) -> Range:
        """The training rows of all tasks up to this one."""
        return Range(start=np.int32(0), count=np.int32(self.setup.start(task + 1)))

    def current_stream(self) -> Stream:
        """The data of the current task, in shuffled epochs."""
        return Stream(self.setup.batch_size, rows=range_rows("current"), flip=self.setup.flip)
