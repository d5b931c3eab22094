"""Experience replay: a small buffer of old examples, weighed by the rehearsal coefficient (arXiv 2303.15342)."""

from collections.abc import Sequence

import jax
import numpy as np

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key
from jdcl_jax.methods.buffer import POLICIES, buffer_rows, empty_buffer, fill, task_generator
from jdcl_jax.methods.denoising import denoising_losses, plain_phase
from jdcl_jax.methods.method import Memory, Method, Phase
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.streams import Stream

DEFAULTS: dict[str, object] = {
    "buffer_size": 200,  # examples in total, not per class [ours, from the grid of methods on 2303.15342]
    "buffer_policy": "class_balanced",
    "rehearsal_coefficient": 1.0,  # 1 is plain experience replay; the paper finds less to be better
}


class ExperienceReplay(Method):
    """loss = MSE on the current batch + rehearsal_coefficient * MSE on the buffer's [ours: the additive form]."""

    def check(self) -> None:
        size, classes = self.options["buffer_size"], sum(map(len, self.setup.groups))
        if size < classes:
            raise UserError(f"method.buffer_size is {size} in total, less than one per class; write at least {classes}")
        if self.options["rehearsal_coefficient"] < 0:
            raise UserError("method.rehearsal_coefficient is negative; write 0 or more")
        if self.options["buffer_policy"] not in POLICIES:
            raise UserError(
                f"method.buffer_policy is '{self.options['buffer_policy']}'; write one of: {', '.join(POLICIES)}"
            )

    def phases(self, task: int) -> Sequence[Phase]:
        if task == 0:
            return [plain_phase(self.setup, self.current_stream())]
        setup, coefficient = self.setup, self.options["rehearsal_coefficient"]

        def loss(
            params: PyTree, batch: dict[str, Examples], context: Context
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            del context
            current, rehearsed = denoising_losses(setup, params, [batch["current"], batch["buffer"]])
            return current + coefficient * rehearsed, {"loss_current": current, "loss_buffer": rehearsed}

        streams = {
            "current": self.current_stream(),
            "buffer": Stream(setup.batch_size, rows=buffer_rows("buffer"), flip=setup.flip),
        }
        return [Phase("rehearse", loss, streams, setup.steps, passes=6)]

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        return {"current": self.task_range(task), "buffer": memory["buffer"]}

    def init_memory(self, params: PyTree) -> Memory:
        del params
        return {"buffer": empty_buffer(self.options["buffer_size"])}

    def end_task(self, memory: Memory, params: PyTree, task: int) -> Memory:
        del params
        start, size = self.setup.start(task), self.setup.task_sizes[task]
        rows = np.arange(start, start + size, dtype=np.int32)
        generator = task_generator(named_key(self.setup.seed, "task", task, "end"))
        policy = self.options["buffer_policy"]
        return {"buffer": fill(memory["buffer"], rows, self.setup.labels, policy=policy, generator=generator)}


METHODS = {"er": (ExperienceReplay, DEFAULTS)}
