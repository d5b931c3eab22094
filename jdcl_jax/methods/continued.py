"""Continued training on a model's own samples: what it costs a classifier (figure 1 of arXiv 2411.08224 [paper]).

A network learns real data of one task; a replay set is drawn from it once, labelled by its own classifier; then it goes
on learning from that set alone. Run it with classifier.kind=separate, with joint, and with joint and
method.distillation=True, the teacher being the network as it was before.
"""

from collections.abc import Sequence
from dataclasses import replace

from jdcl_jax.errors import UserError
from jdcl_jax.methods import jdcl
from jdcl_jax.methods.jdcl import JDCL
from jdcl_jax.methods.local_stage import LOCAL
from jdcl_jax.methods.method import Learned, Memory, Phase
from jdcl_jax.training.state import PyTree

WITHOUT = ("first_steps", "class_delay", "local", "local_start")

DEFAULTS: dict[str, object] = {
    **{key: value for key, value in jdcl.DEFAULTS.items() if key not in WITHOUT},
    "distillation": False,
    "rounds": 10,  # in which the steps on samples are made; accuracy is measured after each [ours]
}


class Continued(JDCL):
    """JDCL's stages on one task: its global stage follows its local one, from the same network."""

    def __post_init__(self) -> None:
        fixed = {key: jdcl.DEFAULTS[key] for key in WITHOUT} | {"class_delay": 0}
        object.__setattr__(self, "options", {**fixed, **self.options})
        super().__post_init__()

    def check(self) -> None:
        super().check()
        if self.setup.num_tasks != 1:
            raise UserError("continued goes on after a single task; write tasks.num_tasks=1")
        steps, rounds = self.options["global_steps"], self.options["rounds"]
        if rounds < 1 or steps % rounds:
            raise UserError(f"method.rounds is {rounds}; write a divisor of method.global_steps={steps}")

    def phases(self, task: int) -> Sequence[Phase]:
        on_samples = replace(self._global(), steps=self.options["global_steps"] // self.options["rounds"])
        later = replace(on_samples, continues=True)
        local = self._local(self.setup.steps[task])
        return [local, self._draw(task), on_samples, *[later] * (self.options["rounds"] - 1)]

    def _old_and_new(self, task: int) -> tuple[int, int]:
        return len(self.setup.groups[task]), 0

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        memory = super().end_phase(memory, learned, task, phase)
        return {**memory, "old": memory["local"]} if phase.name == LOCAL else memory

    def start(self, memory: Memory, task: int, phase: Phase) -> PyTree | None:
        del memory, task, phase
        return None


METHODS = {"continued": (Continued, DEFAULTS)}
