"""Fine-tuning: train on the current task and keep nothing. The lower bound."""

from collections.abc import Sequence

from jdcl_jax.methods.denoising import plain_phase
from jdcl_jax.methods.method import Method, Phase

DEFAULTS: dict[str, object] = {}


class Finetune(Method):
    """Plain training on the current task's data, from the parameters that the task before left."""

    learns_variance = True

    def phases(self, task: int) -> Sequence[Phase]:
        return [plain_phase(self.setup, self.current_stream(), self.setup.steps[task])]


METHODS = {"finetune": (Finetune, DEFAULTS)}
