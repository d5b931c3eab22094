"""Penalties beside a method: `ewc+gd` is generative distillation whose loss has EWC's penalty as well."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Learned, Memory, Method, Phase, ReplaySet
from jdcl_jax.methods.penalty import Penalty
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream

MEMORY = "penalties"


@dataclass(frozen=True)
class Penalised(Method):
    """A method with penalties; everything else is the method's own.

    Attributes:
      base: the method.
      penalties: one or more.
    """

    base: Method = field(kw_only=True)
    penalties: tuple[Penalty, ...] = field(kw_only=True)

    def check(self) -> None:
        if self.setup.num_tasks < 2:
            raise UserError(
                f"{self.penalties[0].name} keeps what earlier tasks learned, and the sequence has one task; "
                "write tasks.num_tasks=2 or more, tasks.first=0, or a method without penalty"
            )

    def phases(self, task: int) -> Sequence[Phase]:
        trained = [self._penalised(phase, task) if phase.observe is None else phase for phase in self.base.phases(task)]
        if task == self.setup.num_tasks - 1:
            return trained
        after = [phase for penalty in self.penalties for phase in penalty.estimation(self._samples(penalty))]
        return [*trained, *after]

    def _samples(self, penalty: Penalty) -> Stream:
        return replace(self.current_stream(), batch_size=penalty.options.get("batch_size", self.setup.batch_size))

    def _penalised(self, phase: Phase, task: int) -> Phase:
        if task == 0:
            return replace(phase, track=self._track)
        names = "+".join(penalty.name for penalty in self.penalties)
        return replace(phase, name=f"{names}+{phase.name}", penalty=self._value, track=self._track)

    def _value(self, params: PyTree, context: Context) -> jax.Array:
        kept = context.method[MEMORY]
        terms = [p for p in self.penalties if "strength" in p.options]
        values = [p.options["strength"] * p.value(params, kept[p.name]) for p in terms]
        return sum(values, start=jnp.zeros(()))

    def _track(self, tracked: Tracked, gradient: PyTree, update: PyTree) -> Tracked:
        for penalty in self.penalties:
            tracked = penalty.track(tracked, gradient, update)
        return tracked

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        return {**self.base.context(memory, task), MEMORY: memory[MEMORY]}

    def init_memory(self, params: PyTree) -> Memory:
        return {**self.base.init_memory(params), MEMORY: {p.name: p.init_memory(params) for p in self.penalties}}

    def init_tracked(self, params: PyTree) -> Tracked:
        tracked = self.base.init_tracked(params)
        for penalty in self.penalties:
            own = penalty.init_tracked(params)
            if shared := tracked.keys() & own.keys():
                raise ValueError(f"{penalty.name} and another part both track {sorted(shared)}")
            tracked = {**tracked, **own}
        return tracked

    def start(self, memory: Memory, task: int, phase: Phase) -> PyTree | None:
        return self.base.start(memory, task, phase)

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        return self.base.end_phase(memory, learned, task, phase)

    def facts(self, memory: Memory, task: int, phase: Phase | None) -> dict[str, Any]:
        found = self.base.facts(memory, task, phase)
        for penalty in self.penalties if phase is None else ():
            own = penalty.facts(memory[MEMORY][penalty.name], task)
            warnings = [*found.get("warnings", ()), *own.get("warnings", ())]
            found = {**found, **own, **({"warnings": warnings} if warnings else {})}
        return found

    def replay_set(self, memory: Memory, task: int) -> ReplaySet:
        return self.base.replay_set(memory, task)

    def pictures(self, memory: Memory, task: int) -> dict[str, np.ndarray]:
        return self.base.pictures(memory, task)

    def optimizer(self, base: optax.GradientTransformation) -> optax.GradientTransformation:
        made = self.base.optimizer(base)
        for penalty in self.penalties:
            made = penalty.optimizer(made)
        return made

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        kept = memory[MEMORY]
        memory = self.base.end_task(memory, learned, task)
        return {**memory, MEMORY: {p.name: p.end_task(kept[p.name], learned, task) for p in self.penalties}}

    def kept_rows(self, memory: Memory) -> np.ndarray:
        return self.base.kept_rows(memory)
