"""GUIDE: what the classifier rehearses is drawn near the classes that it is just learning (arXiv 2403.03938).

The generator of the task before draws images of old classes, guided through its own denoising towards the class of the
current task that the present classifier finds in them. These are the images that the classifier is about to forget.
They are drawn again and again while it learns. The generator itself learns from replay without guidance.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from jdcl_jax.diffusion.guidance import DIRECTIONS, Term, asked, likeliest, on_clean
from jdcl_jax.errors import UserError
from jdcl_jax.methods import generator_and_solver
from jdcl_jax.methods.generator_and_solver import GeneratorAndSolver
from jdcl_jax.methods.guidance_options import check_guidance, over_time
from jdcl_jax.methods.method import Learned, Memory, Phase, ReplaySet
from jdcl_jax.methods.stored_replay import draw_phase, empty_store
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked

GUIDED = "guided_draw"  # the name of the phase
TARGETS = ("new", "old", "asked")

DEFAULTS: dict[str, object] = {
    **generator_and_solver.DEFAULTS,
    "replay_per_class": 500,  # images of every old class that the generator learns from [ours]
    "replay_steps": 50,  # of these and of the guided ones [ours]
    "scale": 0.5,  # of guidance; .2 on CIFAR-10 with 2 tasks, .5 with 5 and on CIFAR-100, 1 with ten [code]; 0: none
    "scale_schedule": "constant",  # over reverse time; or "rising", "falling"
    "target": "new",  # the likeliest class of the current task [code], of the "old" ones, or the class "asked" for
    "direction": "toward",  # that class [code], or "away" from it
    "every": 50,  # steps of the classifier after which its replay is drawn anew [ours]
    "guided_images": 256,  # how many each time [ours]
}


class GUIDE(GeneratorAndSolver):
    """Generator by plain replay; classifier by replay drawn every n steps, eps <- eps - sqrt(1 - alpha_bar) s grad.

    The gradient is that of log p(y* | x_0-hat) with respect to x_t, through the generator [code].
    """

    settings = {  # noqa: RUF012 (never written to)
        **GeneratorAndSolver.settings,
        "sampler.guidance": 1.0,  # that replayed images show the class that they stand for [ours]
    }

    def check(self) -> None:
        super().check()
        options = self.options
        for key, choices in (("target", TARGETS), ("direction", DIRECTIONS)):
            if options[key] not in choices:
                raise UserError(f"method.{key} is '{options[key]}'; write one of: {', '.join(choices)}")
        check_guidance(options)
        if options["target"] == "new" and self.setup.classes_return:
            raise UserError("method.target=new is of classes that no task before had; write method.target=asked")
        for key in ("every", "guided_images"):
            if options[key] < 1:
                raise UserError(f"method.{key} counts from 1")
        self._check_guided_images()
        for key in ("target", "direction") if options["scale"] == 0 else ():
            if options[key] != DEFAULTS[key] and not self.setup.classes_return:
                raise UserError(f"method.{key} has no effect with method.scale=0; leave it out")

    def _check_guided_images(self) -> None:
        number, old = self.options["guided_images"], len(self.setup.seen_classes(self.setup.num_tasks - 2))
        if number % self.setup.batch_size:
            raise UserError(
                f"method.guided_images is {number}; write a multiple of train.batch_size={self.setup.batch_size}"
            )
        if number < 2 * old:
            raise UserError(
                f"method.guided_images is {number}, too few for two of each of the {old} classes that the last task "
                f"rehearses; write {2 * old} or more"
            )

    def terms(self, context: Context, labels: jax.Array) -> Sequence[Term]:
        """None: those of the store that the generator learns from."""
        return ()

    def _guiding(self, context: Context, labels: jax.Array) -> Sequence[Term]:
        options, classes = self.options, context.method["classes"]
        choice = asked(labels) if options["target"] == "asked" else likeliest(classes[options["target"]])
        share = over_time(self.setup, options)
        log_p = self.log_p(context, classes["seen"])
        return [on_clean(log_p, choice, options["scale"], direction=options["direction"], over_time=share)]

    def phases(self, task: int) -> Sequence[Phase]:
        if task == 0:
            return [self.generator_phase(task), self.solver_phase(task)]
        draw = replace(self.draw_phase(task), scored=False)  # the classifier's replay is measured instead
        left, chunks = self.solver.steps[task], list[Phase]()
        while left > 0:
            steps = min(self.options["every"], left)
            left -= steps
            later = bool(chunks)
            drawn = replace(self._guided_phase(), continues=later, scored=left == 0)
            solved = self.solver_phase(task, steps, continues=later, stored="guided")
            chunks += [drawn, replace(solved, measured=left == 0)]
        return [draw, self.generator_phase(task), *chunks]

    def _guided_phase(self) -> Phase:
        def draw(context: Context, keys: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.drawn(context, keys, labels, self._guiding(context, labels)), labels

        # Guided, a step goes forward and back to the image, through the generator (twice where classifier-free
        # guidance asks it twice) and through the classifier.
        generator, classifier = self.setup.sampling_passes, 2 * self.solver.passes
        of_step = 2 * generator + classifier if self.options["scale"] else generator
        passes = self.options["replay_steps"] * of_step
        return draw_phase(self.setup, self.options["guided_images"], draw, passes=passes, name=GUIDED, any_turn=True)

    # -- what is kept

    def init_memory(self, params: PyTree) -> Memory:
        return {**super().init_memory(params), "guided": empty_store(self.setup, self.options["guided_images"])}

    def init_tracked(self, params: PyTree) -> Tracked:
        return {**super().init_tracked(params), GUIDED: empty_store(self.setup, self.options["guided_images"])}

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        if phase.name == GUIDED:
            return {**memory, "guided": learned.tracked[GUIDED]}
        return super().end_phase(memory, learned, task, phase)

    def replay_set(self, memory: Memory, task: int) -> ReplaySet:
        """Of the guided images that the classifier saw last in the task as many of each class as in the last task.

        Then the scores of all tasks are of equally many images of a class.
        """
        del task
        images, labels = (np.asarray(memory["guided"][name]) for name in ("images", "labels"))
        each = len(labels) // len(self.setup.seen_classes(self.setup.num_tasks - 2))
        rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in np.unique(labels)]))
        return ReplaySet(images[rows], labels[rows])

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        count = np.int32(self.options["guided_images"])
        return {**super().context(memory, task), "guided": {**memory["guided"], "count": count}}


METHODS = {"guide": (GUIDE, DEFAULTS)}
