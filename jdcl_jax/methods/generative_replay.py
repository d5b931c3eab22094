"""Generative replay (GR): the teacher's samples are treated as data (arXiv 2311.14028's baseline)."""

import jax

from jdcl_jax.methods.denoising import Noised
from jdcl_jax.methods.teacher import TeacherReplay
from jdcl_jax.training.state import PyTree

DEFAULTS: dict[str, object] = {
    "teacher_steps": 2,  # S, DDIM steps of the teacher [code]
    "replay_weight": 1.0,  # lambda [code]
}


class GenerativeReplay(TeacherReplay):
    """The target on a re-noised teacher sample is the noise that was added."""

    def target(self, noised: Noised, teacher: PyTree) -> jax.Array:
        del teacher
        return noised.target


METHODS = {"gr": (GenerativeReplay, DEFAULTS)}
