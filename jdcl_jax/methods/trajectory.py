"""Trajectory distillation: the student sees the teacher's own reverse states, not re-noised samples (2311.14028)."""

import jax

from jdcl_jax.data.batches import Examples
from jdcl_jax.diffusion.sampler import Sampler, sample_until
from jdcl_jax.keys import subkeys
from jdcl_jax.methods import teacher
from jdcl_jax.methods.denoising import Noised, bind, network_labels
from jdcl_jax.methods.starts import start_stream
from jdcl_jax.methods.teacher import TeacherMethod
from jdcl_jax.methods.timesteps import TimestepLaw, draw_timesteps
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import Streams

DEFAULTS: dict[str, object] = {
    "teacher_steps": 2,  # S, DDIM steps of the teacher from noise to t' [code]
    "replay_weight": 0.75,  # lambda [ours: as GD's]
    **teacher.DEFAULTS,
}


class TrajectoryDistillation(TeacherMethod):
    """The input is the teacher's reverse state at t' ~ U{0..T-1}, reached in S equal steps [code]."""

    phase_name = "follow"

    def rehearsed(self, batch: dict[str, Examples], context: Context) -> tuple[Noised, jax.Array]:
        setup, starts = self.setup, batch["replay"]
        t = draw_timesteps(TimestepLaw(setup.schedule.timesteps), subkeys(starts.key, "t"))
        chain = Sampler("ddim", self.options["teacher_steps"], prediction=setup.sampler.prediction)
        predict = bind(setup, context.method["teacher"], self.asked_labels(starts))
        x_t = jax.lax.stop_gradient(
            sample_until(predict, setup.schedule, chain, subkeys(starts.key, "sample"), setup.image_shape, t)
        )
        labels = network_labels(setup, starts)  # some dropped, or the student would forget what guidance subtracts
        return Noised(x_t, t, labels, self.teacher_output(context, x_t, t, labels)), starts.key

    def old_streams(self) -> Streams:
        return {"replay": start_stream(self.setup)}

    def old_passes(self) -> float:
        return 3 + 1 + self.setup.sampling_passes * self.options["teacher_steps"]


METHODS = {"trajectory": (TrajectoryDistillation, DEFAULTS)}
