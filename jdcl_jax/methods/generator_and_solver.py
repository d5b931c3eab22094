"""What the methods share that keep a generator and a classifier apart from it: phases, replay, what is kept.

At the beginning of a task the generator of the task before draws images of all old classes; generator and classifier
(the solver) then both learn from the real images of the new classes and from these. The classes that may be answered
are a mask that grows with the tasks; no array changes its shape.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdcl_jax.data.batches import Examples
from jdcl_jax.diffusion.guidance import LogP, Term
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key, subkeys
from jdcl_jax.methods.denoising import denoising_losses, generate, plain_phase
from jdcl_jax.methods.method import SOLVER, Learned, Memory, Method, Phase, ReplaySet, Solver
from jdcl_jax.methods.stored_replay import DRAW, draw_phase, empty_store, store_capacity, store_size, stored_stream
from jdcl_jax.models.resnet import masked
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream

GENERATE, SOLVE, REPLAYED = "generator", "solver", "+replay"  # names of phases, and what is added after the first task

DEFAULTS: dict[str, object] = {
    "replay_per_class": 20,  # images drawn for every old class at the beginning of a task [code of DDGR and GPPDM]
    "replay_steps": 250,  # reverse steps of such an image
}


class GeneratorAndSolver(Method):
    """Draws, trains the generator and trains the solver, the last two in the order that a subclass gives.

    Both losses are weighed by the number of classes, n new and o old ones: (n L_real + o L_replayed) / (n + o) [ours].
    Where classes return in later tasks, each counts in every task that it was in.
    """

    settings = {"classifier.kind": "solver", "model.class_conditional": True}  # noqa: RUF012 (never written to)
    learns_variance = True

    @property
    def solver(self) -> Solver:
        """The classifier's network."""
        assert self.setup.solver is not None
        return self.setup.solver

    def check(self) -> None:
        setup, options = self.setup, self.options
        if setup.solver is None:
            raise UserError(
                "this method trains a classifier of its own beside the generator; write classifier.kind=solver"
            )
        if setup.num_classes == 0:
            raise UserError("this method asks its generator for classes; write model.class_conditional=True")
        if np.any(setup.labels < 0):
            raise UserError("this method needs all labels; write data.label_fraction=1")
        if options["replay_per_class"] < 1:
            raise UserError("method.replay_per_class counts from 1")
        if not 1 <= options["replay_steps"] <= setup.schedule.timesteps:
            raise UserError(f"method.replay_steps is {options['replay_steps']}; write 1 to {setup.schedule.timesteps}")
        if not setup.reset_optimizer:
            raise UserError(
                "generator and classifier start each task from kept weights; write train.reset_optimizer=True"
            )
        size = store_capacity(setup, options["replay_per_class"]) * math.prod(setup.image_shape)
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UserError(
                f"method.replay_per_class is {options['replay_per_class']}: {size // 2**30:,} GiB of images, more than "
                "this machine's memory; write less"
            )

    # -- replay

    def chain(self) -> Sampler:
        """How replayed images are drawn: as for evaluation, with steps of its own, and fit to be guided or not."""
        return replace(self.setup.sampler, steps=self.options["replay_steps"], recompute=self.setup.sampler.clip)

    def terms(self, context: Context, labels: jax.Array) -> Sequence[Term]:
        """What guides the images of old classes that are drawn; labels int32 [B] are those asked for."""
        del context, labels
        return ()

    def term_passes(self) -> float:
        """Cost of these terms at one step for one image, in forward passes of the denoiser."""
        return 0.0

    def drawn(self, context: Context, keys: jax.Array, labels: jax.Array, terms: Sequence[Term]) -> jax.Array:
        """Images of the generator of the task before, float32 [B, H, W, C] in [-1, 1]."""
        generator = context.method["generator"]
        keys = subkeys(keys, "sample")
        return jax.lax.stop_gradient(generate(self.setup, generator, labels, keys, self.chain(), terms))

    def log_p(self, context: Context, allowed: jax.Array) -> LogP:
        """What the kept solver says of images [B, H, W, C], among the allowed classes bool [C]: [B, C]."""

        def of(images: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(masked(self.solver.logits(context.method["solver"], images), allowed))

        return of

    def draw_phase(self, task: int) -> Phase:
        """Fills the store with images of all old classes."""

        def draw(context: Context, keys: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.drawn(context, keys, labels, self.terms(context, labels)), labels

        of_step = self.setup.sampling_passes + self.term_passes()
        size = store_size(self.setup, self.options["replay_per_class"], task)
        phase = draw_phase(self.setup, size, draw, passes=self.options["replay_steps"] * of_step)
        return replace(phase, scored=True)

    # -- training

    def generator_phase(self, task: int) -> Phase:
        """The generator on real and replayed images."""
        setup, steps = self.setup, self.setup.steps[task]
        if task == 0:
            return plain_phase(setup, self.current_stream(), steps, name=GENERATE)

        def loss(
            params: PyTree, batch: dict[str, Examples], context: Context
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            new, old = denoising_losses(setup, params, [batch["current"], batch["replay"]])
            return _weighed(context, new, old), {"loss_current": new, "loss_replay": old}

        return Phase(GENERATE + REPLAYED, loss, self._streams(), steps, passes=6)

    def solver_phase(self, task: int, steps: int = 0, *, continues: bool = False, stored: str = "stored") -> Phase:
        """The solver on real and replayed images, `steps` of its steps or all; `stored` is the store's name."""
        solver, steps = self.solver, steps or self.solver.steps[task]

        def cross_entropy(params: PyTree, examples: Examples, context: Context) -> jax.Array:
            logits = masked(solver.logits(params, examples.image), context.method["classes"]["seen"])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, examples.label))

        def first(
            params: PyTree, batch: dict[str, Examples], context: Context
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            return cross_entropy(params, batch["current"], context), {}

        def later(
            params: PyTree, batch: dict[str, Examples], context: Context
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            new, old = (cross_entropy(params, batch[name], context) for name in ("current", "replay"))
            return _weighed(context, new, old), {"loss_current": new, "loss_replay": old}

        cost = 3 * solver.passes
        phase = Phase(SOLVE, first, {"current": self.current_stream()}, steps, passes=cost, network=SOLVER)
        if task == 0:
            return phase
        streams, name = self._streams(stored), SOLVE + REPLAYED
        return replace(phase, name=name, loss=later, streams=streams, passes=2 * cost, continues=continues)

    def _streams(self, stored: str = "stored") -> dict[str, Stream]:
        replayed = stored_stream(self.setup.batch_size, stored, view=self.setup.views.weak)
        return {"current": self.current_stream(), "replay": replayed}

    # -- what is kept

    def init_memory(self, params: PyTree) -> Memory:
        unread = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(self.solver.fresh, jax.random.key(0))
        )
        capacity = store_capacity(self.setup, self.options["replay_per_class"])
        kept = jax.tree.map(jnp.copy, params)
        return {"generator": kept, "solver": unread, "stored": empty_store(self.setup, capacity)}

    def init_tracked(self, params: PyTree) -> Tracked:
        del params
        return {"drawn": empty_store(self.setup, store_capacity(self.setup, self.options["replay_per_class"]))}

    def start(self, memory: Memory, task: int, phase: Phase) -> PyTree | None:
        """The generator goes on from the weights that are sampled, averaged where there are such; the solver too."""
        if phase.observe is not None or phase.continues:
            return None
        if phase.network == SOLVER:
            fresh = task > 0 and not self.solver.warm_start
            return self.solver.fresh(named_key(self.setup.seed, "task", task, "solver")) if fresh else None
        return memory["generator"]

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        if phase.name == DRAW:
            return {**memory, "stored": learned.tracked["drawn"]}
        return {**memory, "solver": _copied(learned.solver)} if phase.network == SOLVER else memory

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        del task
        return {**memory, "generator": _copied(learned.averaged), "solver": _copied(learned.solver)}

    def replay_set(self, memory: Memory, task: int) -> ReplaySet:
        size = store_size(self.setup, self.options["replay_per_class"], task)
        return ReplaySet(*(np.asarray(memory["stored"][name])[:size] for name in ("images", "labels")))

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        setup = self.setup
        old, new = setup.seen_classes(task - 1), setup.groups[task]
        met = sum(map(len, setup.groups[: task + 1]))  # a class that returns counts in each of its tasks
        everyone = np.array(setup.seen_classes(setup.num_tasks - 1), np.int32)
        count = store_size(setup, self.options["replay_per_class"], task) if task else 1
        return {
            "current": self.task_range(task),
            "generator": memory["generator"],
            "solver": memory["solver"],
            "stored": {**memory["stored"], "count": np.int32(count)},
            "old": {"classes": everyone, "count": np.int32(len(old))},
            "classes": {"new": self._mask(new), "old": self._mask(old), "seen": self._mask(setup.seen_classes(task))},
            "share": np.float32(len(new) / met),
        }

    def _mask(self, classes: Sequence[int]) -> np.ndarray:
        return np.isin(np.arange(self.setup.num_classes), np.array(classes, np.int64))


def _weighed(context: Context, new: jax.Array, old: jax.Array) -> jax.Array:
    share = context.method["share"]
    return share * new + (1.0 - share) * old


def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(np.array, tree)
