"""What a method is: phases, each with a loss and streams, and the memory that it keeps between tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import optax

from jdcl_jax.data.views import UNCHANGED, Views
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.diffusion.schedule import Schedule
from jdcl_jax.diffusion.variational import LearnedBound
from jdcl_jax.training.gradients import Gradient, Loss, descend
from jdcl_jax.training.state import PyTree, Range
from jdcl_jax.training.step import Observe, Penalty, Track, Tracked
from jdcl_jax.training.streams import Stream, range_rows

DENOISER, SOLVER = "denoiser", "solver"  # names of networks

Memory = dict[str, PyTree]
"""A method's own arrays. Their shapes are the same before the first task and after the last."""

Apply = Callable[..., jax.Array]
"""(params, x_t [B, H, W, C], t int [B], labels int [B] or None, keys [B] or None) -> the network's output."""

Classify = Callable[[PyTree, jax.Array, jax.Array | None], jax.Array]
"""(params, clean images [B, H, W, C], keys [B] or None) -> logits float32 [B, C] of all classes of the data set."""

Towards = Callable[..., jax.Array]
"""(params, x_t, t, classes int [B], scale) -> the network's output, its features moved towards these classes."""


Inputs = Callable[..., dict[str, jax.Array]]
"""(params, x_t, t int [B], labels int [B] or None, layers) -> path of a layer -> its inputs float32 [B, n, in]."""


@dataclass(frozen=True)
class ClassTerm:
    """The classifier that learns along with the denoiser.

    Attributes:
      logits: of clean images.
      towards: the denoiser, guided by it; None where it shares nothing with it.
      weight: alpha, of the cross-entropy beside the denoising loss.
      passes: cost of classifying one image, in forward passes of the denoiser.
      label_fraction: share of the training labels that is known.
    """

    logits: Classify
    towards: Towards | None = None
    weight: float = 0.001
    passes: float = 0.0
    label_fraction: float = 1.0


@dataclass(frozen=True)
class Solver:
    """A classifier that is a network of its own, trained in phases of its own.

    Attributes:
      logits: (params, images [B, H, W, C] in [-1, 1]) -> logits float32 [B, C] of all classes of the data set.
      fresh: a key -> untrained parameters.
      steps: train steps of every task.
      passes: cost of a forward pass of one image, in forward passes of the denoiser.
      warm_start: each task starts with the weights that the task before left.
    """

    logits: Callable[[PyTree, jax.Array], jax.Array]
    fresh: Callable[[jax.Array], PyTree]
    steps: tuple[int, ...]
    passes: float
    warm_start: bool = True


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
      groups: the classes of every task; in a domain-incremental sequence a class may be in several.
      task_sizes: training examples of every task.
      labels: label of every training row, rows sorted by task, -1 where it is not known; int32 [N].
      steps: train steps of every task.
      batch_size: examples a step of the current task (and as many again of replay).
      ema: whether the run keeps an average of the parameters.
      seed: the run's seed.
      reset_optimizer: whether each phase starts with a fresh optimiser.
      class_names: of all classes of the data set.
      views: how training images are augmented.
      classifier: what learns to classify beside the denoiser; None: nothing.
      classifier_guidance: scale of the classifier's guidance when images are drawn; 0 is off.
      fresh: a key -> untrained parameters.
      solver: a classifier that is a network of its own; None: there is none.
      with_variance: `apply` with the channels of a learned variance, float32 [B, H, W, 2C]; None: none is learned.
      bound: of whose terms such a variance is learned.
      prototypes: whether the denoiser is shown class prototypes, `params["conditioner"]["prototypes"]`.
      inputs: (params, x_t, t, labels, layers) -> layer -> its inputs float32 [B, n, in].
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
    steps: tuple[int, ...]
    batch_size: int
    ema: bool
    seed: int
    reset_optimizer: bool = True
    class_names: tuple[str, ...] = ()
    views: Views = UNCHANGED
    classifier: ClassTerm | None = None
    classifier_guidance: float = 0.0
    fresh: Callable[[jax.Array], PyTree] | None = None
    solver: Solver | None = None
    with_variance: Apply | None = None
    bound: LearnedBound | None = None
    prototypes: bool = False
    inputs: Inputs | None = None

    @property
    def num_tasks(self) -> int:
        """Tasks of the sequence."""
        return len(self.groups)

    @property
    def asks_for_classes(self) -> bool:
        """Whether images are drawn of classes, by a conditional denoiser or towards them."""
        return self.num_classes > 0 or self.classifier_guidance > 0

    @property
    def class_passes(self) -> float:
        """Cost of training the classifier on one image, in forward passes of the denoiser; 0 without one."""
        return 3 * self.classifier.passes if self.classifier else 0.0

    @property
    def sampling_passes(self) -> int:
        """Forward passes of one step of sampling from the denoiser: two where it is guided."""
        return 2 if self.num_classes and self.guidance > 0 else 1

    @property
    def classes_return(self) -> bool:
        """Whether a class is in more than one task, as in a domain-incremental sequence."""
        return len(self.seen_classes(self.num_tasks - 1)) < sum(map(len, self.groups))

    def start(self, task: int) -> int:
        """The first training row of a task (from 0)."""
        return int(sum(self.task_sizes[:task]))

    def seen_classes(self, task: int) -> tuple[int, ...]:
        """The classes of tasks 0..task, each once, in the order in which they first came; () of -1."""
        return tuple(dict.fromkeys(c for group in self.groups[: task + 1] for c in group))


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one loss, or of observation; compiled once for the whole run under its name.

    Exactly one of `loss`, `gradient` and `observe` is given.

    Attributes:
      name: what the person sees, and what it is compiled under.
      loss: (params, batch, context) -> (loss, metrics).
      streams: name -> where examples come from.
      steps: how many steps.
      passes: cost of a step in forward passes of `Setup.batch_size` images, a backward pass counting as two
        (arXiv 2311.14028's own account: 3 for plain training).
      gradient: instead of a loss, where the gradient is more than that of one loss.
      observe: instead of a loss: parameters stay, `TrainState.tracked` is added to.
      penalty: a term of the loss that sees no examples.
      track: what is added up in `TrainState.tracked` at every update.
      network: which network is updated.
      continues: keeps the optimiser's state of the phase before, whatever the config says.
      measured: where it trains what classifies, accuracy is measured after it.
      scored: it draws images of old tasks whose quality is to be measured, `Method.replay_set`.
    """

    name: str
    loss: Loss | None
    streams: Mapping[str, Stream]
    steps: int
    passes: float
    gradient: Gradient | None = None
    observe: Observe | None = None
    penalty: Penalty | None = None
    track: Track | None = None
    network: str = DENOISER
    continues: bool = False
    measured: bool = True
    scored: bool = False

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.loss, self.gradient, self.observe)) != 1:
            raise ValueError(f"phase {self.name} needs exactly one of loss, gradient and observe")

    @property
    def descent(self) -> Gradient:
        """How the gradient is made."""
        if self.gradient is not None:
            return self.gradient
        assert self.loss is not None
        return descend(self.loss)


class Learned(NamedTuple):
    """What training has left, on the host.

    Of the denoiser: raw parameters, their average (the same where none is kept), and what was tracked; and the
    parameters of the solver, where there is one.
    """

    params: PyTree
    averaged: PyTree
    tracked: Tracked = {}  # noqa: RUF012 (never written to)
    solver: PyTree = None


class ReplaySet(NamedTuple):
    """Generated images uint8 [N, H, W, C] and the classes int [N] that they are to show."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Method:
    """The base of all methods: one phase that trains on something, and nothing kept.

    Subclasses say what differs. Tasks count from 0 here. `options` are the method's entries of the config.
    """

    setup: Setup
    options: Mapping[str, Any] = field(default_factory=dict)

    settings: ClassVar[Mapping[str, Any]] = {}
    """Keys of the config beside the method's own, as it has them unless the command line says otherwise."""

    learns_variance: ClassVar[bool] = False
    """Whether its losses are those of real images, so that a learned variance learns too."""

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

    def init_tracked(self, params: PyTree) -> Tracked:
        """Zeros for what its phases add up in `TrainState.tracked`."""
        del params
        return {}

    def optimizer(self, base: optax.GradientTransformation) -> optax.GradientTransformation:
        """The denoiser's optimiser, made of the config's; its update is given `context.method` as extra "method"."""
        return base

    def start(self, memory: Memory, task: int, phase: Phase) -> PyTree | None:
        """The parameters that a phase starts from; None: those that are there."""
        del memory, task, phase
        return None

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        """What it keeps after a phase that is not the task's last, for the phases that follow."""
        del learned, task, phase
        return memory

    def facts(self, memory: Memory, task: int, phase: Phase | None) -> dict[str, Any]:
        """What there is to say of a phase that has ended (and not the task's last), as JSON; None: of the whole task.

        A list of "warnings" is shown to the person at the keyboard.
        """
        del memory, task, phase
        return {}

    def replay_set(self, memory: Memory, task: int) -> ReplaySet:
        """The images of old tasks that a phase has drawn which is `scored`."""
        raise NotImplementedError

    def pictures(self, memory: Memory, task: int) -> dict[str, np.ndarray]:
        """What else is worth a look after a task: name -> images uint8 [N, H, W, C]."""
        del memory, task
        return {}

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        """What it keeps after a task."""
        del learned, task
        return memory

    def kept_rows(self, memory: Memory) -> np.ndarray:
        """The training rows that it keeps, int32 [n]; their loss against that on held-out images shows memorising."""
        del memory
        return np.zeros(0, np.int32)

    def task_range(self, task: int) -> Range:
        """The training rows of one task."""
        return Range(start=np.int32(self.setup.start(task)), count=np.int32(self.setup.task_sizes[task]))

    def seen_range(self, task: int) -> Range:
        """The training rows of all tasks up to this one."""
        return Range(start=np.int32(0), count=np.int32(self.setup.start(task + 1)))

    def current_stream(self) -> Stream:
        """The data of the current task, in shuffled epochs."""
        return Stream(self.setup.batch_size, rows=range_rows("current"), view=self.setup.views.weak)
