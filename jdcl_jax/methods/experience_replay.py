"""Experience replay: a small buffer of old examples, weighed by the rehearsal coefficient (arXiv 2303.15342)."""

from collections.abc import Sequence

import jax

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.methods import rehearsal, timesteps
from jdcl_jax.methods.denoising import joint_losses, plain_phase
from jdcl_jax.methods.method import Phase
from jdcl_jax.methods.timesteps import law_of_options
from jdcl_jax.training.state import Context, PyTree

FORMS = ("additive", "convex", "concatenated")

DEFAULTS: dict[str, object] = {
    **rehearsal.DEFAULTS,
    "rehearsal_coefficient": 1.0,  # 1 is plain experience replay; the paper finds less to be better
    "form": "additive",
    **timesteps.DEFAULTS,
}


class ExperienceReplay(rehearsal.BufferMethod):
    """Trains on the current batch and one from the buffer; lambda is the rehearsal coefficient [ours: all three forms].

    additive: loss = MSE_current + lambda MSE_buffer.
    convex: loss = (1 - lambda) MSE_current + lambda MSE_buffer, lambda < 1.
    concatenated: one batch of B current and lambda B old images, rounded; every image weighs the same.
    """

    def check(self) -> None:
        super().check()
        form, coefficient = self.options["form"], self.options["rehearsal_coefficient"]
        if form not in FORMS:
            raise UserError(f"method.form is '{form}'; write one of: {', '.join(FORMS)}")
        if coefficient < 0:
            raise UserError("method.rehearsal_coefficient is negative; write 0 or more")
        if form == "convex" and coefficient > 1:
            raise UserError(f"method.rehearsal_coefficient is {coefficient}; with method.form=convex write less than 1")
        if form == "convex" and coefficient == 1:
            raise UserError(
                "method.rehearsal_coefficient is 1: with method.form=convex nothing of the current task would be "
                "learned; write less, such as 0.5"
            )
        if form == "concatenated" and self._old_images() < 1:
            raise UserError(
                f"method.rehearsal_coefficient is {coefficient}: with method.form=concatenated a batch of "
                f"{self.setup.batch_size} would hold no old image; write at least {1 / self.setup.batch_size:g}"
            )
        law_of_options(self.options, self.setup.schedule.timesteps)

    def _old_images(self) -> int:
        if self.options["form"] != "concatenated":
            return self.setup.batch_size
        return round(self.options["rehearsal_coefficient"] * self.setup.batch_size)

    def _weights(self) -> tuple[float, float]:
        coefficient, form = self.options["rehearsal_coefficient"], self.options["form"]
        if form == "additive":
            return 1.0, coefficient
        if form == "convex":
            return 1.0 - coefficient, coefficient
        share = self._old_images() / (self.setup.batch_size + self._old_images())
        return 1.0 - share, share

    def phases(self, task: int) -> Sequence[Phase]:
        if task == 0:
            return [plain_phase(self.setup, self.current_stream(), self.setup.steps[task])]
        setup, (of_current, of_buffer) = self.setup, self._weights()
        laws = [None, law_of_options(self.options, setup.schedule.timesteps)]

        def loss(
            params: PyTree, batch: dict[str, Examples], context: Context
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            del context
            current, rehearsed = joint_losses(setup, params, [batch["current"], batch["buffer"]], laws)
            return of_current * current + of_buffer * rehearsed, {"loss_current": current, "loss_buffer": rehearsed}

        streams = {"current": self.current_stream(), "buffer": self.buffer_stream(self._old_images())}
        passes = (3 + setup.class_passes) * (1 + self._old_images() / setup.batch_size)
        return [Phase("rehearse", loss, streams, setup.steps[task], passes=passes)]


METHODS = {"er": (ExperienceReplay, DEFAULTS)}
