"""What the methods with a buffer of training images share: the buffer, and a stream that reads from it."""

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key
from jdcl_jax.methods.buffer import POLICIES, buffer_rows, empty_buffer, fill, task_generator
from jdcl_jax.methods.method import Learned, Memory, Method
from jdcl_jax.training.state import PyTree
from jdcl_jax.training.streams import Stream

DEFAULTS: dict[str, object] = {
    "buffer_size": 200,  # examples in total, not per class [ours, from the grid of methods on 2303.15342]
    "buffer_policy": "class_balanced",
}


class BufferMethod(Method):
    """Keeps a buffer, filled once at the end of every task with rows of that task."""

    def check(self) -> None:
        size, policy = self.options["buffer_size"], self.options["buffer_policy"]
        if policy not in POLICIES:
            raise UserError(f"method.buffer_policy is '{policy}'; write one of: {', '.join(POLICIES)}")
        if size < 1:
            raise UserError(f"method.buffer_size is {size}; write 1 or more")
        if policy == "class_balanced" and np.any(self.setup.labels < 0):
            raise UserError(
                "method.buffer_policy=class_balanced needs all labels; write method.buffer_policy=reservoir, or "
                "data.label_fraction=1"
            )
        classes = len(self.setup.seen_classes(self.setup.num_tasks - 1))
        most = classes * len(self.setup.labels)  # of classes of any size, a balanced buffer of so many keeps all images
        if size > most:
            raise UserError(f"method.buffer_size is {size}, more than these data could ever fill; write at most {most}")
        if policy == "class_balanced" and size < classes:
            raise UserError(
                f"method.buffer_size is {size} in total, less than one per class; write at least {classes}, "
                "or method.buffer_policy=reservoir"
            )

    def buffer_stream(self, batch_size: int) -> Stream:
        """Uniform draws from the buffer."""
        return Stream(batch_size, rows=buffer_rows("buffer"), view=self.setup.views.weak)

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        return {"current": self.task_range(task), "buffer": memory["buffer"]}

    def init_memory(self, params: PyTree) -> Memory:
        del params
        return {"buffer": empty_buffer(self.options["buffer_size"])}

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        del learned
        start, size = self.setup.start(task), self.setup.task_sizes[task]
        rows = np.arange(start, start + size, dtype=np.int32)
        generator = task_generator(named_key(self.setup.seed, "task", task, "end"))
        labels, policy = self.setup.labels, self.options["buffer_policy"]
        tasks = np.repeat(np.arange(self.setup.num_tasks), self.setup.task_sizes)
        return {"buffer": fill(memory["buffer"], rows, labels, tasks, policy=policy, generator=generator)}

    def kept_rows(self, memory: Memory) -> np.ndarray:
        return memory["buffer"]["rows"][: int(memory["buffer"]["count"])]
