"""What the methods with a teacher share: the frozen model of the task before, and how the two losses are weighed."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import subkeys
from jdcl_jax.methods.denoising import Noised, class_losses, match, noise_examples, plain_phase
from jdcl_jax.methods.method import Learned, Memory, Method, Phase
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.streams import Streams

TEACHERS = ("last", "ema")
WEIGHTINGS = ("by_task", "sum")

DEFAULTS: dict[str, object] = {
    "teacher": "last",  # the raw parameters after the task before [code], or "ema", their average
    "weighting": "by_task",  # 1/k and 1 - 1/k [code], or "sum": 1 and 1 (arXiv 2509.23593 [paper])
}


def start_labels(context: Context, keys: jax.Array) -> jax.Array:
    """A label of an old class for each example, all equally likely: keys [B] -> int32 [B]."""
    old = context.method["old"]
    places = jax.vmap(lambda key: jax.random.randint(key, (), 0, old["count"]))(subkeys(keys, "class"))
    return old["classes"][places]


class TeacherMethod(Method):
    """loss = (1/k) MSE_current + (1 - 1/k) lambda MSE_old in task k >= 2 (from 1), lambda = `replay_weight` [code].

    With weighting "sum" it is MSE_current + lambda MSE_old.

    Subclasses say what the student is asked about the old tasks, and what it should answer.
    """

    phase_name = "replay"
    class_streams: tuple[str, ...] = ("current",)
    """The streams whose images the classifier learns, where there is one: the current data, and replayed images."""

    def check(self) -> None:
        if self.options["replay_weight"] < 0:
            raise UserError("method.replay_weight (lambda) is negative; write 0 or more")
        for key, choices in (("teacher", TEACHERS), ("weighting", WEIGHTINGS)):
            if self.options[key] not in choices:
                raise UserError(f"method.{key} is '{self.options[key]}'; write one of: {', '.join(choices)}")
        steps, most = self.options.get("teacher_steps", 1), self.setup.schedule.timesteps
        if not 1 <= steps <= most:
            raise UserError(f"method.teacher_steps is {steps}; write 1 to {most}")
        if self.options["teacher"] == "ema" and not self.setup.ema:
            raise UserError("method.teacher=ema needs an average; write train.ema=0.995 or method.teacher=last")

    def rehearsed(self, batch: dict[str, Examples], context: Context) -> tuple[Noised, jax.Array]:
        """What the student is asked about the old tasks, with what it should answer as target, and keys for dropout."""
        raise NotImplementedError

    def losses(self, params: PyTree, batch: dict[str, Examples], context: Context) -> tuple[jax.Array, jax.Array]:
        """MSE on the current task and on the old ones, [] each; both go through the student in one pass."""
        new, (old, keys) = noise_examples(self.setup, batch["current"]), self.rehearsed(batch, context)
        target = jax.lax.stop_gradient(old.target)
        current, rehearsed = match(self.setup, params, [(new, new.target, batch["current"].key), (old, target, keys)])
        return current, rehearsed

    def old_streams(self) -> Streams:
        """Where the old examples come from."""
        raise NotImplementedError

    def old_passes(self) -> float:
        """Cost of the old part of a step, in forward passes of a batch."""
        raise NotImplementedError

    def phases(self, task: int) -> Sequence[Phase]:
        setup = self.setup
        if task == 0:
            return [plain_phase(setup, self.current_stream(), setup.steps[task])]

        def loss(
            params: PyTree, batch: dict[str, Examples], context: Context
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            current, old = self.losses(params, batch, context)
            if setup.classifier is not None:
                names = self.class_streams
                learned = class_losses(setup, params, [batch[n] for n in names], [n != "current" for n in names])
                current, old = current + learned[0], old + sum(learned[1:], start=jnp.zeros(()))
            of_current, of_old = self._weights(context)
            total = of_current * current + of_old * self.options["replay_weight"] * old
            return total, {"loss_current": current, "loss_replay": old}

        streams = {"current": self.current_stream(), **self.old_streams()}
        classes = setup.class_passes * len(self.class_streams)
        return [Phase(self.phase_name, loss, streams, setup.steps[task], passes=3 + self.old_passes() + classes)]

    def _weights(self, context: Context) -> tuple[jax.Array | float, jax.Array | float]:
        if self.options["weighting"] == "sum":
            return 1.0, 1.0
        share = 1.0 / context.method["task_number"]
        return share, 1.0 - share

    def teacher_output(self, context: Context, x_t: jax.Array, t: jax.Array, labels: jax.Array | None) -> jax.Array:
        """What the frozen teacher says, [B, H, W, C]; no gradient passes."""
        return jax.lax.stop_gradient(self.setup.apply(context.method["teacher"], x_t, t, labels, None))

    def asked_labels(self, examples: Examples) -> jax.Array | None:
        """The labels of examples for a conditional denoiser, none dropped; else None."""
        return examples.label if self.setup.num_classes else None

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        # Those of the tasks before stand first.
        classes = np.array(self.setup.seen_classes(self.setup.num_tasks - 1), np.int32)
        old = {"classes": classes, "count": np.int32(len(self.setup.seen_classes(task - 1)))}
        return {
            "current": self.task_range(task),
            "teacher": memory["teacher"],
            "task_number": np.float32(task + 1),
            "old": old,
        }

    def init_memory(self, params: PyTree) -> Memory:
        return {"teacher": jax.tree.map(jnp.zeros_like, params)}

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        del task
        chosen = learned.averaged if self.options["teacher"] == "ema" else learned.params
        return {**memory, "teacher": jax.tree.map(jnp.copy, chosen)}
