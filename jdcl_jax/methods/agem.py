"""A-GEM: a step never raises the loss on the buffer, to first order (arXiv 1812.00420)."""

from collections.abc import Sequence

import jax

from jdcl_jax.data.batches import Examples
from jdcl_jax.methods import rehearsal
from jdcl_jax.methods.denoising import joint_losses, plain_phase
from jdcl_jax.methods.method import Phase
from jdcl_jax.training.gradients import Loss, without_conflict
from jdcl_jax.training.state import Context, PyTree

DEFAULTS: dict[str, object] = dict(rehearsal.DEFAULTS)


class AGEM(rehearsal.BufferMethod):
    """The gradient on the current batch is projected where it conflicts with that on a batch from the buffer.

    Clipping and Adam come after the projection and do not keep its inequality, as in every use of A-GEM with Adam.
    """

    def phases(self, task: int) -> Sequence[Phase]:
        if task == 0:
            return [plain_phase(self.setup, self.current_stream(), self.setup.steps[task])]

        def loss_on(name: str) -> Loss:
            def loss(
                params: PyTree, batch: dict[str, Examples], context: Context
            ) -> tuple[jax.Array, dict[str, jax.Array]]:
                del context
                (value,) = joint_losses(self.setup, params, [batch[name]])
                return value, {f"loss_{name}": value}

            return loss

        streams = {"current": self.current_stream(), "buffer": self.buffer_stream(self.setup.batch_size)}
        gradient = without_conflict(loss_on("current"), loss_on("buffer"))
        return [
            Phase(
                "project",
                None,
                streams,
                self.setup.steps[task],
                passes=2 * (3 + self.setup.class_passes),
                gradient=gradient,
            )
        ]


METHODS = {"agem": (AGEM, DEFAULTS)}
