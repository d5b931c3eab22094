"""DDGR: the classifier guides what the generator replays for the next classifier (ICML 2023)."""

from collections.abc import Sequence

import jax

from jdcl_jax.diffusion.guidance import Term, on_noisy
from jdcl_jax.methods import generator_and_solver
from jdcl_jax.methods.generator_and_solver import GeneratorAndSolver
from jdcl_jax.methods.guidance_options import check_guidance, over_time
from jdcl_jax.methods.method import Phase
from jdcl_jax.training.state import Context

DEFAULTS: dict[str, object] = {
    **generator_and_solver.DEFAULTS,
    "scale": 1.0,  # of the guidance of replayed images by the classifier of the task before [code]; 0: none
    "scale_schedule": "constant",  # over reverse time; or "rising", "falling"
}


class DDGR(GeneratorAndSolver):
    """Old images are drawn with the gradient of log p(y | x_t), p the classifier after the task before, y as asked.

    Generator and classifier then learn from real and replayed images, so that each serves the other [code]. The
    classifier has seen clean images only; it is shown x_t as it is [code].
    """

    def check(self) -> None:
        super().check()
        check_guidance(self.options)

    def terms(self, context: Context, labels: jax.Array) -> Sequence[Term]:
        log_p, scale = self.log_p(context, context.method["classes"]["old"]), self.options["scale"]
        return [on_noisy(log_p, labels, scale, over_time=over_time(self.setup, self.options))]

    def term_passes(self) -> float:
        return 2 * self.solver.passes if self.options["scale"] else 0.0

    def phases(self, task: int) -> Sequence[Phase]:
        drawn = [self.draw_phase(task)] if task else []
        return [*drawn, self.generator_phase(task), self.solver_phase(task)]


METHODS = {"ddgr": (DDGR, DEFAULTS)}
