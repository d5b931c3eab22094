"""Generative distillation (GD): the teacher is imitated on its own samples at every noise level (arXiv 2311.14028)."""

import jax

from jdcl_jax.methods.denoising import Noised
from jdcl_jax.methods.teacher import TeacherReplay
from jdcl_jax.training.state import PyTree

DEFAULTS: dict[str, object] = {
    "teacher_steps": 2,  # S, DDIM steps of the teacher [code]
    "replay_weight": 0.75,  # lambda [code]
}


class GenerativeDistillation(TeacherReplay):
    """The target on a re-noised teacher sample is the teacher's own output there."""

    phase_name = "distil"
    target_passes = 1

    def target(self, noised: Noised, teacher: PyTree) -> jax.Array:
        return self.setup.apply(teacher, noised.x_t, noised.t, noised.labels, None)


METHODS = {"gd": (GenerativeDistillation, DEFAULTS)}
