"""Joint training on everything seen so far: the upper bound, allowed to keep all data."""

from collections.abc import Sequence

from jdcl_jax.errors import UserError
from jdcl_jax.methods.denoising import plain_phase
from jdcl_jax.methods.method import Memory, Method, Phase
from jdcl_jax.training.state import PyTree

DEFAULTS: dict[str, object] = {
    "compute_matched": False,  # as much compute a task as generative distillation with this S spends, not as many steps
    "teacher_steps": 2,
}


class Joint(Method):
    """Continues training, task after task, on the union of all tasks seen so far.

    Every task gets the same number of steps [ours]. With `compute_matched` [ours] the tasks after the first
    get (S + 7) / 3 times as many, (2 S + 7) / 3 with guidance: the price in forward passes of generative distillation
    with S teacher steps and fresh samples.
    """

    learns_variance = True

    def check(self) -> None:
        steps = self.options["teacher_steps"]
        if steps < 1:
            raise UserError(f"method.teacher_steps is {steps}; write 1 or more")
        if steps != DEFAULTS["teacher_steps"] and not self.options["compute_matched"]:
            raise UserError(
                f"method.teacher_steps={steps} has no effect here; leave it out or write method.compute_matched=True"
            )

    def phases(self, task: int) -> Sequence[Phase]:
        if task == 0 or not self.options["compute_matched"]:
            return [plain_phase(self.setup, self.current_stream(), self.setup.steps[task])]
        steps = round(self.setup.steps[task] * self._passes_of_distillation() / (3 + self.setup.class_passes))
        return [plain_phase(self.setup, self.current_stream(), steps, name="train_matched")]

    def _passes_of_distillation(self) -> float:
        """Two batches learned, one taught, and the chain; with a classifier, both classified and samples labelled."""
        setup = self.setup
        labelling = setup.classifier.passes if setup.classifier and not setup.num_classes else 0
        return self.options["teacher_steps"] * setup.sampling_passes + 7 + 2 * setup.class_passes + labelling

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        return {"current": self.seen_range(task)}


METHODS = {"joint": (Joint, DEFAULTS)}
