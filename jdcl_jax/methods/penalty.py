"""What stands beside a method: a term of the loss that keeps the parameters near those of old tasks, or a projection.

All terms are strength * q(theta), q a quadratic form around anchors. Where q is made of the Fisher information,
that is of gradients of half the MSE; the losses here are whole MSEs, so `strength` is then the lambda of (lambda / 2) q
beside a loss of half the MSE, as in arXiv 2509.23593 [paper].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Learned, Memory, Phase, Setup
from jdcl_jax.training.state import PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream


@dataclass(frozen=True)
class Penalty:
    """The base of all penalties; subclasses say what differs. Tasks count from 0.

    Attributes:
      name: its name in configs.
      setup: the run.
      options: its own entries of the config.
    """

    name: str
    setup: Setup
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.options.get("strength", 0) < 0:
            raise UserError(f"method.{self.name}.strength (lambda) is negative; write 0 or more")
        for key in ("samples", "batch_size"):
            if self.options.get(key, 1) < 1:
                raise UserError(f"method.{self.name}.{key} counts from 1")
        if self.setup.classifier is not None and "samples" in self.options:
            raise UserError(
                f"{self.name} asks what matters to the denoiser and would leave its classifier unprotected; "
                "write classifier.kind=none, or the penalty l2 or si"
            )
        self.check()

    def check(self) -> None:
        """Raises `UserError` where the options can't be."""

    def init_memory(self, params: PyTree) -> Memory:
        """What it keeps; same shapes before the first task and after the last."""
        raise NotImplementedError

    def value(self, params: PyTree, memory: Memory) -> jax.Array:
        """q(params), []; the loss has `strength` times that, from the second task on. Without a strength: no term."""
        raise NotImplementedError

    def optimizer(self, base: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimiser, made of the one that is there."""
        return base

    def init_tracked(self, params: PyTree) -> Tracked:
        """Zeros for what is added up during a task."""
        del params
        return {}

    def track(self, tracked: Tracked, gradient: PyTree, update: PyTree) -> Tracked:
        """Called at every update with the gradient of the loss without penalties."""
        del gradient, update
        return tracked

    def estimation(self, current: Stream) -> Sequence[Phase]:
        """Phases after the training of a task that is followed by another; `current` reads its data."""
        del current
        return []

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        """What it keeps after a task."""
        raise NotImplementedError

    def facts(self, memory: Memory, task: int) -> dict[str, Any]:
        """What there is to say of it after a task, as `Method.facts`."""
        del memory, task
        return {}

    def estimation_steps(self) -> int:
        """Steps in which `samples` examples pass, `batch_size` at a time."""
        return -(-self.options["samples"] // self.options["batch_size"])
