"""Learning without forgetting: the teacher's outputs on the noised current batch (arXiv 2311.14028's baseline)."""

import jax

from jdcl_jax.data.batches import Examples
from jdcl_jax.methods import teacher
from jdcl_jax.methods.denoising import match_both, noise_examples
from jdcl_jax.methods.teacher import TeacherMethod
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.streams import Streams

DEFAULTS: dict[str, object] = {
    "replay_weight": 1.25,  # lambda [code]
    **teacher.DEFAULTS,
}


class LearningWithoutForgetting(TeacherMethod):
    """One batch and one pass of the student, two targets: the noise, and what the teacher says."""

    phase_name = "imitate"

    def losses(self, params: PyTree, batch: dict[str, Examples], context: Context) -> tuple[jax.Array, jax.Array]:
        new = noise_examples(self.setup, batch["current"])
        said = self.teacher_output(context, new.x_t, new.t, new.labels)
        return match_both(self.setup, params, new, said, batch["current"].key)

    def old_streams(self) -> Streams:
        return {}

    def old_passes(self) -> float:
        return 1


METHODS = {"lwf": (LearningWithoutForgetting, DEFAULTS)}
