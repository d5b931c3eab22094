"""GPPDM: class prototypes join the denoising, and updates of its cross-attention are projected (arXiv 2312.06710).

A task: images of old classes are drawn with classifier-free guidance; the classifier learns from real and replayed
images; each new class's prototype begins as the training image that the classifier is surest of; the generator, with
the prototypes, learns from real and replayed images. What cross-attention made of the context of old classes (their
label and prototype tokens) stays as it was: updates of its keys and values, and of the layers that make the tokens, are
projected away from what these layers were shown, and old prototypes and label embeddings are frozen.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdcl_jax.data.batches import to_float, to_uint8
from jdcl_jax.errors import UserError
from jdcl_jax.methods import generator_and_solver
from jdcl_jax.methods.generator_and_solver import GENERATE, GeneratorAndSolver
from jdcl_jax.methods.gpm import (
    COLUMNS,
    check_projection,
    chosen_layers,
    empty_bases,
    empty_columns,
    extended,
    nothing_grown,
    projecting,
    projection_facts,
    represent_phase,
)
from jdcl_jax.methods.method import SOLVER, Learned, Memory, Phase
from jdcl_jax.methods.prototypes import (
    LABELS,
    PATH,
    PROTOTYPE,
    STARTS,
    UPDATES,
    noise_images,
    nothing_found,
    only_classes,
    prototype_optimizer,
    prototype_phase,
    with_prototypes,
)
from jdcl_jax.methods.stored_replay import store_size
from jdcl_jax.training.projection import threshold_at
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked

CONTEXT_LAYERS = ("conditioner/label", "conditioner/prototype")
CONTEXT_ENDINGS = ("/cross/key", "/cross/value")

DEFAULTS: dict[str, object] = {
    **generator_and_solver.DEFAULTS,
    "replay_steps": 100,  # of a replayed image [code]
    "replay_validation": 4,  # of `replay_per_class`, held out to see how well the classifier knows them [code]
    "prototypes": True,  # False: the denoiser is shown zeros in their place
    "prototype_start": "confident",  # the image that the classifier is surest of [code]; or "mean", "noise"
    "prototype_update": "learned",  # by the denoising loss; "one_step": moved once in a task [code], or "none"
    "prototype_rate": 1e-3,  # learning rate of their own Adam [ours]
    "projection": True,  # of the updates of `layers`
    "layers": "*/cross/key;*/cross/value;conditioner/*",  # patterns of paths [ours]
    "threshold": 0.97,  # share of the inputs' energy that is protected after the first task [ours, on GPM]
    "growth": 0.003,  # added to it after each further task [ours, on GPM]
    "samples": 256,  # images of a task that layers are shown whose inputs are not the context [ours]
    "positions": 4,  # pixels of each of these
}


def reads_context(layer: str) -> bool:
    """Whether a layer's inputs are made of the class alone: label, prototype and tokens, and not of x_t."""
    return layer in CONTEXT_LAYERS or layer.endswith(CONTEXT_ENDINGS)


class GPPDM(GeneratorAndSolver):
    """Prototypes and gradient projection; see the module.

    Layers that read the context are protected on every context vector of the task's classes ("no class" is all zeros,
    of which nothing is kept or forgotten); any others on inputs over sampled timesteps.
    """

    settings = {  # noqa: RUF012 (never written to)
        **GeneratorAndSolver.settings,
        "model.conditioning": "context",
        "model.label_dropout": 0.2,  # [code]
        "sampler.guidance": 3.0,  # [code]
    }

    def check(self) -> None:
        super().check()
        setup, options = self.setup, self.options
        if not setup.prototypes:
            raise UserError(
                "gppdm shows the denoiser prototypes; write model.conditioning=context and context.prototypes=both"
            )
        for key, choices in (("prototype_start", STARTS), ("prototype_update", UPDATES)):
            if options[key] not in choices:
                raise UserError(f"method.{key} is '{options[key]}'; write one of: {', '.join(choices)}")
        if not 0 <= options["replay_validation"] < options["replay_per_class"]:
            raise UserError(
                f"method.replay_validation is {options['replay_validation']}; write less than "
                f"method.replay_per_class={options['replay_per_class']}, such as 0"
            )
        if not options["prototype_rate"] > 0:
            raise UserError(
                "method.prototype_rate is a learning rate; write more than 0, or method.prototype_update=none"
            )
        changed = {key for key, value in DEFAULTS.items() if options[key] != value}
        for switch in ("prototypes", "projection"):
            for key in changed & DEPENDENT[switch] if not options[switch] else ():
                raise UserError(f"method.{key} has no effect with method.{switch}=False; leave it out")
        if "prototype_rate" in changed and options["prototype_update"] == "none":
            raise UserError("method.prototype_rate has no effect with method.prototype_update=none; leave it out")
        check_projection(options, "method.")
        for key in changed & {"samples", "positions"} if not self.hidden_layers else ():
            raise UserError(
                f"method.{key} is of layers whose inputs depend on x_t, and method.layers has none; leave it out"
            )

    # -- phases

    def phases(self, task: int) -> Sequence[Phase]:
        drawn = [self.draw_phase(task)] if task else []
        begun = [self._prototype_phase(task)] if self._looks_for_prototypes else []
        return [*drawn, self.solver_phase(task), *begun, self.generator_phase(task), *self._represented(task)]

    @property
    def _looks_for_prototypes(self) -> bool:
        return bool(self.options["prototypes"]) and self.options["prototype_start"] != "noise"

    def _prototype_phase(self, task: int) -> Phase:
        def log_p(context: Any, images: jax.Array) -> jax.Array:
            return self.log_p(context, context.method["classes"]["seen"])(images)

        streams, start = {"current": self.current_stream()}, str(self.options["prototype_start"])
        passes = self.solver.passes if start == "confident" else 0.0
        return prototype_phase(self.setup, task, start, log_p, passes, streams)

    def _represented(self, task: int) -> list[Phase]:
        if task == self.setup.num_tasks - 1 or not self.hidden_layers:
            return []
        streams = self.current_stream()
        return [represent_phase(self.setup, self.hidden_layers, self._sampling, streams, shown_by=_generator)]

    @property
    def _sampling(self) -> dict[str, Any]:
        return {**self.options, "batch_size": self.setup.batch_size}

    # -- replay

    def replayed_count(self, task: int) -> int:
        """Of the images drawn for a task, those that are learned; the others are the held-out ones."""
        learned = self.options["replay_per_class"] - self.options["replay_validation"]
        return store_size(self.setup, learned, task)

    def facts(self, memory: Memory, task: int, phase: Phase | None) -> dict[str, Any]:
        if phase is None:
            if not self.options["projection"] or task == self.setup.num_tasks - 1:
                return {}
            return projection_facts(memory["bases"], memory["grown"], self.threshold(task))
        if phase.network != SOLVER or task == 0 or not self.options["replay_validation"]:
            return {}
        return {"replay_validation_accuracy": self._held_out_accuracy(memory, task)}

    def _held_out_accuracy(self, memory: Memory, task: int) -> float:
        setup, count = self.setup, self.options["replay_validation"]
        first, number = self.replayed_count(task), store_size(setup, count, task)
        rows = first + np.resize(np.arange(number), store_size(setup, count, setup.num_tasks - 1))  # of one shape
        images, labels = (np.asarray(memory["stored"][name])[rows] for name in ("images", "labels"))
        logits = np.asarray(self._logits(memory["solver"], to_float(jnp.asarray(images))))
        answers = np.where(self._mask(setup.seen_classes(task)), logits, -np.inf).argmax(axis=-1)
        return float(np.mean((answers == labels)[:number]))

    @functools.cached_property
    def _logits(self) -> Callable[[PyTree, jax.Array], jax.Array]:
        return jax.jit(self.solver.logits)

    # -- what is protected

    @functools.cached_property
    def layers(self) -> list[str]:
        """Paths of the layers whose updates are projected."""
        return chosen_layers(self.setup, self.options["layers"]) if self.options["projection"] else []

    @property
    def hidden_layers(self) -> list[str]:
        """Those among them whose inputs depend on x_t."""
        return [layer for layer in self.layers if not reads_context(layer)]

    def threshold(self, task: int) -> float:
        """Share of the energy that is protected after a task (from 0)."""
        return threshold_at(self.options["threshold"], self.options["growth"], task)

    def context_inputs(self, params: PyTree, task: int) -> dict[str, np.ndarray]:
        """What the layers that read the context are shown of each of the task's classes: layer -> [in, n]."""
        setup, classes = self.setup, self.setup.groups[task]
        labels = np.full(max(map(len, setup.groups)), setup.num_classes, np.int32)  # one shape, filled with "no class"
        labels[: len(classes)] = classes
        shown = jax.device_get(self._shown(params, labels))
        return {layer: rows[: len(classes)].reshape(-1, rows.shape[-1]).T for layer, rows in shown.items()}

    @functools.cached_property
    def _shown(self) -> Callable[[PyTree, np.ndarray], dict[str, jax.Array]]:
        """(params, labels int32 [B]) -> layer -> its inputs [B, n, in]; compiled once for all tasks."""
        setup, layers = self.setup, [layer for layer in self.layers if reads_context(layer)]

        def shown(params: PyTree, labels: jax.Array) -> dict[str, jax.Array]:
            x, t = jnp.zeros((len(labels), *setup.image_shape)), jnp.zeros(len(labels), jnp.int32)
            assert setup.inputs is not None
            return setup.inputs(params, x, t, labels, layers)

        return jax.jit(shown)

    def optimizer(self, base: optax.GradientTransformation) -> optax.GradientTransformation:
        options = self.options
        update = str(options["prototype_update"]) if options["prototypes"] else "none"
        made = prototype_optimizer(base, update, float(options["prototype_rate"]))
        frozen = (PATH, LABELS) if options["projection"] else (PATH,)
        made = optax.chain(made, only_classes(lambda method: method["first_seen"], frozen))
        return projecting(made, lambda method: method["bases"]) if options["projection"] else made

    # -- what is kept

    def init_memory(self, params: PyTree) -> Memory:
        layers = self.layers
        found = {"prototypes": nothing_found(self.setup)[PROTOTYPE]["image"]} if self._looks_for_prototypes else {}
        return {
            **super().init_memory(params),
            **found,
            "bases": empty_bases(params, layers),
            "grown": nothing_grown(layers),
        }

    def init_tracked(self, params: PyTree) -> Tracked:
        hidden = {COLUMNS: empty_columns(self.setup, params, self.hidden_layers, self._sampling)}
        found = nothing_found(self.setup) if self._looks_for_prototypes else {}
        return {**super().init_tracked(params), **found, **(hidden if self.hidden_layers else {})}

    def start(self, memory: Memory, task: int, phase: Phase) -> PyTree | None:
        params = super().start(memory, task, phase)
        if not phase.name.startswith(GENERATE) or params is None or not self.options["prototypes"]:
            return params
        classes = self._first_seen(task)
        noise = self.options["prototype_start"] == "noise"
        begun = noise_images(self.setup, classes) if noise else memory["prototypes"]
        return with_prototypes(params, begun, classes)

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        if phase.name == PROTOTYPE:
            return {**memory, "prototypes": np.asarray(learned.tracked[PROTOTYPE]["image"])}
        if phase.name.startswith(GENERATE):  # nothing draws any more in this task; it is looked at as it will be kept
            return super().end_task(memory, learned, task)
        return super().end_phase(memory, learned, task, phase)

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        memory = super().end_task(memory, learned, task)
        if not self.options["projection"] or task == self.setup.num_tasks - 1:
            return memory
        columns = self.context_inputs(memory["generator"], task)
        if self.hidden_layers:
            columns |= learned.tracked[COLUMNS]
        bases, grown = extended(memory["bases"], columns, memory["generator"], self.threshold(task))
        return {**memory, "bases": bases, "grown": grown}

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        context = super().context(memory, task)
        count = np.int32(self.replayed_count(task) if task else 1)
        first = self._mask(self._first_seen(task))
        return {
            **context,
            "stored": {**context["stored"], "count": count},
            "bases": memory["bases"],
            "first_seen": first,
        }

    def _first_seen(self, task: int) -> list[int]:
        """The classes of a task that no task before had; where classes return, their prototypes stay."""
        return [c for c in self.setup.groups[task] if c not in self.setup.seen_classes(task - 1)]

    def pictures(self, memory: Memory, task: int) -> dict[str, np.ndarray]:
        if not self.options["prototypes"]:
            return {}
        seen = list(self.setup.seen_classes(task))
        prototypes = np.asarray(memory["generator"]["conditioner"]["prototypes"])[seen]
        return {"prototypes": np.asarray(to_uint8(jnp.asarray(prototypes)))}


def _generator(context: Context) -> PyTree:
    return context.method["generator"]


DEPENDENT = {
    "prototypes": {"prototype_start", "prototype_update", "prototype_rate"},
    "projection": {"layers", "threshold", "growth", "samples", "positions"},
}
"""What has no effect without prototypes and projection."""

METHODS = {"gppdm": (GPPDM, DEFAULTS)}
