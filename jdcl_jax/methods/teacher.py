"""Replay from a teacher: fresh samples of the frozen model of the task before, drawn inside every step.

Generative replay and generative distillation differ in one thing only, the target on these samples, so both are this
class with that one method filled in (arXiv 2311.14028).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import Examples
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.errors import UserError
from jdcl_jax.keys import subkeys
from jdcl_jax.methods.denoising import Noised, generate, match, noise_examples, plain_phase
from jdcl_jax.methods.method import Memory, Method, Phase, Setup
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.streams import Stream


def teacher_stream(setup: Setup, steps: int) -> Stream:
    """Fresh samples of the teacher in `context.method["teacher"]`: DDIM, eta 0, x_0 clipped, S = `steps` [code].

    The sampler of the evaluation has no part in it. A conditional teacher is asked for old classes, all equally likely,
    with the guidance of the setup.
    """
    sampler = Sampler("ddim", steps, eta=0.0, clip=True, prediction=setup.sampler.prediction)

    def draw(context: Context, keys: jax.Array) -> Examples:
        labels = _old_labels(context, subkeys(keys, "class"))
        teacher = context.method["teacher"]
        images = generate(setup, teacher, labels if setup.num_classes else None, subkeys(keys, "sample"), sampler)
        return Examples(image=jax.lax.stop_gradient(images), label=labels, key=keys)

    return Stream(setup.batch_size, draw=draw)


def _old_labels(context: Context, keys: jax.Array) -> jax.Array:
    old = context.method["old"]
    places = jax.vmap(lambda key: jax.random.randint(key, (), 0, old["count"]))(keys)
    return old["classes"][places]


class TeacherReplay(Method):
    """loss = (1/k) MSE_current + (1 - 1/k) lambda MSE_replay in task k >= 2 (from 1) [code].

    The teacher is a copy of the raw parameters after the task before. Every step draws as many fresh samples as the
    batch has current images, re-noises them at a t of their own and asks for `target`.
    """

    phase_name = "replay"
    target_passes = 0

    def check(self) -> None:
        steps = self.options["teacher_steps"]
        if not 1 <= steps <= self.setup.schedule.timesteps:
            raise UserError(f"method.teacher_steps is {steps}; write 1 to {self.setup.schedule.timesteps}")
        if self.options["replay_weight"] < 0:
            raise UserError("method.replay_weight (lambda) is negative; write 0 or more")

    def target(self, noised: Noised, teacher: PyTree) -> jax.Array:
        """What the student should say about the noised teacher samples, [B, H, W, C]."""
        raise NotImplementedError

    def phases(self, task: int) -> Sequence[Phase]:
        if task == 0:
            return [plain_phase(self.setup, self.current_stream())]
        setup, steps = self.setup, self.options["teacher_steps"]

        def loss(
            params: PyTree, batch: dict[str, Examples], context: Context
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            new, old = noise_examples(setup, batch["current"]), noise_examples(setup, batch["replay"])
            target = jax.lax.stop_gradient(self.target(old, context.method["teacher"]))
            halves = [(new, new.target, batch["current"].key), (old, target, batch["replay"].key)]
            current, replay = match(setup, params, halves)
            share = 1.0 / context.method["task_number"]
            total = share * current + (1.0 - share) * self.options["replay_weight"] * replay
            return total, {"loss_current": current, "loss_replay": replay}

        streams = {"current": self.current_stream(), "replay": teacher_stream(setup, steps)}
        guided = 2 if setup.num_classes and setup.guidance > 0 else 1
        passes = 6 + guided * steps + self.target_passes
        return [Phase(self.phase_name, loss, streams, setup.steps, passes=passes)]

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        classes = np.array([c for group in self.setup.groups for c in group], np.int32)
        old = {"classes": classes, "count": np.int32(sum(map(len, self.setup.groups[:task])))}
        return {
            "current": self.task_range(task),
            "teacher": memory["teacher"],
            "task_number": np.float32(task + 1),
            "old": old,
        }

    def init_memory(self, params: PyTree) -> Memory:
        return {"teacher": jax.tree.map(jnp.zeros_like, params)}

    def end_task(self, memory: Memory, params: PyTree, task: int) -> Memory:
        del memory, task
        return {"teacher": jax.tree.map(jnp.copy, params)}
