"""Replay of the teacher's samples, re-noised: generative replay and generative distillation (arXiv 2311.14028).

The two differ in one thing only, the target on these samples, so both are this class with that one method filled in.
Samples are drawn afresh in every step, or once per task and kept.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from jdcl_jax.data.batches import Examples
from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.errors import UserError
from jdcl_jax.keys import subkeys
from jdcl_jax.methods import teacher, timesteps
from jdcl_jax.methods.denoising import Noised, generate, noise_examples
from jdcl_jax.methods.method import Learned, Memory, Phase
from jdcl_jax.methods.stored_replay import DRAW, draw_phase, empty_store, store_capacity, store_size, stored_stream
from jdcl_jax.methods.teacher import TeacherMethod, start_labels
from jdcl_jax.methods.timesteps import TimestepLaw, law_of_options
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.step import Tracked
from jdcl_jax.training.streams import Stream, Streams

REPLAYS = ("fresh", "stored")

DEFAULTS: dict[str, object] = {
    "teacher_steps": 2,  # S, DDIM steps of the teacher [code]
    **teacher.DEFAULTS,
    "replay": "fresh",  # at every step [code], or "stored": drawn once per task (arXiv 2509.23593 [2nd])
    "stored_per_class": 500,  # images kept for every old class if stored [ours]
    "classifier_guidance": 0.0,  # scale; to a class each, by the teacher's classifier (CGGD of MAGD, abstract); 0: off
    **timesteps.DEFAULTS,
}


class SampleReplay(TeacherMethod):
    """Every step has as many teacher samples as current images; they are re-noised at a t of their own."""

    target_passes = 0
    class_streams = ("current", "replay")

    def check(self) -> None:
        super().check()
        if self.options["replay"] not in REPLAYS:
            raise UserError(f"method.replay is '{self.options['replay']}'; write one of: {', '.join(REPLAYS)}")
        if self.options["stored_per_class"] < 1:
            raise UserError("method.stored_per_class counts from 1")
        if not self.stored and self.options["stored_per_class"] != DEFAULTS["stored_per_class"]:
            raise UserError("method.stored_per_class has no effect on fresh replay; write method.replay=stored")
        self._check_guidance()
        self._check_room()
        law_of_options(self.options, self.setup.schedule.timesteps)

    def _check_guidance(self) -> None:
        guidance = self.options["classifier_guidance"]
        if guidance < 0:
            raise UserError("method.classifier_guidance is negative and would guide from the class; write 0 or more")
        if guidance and self.setup.num_classes:
            raise UserError("method.classifier_guidance is of no effect on a conditional teacher; leave it out")
        if guidance and (self.setup.classifier is None or self.setup.classifier.towards is None):
            raise UserError(
                "method.classifier_guidance guides by the teacher's classifier; write classifier.kind=joint"
            )

    def _check_room(self) -> None:
        size = self._capacity() * math.prod(self.setup.image_shape) if self.stored else 0  # bytes
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise UserError(
                f"method.stored_per_class is {self.options['stored_per_class']}: {size // 2**30:,} GiB of images, "
                "more than this machine's memory; write less"
            )

    @property
    def stored(self) -> bool:
        """Whether samples are drawn once per task."""
        return self.options["replay"] == "stored"

    def law(self) -> TimestepLaw:
        """Which timesteps old samples are noised to."""
        return law_of_options(self.options, self.setup.schedule.timesteps)

    def chain(self) -> Sampler:
        """The teacher's reverse chain: DDIM, eta 0, x_0 clipped [code]; the evaluation's sampler has no part in it."""
        steps = self.options["teacher_steps"]
        return Sampler("ddim", steps, eta=0.0, clip=True, prediction=self.setup.sampler.prediction)

    def chain_passes(self) -> float:
        """Forward passes of the chain, and of labelling its images."""
        labelling = self.setup.classifier.passes if self.setup.classifier and self.setup.num_classes == 0 else 0
        return self.setup.sampling_passes * len(self.chain().visited(self.setup.schedule)) + labelling

    def draw(self, context: Context, keys: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Teacher samples, float32 [B, H, W, C] in [-1, 1], and their labels, int32 [B].

        A conditional teacher is guided as the setup says, and an unconditional one by `classifier_guidance`.
        The samples of an unconditional one are labelled by its classifier, if it has one.
        """
        setup = replace(self.setup, classifier_guidance=self.options["classifier_guidance"])
        teacher = context.method["teacher"]
        asked = labels if setup.num_classes or setup.classifier_guidance else None
        images = jax.lax.stop_gradient(generate(setup, teacher, asked, subkeys(keys, "sample"), self.chain()))
        if setup.classifier is not None and setup.num_classes == 0:
            labels = jnp.argmax(setup.classifier.logits(teacher, images, None), axis=-1).astype(jnp.int32)
        return images, labels

    def target(self, noised: Noised, context: Context) -> jax.Array:
        """What the student should say about the noised teacher samples, [B, H, W, C]."""
        raise NotImplementedError

    def rehearsed(self, batch: dict[str, Examples], context: Context) -> tuple[Noised, jax.Array]:
        noised = noise_examples(self.setup, batch["replay"], self.law())
        return noised._replace(target=self.target(noised, context)), batch["replay"].key

    def old_streams(self) -> Streams:
        def fresh(context: Context, keys: jax.Array) -> Examples:
            images, labels = self.draw(context, keys, start_labels(context, keys))
            return Examples(image=images, label=labels, key=keys)

        batch = self.setup.batch_size
        return {"replay": stored_stream(batch) if self.stored else Stream(batch, draw=fresh)}

    def old_passes(self) -> float:
        return 3 + self.target_passes + (0 if self.stored else self.chain_passes())

    # -- samples drawn once per task

    def phases(self, task: int) -> Sequence[Phase]:
        phases = super().phases(task)
        if task == 0 or not self.stored:
            return phases
        size = store_size(self.setup, self.options["stored_per_class"], task)
        return [draw_phase(self.setup, size, self.draw, passes=self.chain_passes()), *phases]

    def _capacity(self) -> int:
        return store_capacity(self.setup, self.options["stored_per_class"])

    def init_tracked(self, params: PyTree) -> Tracked:
        del params
        return {"drawn": empty_store(self.setup, self._capacity())} if self.stored else {}

    def init_memory(self, params: PyTree) -> Memory:
        memory = super().init_memory(params)
        if self.stored:
            memory["stored"] = empty_store(self.setup, self._capacity())
        return memory

    def end_phase(self, memory: Memory, learned: Learned, task: int, phase: Phase) -> Memory:
        return {**memory, "stored": learned.tracked["drawn"]} if phase.name == DRAW else memory

    def context(self, memory: Memory, task: int) -> dict[str, PyTree]:
        context = super().context(memory, task)
        if self.stored:
            count = store_size(self.setup, self.options["stored_per_class"], task) if task else 1
            context["stored"] = {**memory["stored"], "count": jnp.int32(count)}
        return context
