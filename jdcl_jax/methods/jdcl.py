"""JDCL: one network that generates and classifies, learned task by task without a buffer (arXiv 2411.08224).

A task has two stages. Locally, a copy of the network learns the new task's real data. Then a replay set is drawn, old
classes from the model of all tasks before, new ones from the local model, each labelled by the model's own classifier.
Globally, the model of all tasks learns from that set alone, with both models as teachers.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import to_float, to_uint8
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key, subkeys
from jdcl_jax.methods.denoising import generate
from jdcl_jax.methods.global_stage import GROUPS, REPLAY, global_loss, store_stream, teaching
from jdcl_jax.methods.local_stage import LABELLED, LOCAL, UNLABELLED, labelled_rows, local_phase
from jdcl_jax.methods.method import Learned, Memory, Method, Phase
from jdcl_jax.methods.quotas import draw_steps, empty_draw, quota_phase, replay_facts, top_up
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked

DRAW, GLOBAL = "draw", "global"  # names of phases

TEACHERS = ("ema", "last")
STARTS = ("global", "scratch")

DEFAULTS: dict[str, object] = {
    "first_steps": 0,  # of the first task's local stage; 0: train.steps, as of every other [code]
    "global_steps": 30_000,  # of the global stage [code]
    "quota": 1000,  # replay images for every class [code]
    "replay_steps": 250,  # DDIM steps of a replay image [code]
    "replay_batch": 512,  # images drawn at a time [ours]
    "denoising_weight": 0.01,  # of MSE against the noise [code]
    "class_weight": 1e-5,  # of cross-entropy against the label [code]
    "distillation_weight": 2.0,  # of MSE against the teacher [code]
    "class_distillation_weight": 0.002,  # of soft cross-entropy against the teacher [code]
    "class_delay": 10_000,  # steps of the global stage before its class terms begin [code]
    "local_start": "global",  # the local stage begins with a copy of the global model [2nd], or from "scratch" [code]
    "teacher": "ema",  # weights that label, teach and are copied [2nd], or "last", the raw ones [code]
    "local": True,  # the local stage; False: the global one learns the new task's real data itself
    "distillation": True,  # False: no teacher; MSE + alpha CE on the replay set
    "unlabelled": "fixmatch",  # what is done with images without labels [code]; or "denoise", or "ignore"
    "threshold": 0.95,  # of FixMatch [code]
}


class JDCL(Method):
    """Local stage, replay with quotas, global stage.

    [ours]: after the first task the local model is the global one; without the local stage new images are the real
    ones, whose targets are the truth where a teacher's answer would stand. Samples come from averaged weights, with x_0
    clipped, whatever `teacher` says [code].
    """

    def check(self) -> None:
        setup, options = self.setup, self.options
        if setup.classifier is None:
            raise UserError(
                "jdcl generates and classifies; write classifier.kind=joint or separate, or another method, such as gd"
            )
        if setup.num_classes:
            raise UserError("jdcl's denoiser is unconditional; write model.class_conditional=False")
        if setup.classes_return:
            raise UserError(
                "jdcl replays old classes from the old model and new ones from the local model, and here classes come "
                "again in later tasks; write tasks.domain= (empty), or another method, such as gd or er"
            )
        if setup.classifier.label_fraction == 0:
            raise UserError("jdcl labels its replay by a classifier; write data.label_fraction above 0")
        for key, choices in (("local_start", STARTS), ("teacher", TEACHERS), ("unlabelled", UNLABELLED)):
            if options[key] not in choices:
                raise UserError(f"method.{key} is '{options[key]}'; write one of: {', '.join(choices)}")
        for key in ("global_steps", "quota", "replay_steps", "replay_batch"):
            if options[key] < 1:
                raise UserError(f"method.{key} is {options[key]}; write 1 or more")
        for key in ("first_steps", "class_delay", "threshold", *(key for key in DEFAULTS if key.endswith("_weight"))):
            if options[key] < 0:
                raise UserError(f"method.{key} is negative; write 0 or more")
        self._check_together()

    def _check_together(self) -> None:
        setup, options = self.setup, self.options
        if options["teacher"] == "ema" and not setup.ema:
            raise UserError("method.teacher=ema needs an average; write train.ema=0.995 or method.teacher=last")
        if options["replay_steps"] > setup.schedule.timesteps:
            raise UserError(
                f"method.replay_steps is {options['replay_steps']}; write at most {setup.schedule.timesteps}"
            )
        if not setup.reset_optimizer:
            raise UserError("jdcl's stages start from other weights; write train.reset_optimizer=True")
        if setup.batch_size % GROUPS:
            raise UserError(f"train.batch_size is {setup.batch_size}; write a multiple of {GROUPS}")
        if not options["local"] and options["local_start"] != DEFAULTS["local_start"]:
            raise UserError("method.local_start has no effect with method.local=False; leave it out")
        if not options["local"] and np.any(setup.labels < 0):
            raise UserError("images without labels are learned in the local stage; write method.local=True")
        if options["class_delay"] >= options["global_steps"]:
            raise UserError(
                f"method.class_delay is {options['class_delay']}: the class terms would never begin; write less than "
                f"method.global_steps={options['global_steps']}"
            )
        self._check_effects()
        self._check_room()

    def _check_effects(self) -> None:
        """Options that would have no effect are refused."""
        options, all_known = self.options, not np.any(self.setup.labels < 0)
        changed = {key for key, value in DEFAULTS.items() if options[key] != value}
        for key in {"unlabelled", "threshold"} & changed if all_known else ():
            raise UserError(f"method.{key} has no effect where all labels are known; write data.label_fraction=0.1")
        if options["threshold"] > 1:
            raise UserError(f"method.threshold is {options['threshold']}, and no probability is above 1; write 0.95")
        if "threshold" in changed and options["unlabelled"] != "fixmatch":
            raise UserError("method.threshold is FixMatch's; write method.unlabelled=fixmatch, or leave it out")

    def _check_room(self) -> None:
        setup, options = self.setup, self.options
        size = len(self._classes) * options["quota"] * math.prod(setup.image_shape)
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UserError(f"method.quota is {options['quota']}: {size // 2**30:,} GiB of images; write less")

    # -- phases

    def phases(self, task: int) -> Sequence[Phase]:
        if task == 0:
            return [self._local(self.options["first_steps"] or self.setup.steps[0])]
        local = [self._local(self.setup.steps[task])] if self.options["local"] else []
        return [*local, self._draw(task), self._global()]

    def _local(self, steps: int) -> Phase:
        options = self.options
        return local_phase(self.setup, steps, unlabelled=options["unlabelled"], threshold=options["threshold"])

    def _draw(self, task: int) -> Phase:
        setup, options = self.setup, self.options
        classifier = setup.classifier
        assert classifier is not None
        chain = Sampler("ddim", options["replay_steps"], eta=0.0, clip=True, prediction=setup.sampler.prediction)

        def sample(context: Context, source: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
            models = context.method["models"]
            drawing, labelling = (
                jax.tree.map(lambda x: x[source], models[name]) for name in ("averaged", self._teaching)
            )
            images = generate(setup, drawing, None, subkeys(keys, "sample"), chain)
            logits = classifier.logits(labelling, to_float(to_uint8(images)), None)  # as they will be stored
            return images, jnp.argmax(logits, axis=-1).astype(jnp.int32)

        passes = options["replay_steps"] + classifier.passes
        steps = sum(self._draw_steps(task))
        return quota_phase(setup, DRAW, steps, options["replay_batch"], sample, passes)

    def _global(self) -> Phase:
        setup, options = self.setup, self.options
        streams = {REPLAY: store_stream(setup.batch_size, setup.views)}
        if not options["local"]:
            streams["current"] = self.current_stream()
        late = max(options["global_steps"] - options["class_delay"], 0) / options["global_steps"]
        assert setup.classifier is not None
        taught = 1 if options["distillation"] else 0
        passes = 3 + taught + late * (setup.class_passes + taught * setup.classifier.passes)
        return Phase(GLOBAL, global_loss(setup, options), streams, options["global_steps"], passes=passes)

    # -- what is kept

    @property
    def _classes(self) -> list[int]:
        return [c for group in self.setup.groups for c in group]

    def _old_and_new(self, task: int) -> tuple[int, int]:
        """How many classes the old model is asked for, and how many the local one or the real data give."""
        return sum(map(len, self.setup.groups[:task])), len(self.setup.groups[task])

    def _wanted(self, task: int) -> np.ndarray:
        """Quotas of old and local model for every class of the sequence, int32 [2, P]."""
        place, (old, new) = np.arange(len(self._classes)), self._old_and_new(task)
        asked = np.stack([place < old, (place >= old) & (place < old + new) & self.options["local"]])
        return (asked * self.options["quota"]).astype(np.int32)

    def _draw_steps(self, task: int) -> list[int]:
        """Steps of the budget of either model."""
        asked = (self._wanted(task) > 0).sum(axis=1)
        return [draw_steps(int(n), self.options["quota"], self.options["replay_batch"]) for n in asked]

    def init_memory(self, params: PyTree) -> Memory:
        zeros = jax.tree.map(jnp.zeros_like, params)
        nothing = {"averaged": zeros, **({"raw": zeros} if self._teaching == "raw" else {})}
        models = {"old": nothing, "local": nothing} if self.options["local"] else {"old": nothing}
        return {**models, DRAW: empty_draw(self._classes, self.options["quota"], self.setup.image_shape)}

    def init_tracked(self, params: PyTree) -> Tracked:
        del params
        return {"drawn": empty_draw(self._classes, self.options["quota"], self.setup.image_shape)}

    def _kept(self, learned: Learned) -> dict[str, PyTree]:
        """The averaged weights, and where the raw ones teach, those too."""
        raw = {"raw": jax.tree.map(np.array, learned.params)} if self._teaching == "raw" else {}
        return {"averaged": jax.tree.map(np.array, learned.averaged), **raw}

    @property
    def _teaching(self) -> str:
        return teaching(self.options)

    def start(self, memory: Memory, task: int, phase: Phase) -> PyTree | None:
        if phase.observe is not None or task == 0:
            return None
        if phase.name == LOCAL and self.options["local_start"] == "scratch":
            assert self.setup.fresh is not None
            return jax.jit(self.setup.fresh)(named_key(self.setup.seed, "task", task, "scratch"))
        return memory["old"][self._teaching]

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        if phase.name == LOCAL:
            return {**memory, "local": self._kept(learned)}
        if phase.name != DRAW:
            return memory
        drawn, wanted = learned.tracked["drawn"], self._wanted(task)
        key = named_key(self.setup.seed, "task", task, "top_up")
        images = top_up(drawn, wanted.sum(axis=0), self.setup.views, key)
        return {**memory, DRAW: {**drawn, "images": images}}

    def facts(self, memory: Memory, task: int, phase: Phase | None) -> dict[str, Any]:
        if phase is None or phase.name != DRAW:
            return {}
        found = replay_facts(memory[DRAW], self._wanted(task), self._classes, self.setup.class_names)
        if not any(entry["accepted"] for entry in found["replay"]):
            raise UserError(
                f"task {task + 1}: no sample was taken for any class, so that nothing old can be learned; train longer "
                "(train.steps) or draw better (method.replay_steps)"
            )
        return found

    def end_task(self, memory: Memory, learned: Learned, task: int) -> Memory:
        del task
        return {**memory, "old": self._kept(learned)}

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        kept = [memory[name] for name in ("old", "local") if name in memory]
        return {
            "current": self.task_range(task),
            LABELLED: labelled_rows(self.setup, task),
            "models": {name: _stack([one[name] for one in kept]) for name in kept[0]},
            DRAW: {
                "classes": np.array(self._classes, np.int32),
                "wanted": self._wanted(task),
                "old_steps": np.int32(self._draw_steps(task)[0]),
            },
            "store": self._store(memory, task),
        }

    def _store(self, memory: Memory, task: int) -> dict[str, Any]:
        """The replay set as `store_stream` reads it; real images of the new task count as if they were in it."""
        quota, drawn = self.options["quota"], memory[DRAW]
        filled, (old_classes, new_classes) = np.asarray(drawn["counts"]) > 0, self._old_and_new(task)
        rows = np.zeros(len(drawn["images"]), np.int32)
        full = np.flatnonzero(np.repeat(filled, quota))
        rows[: len(full)] = full
        old = int(filled[:old_classes].sum()) * quota
        new = len(full) - old if self.options["local"] else new_classes * quota
        return {
            "images": drawn["images"],
            "labels": np.repeat(np.array(self._classes, np.int32), quota),
            "rows": rows,
            "old": np.int32(old),
            "new": np.int32(new if self.options["local"] else 1),
            "share": np.float32(old / max(old + new, 1)),
        }


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


METHODS = {"jdcl": (JDCL, DEFAULTS)}
