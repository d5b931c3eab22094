"""Generative distillation (GD): the teacher is imitated on its own samples at every noise level (arXiv 2311.14028).

Its options `distil_on`, `stop_snr` and `teacher=ema` are three ideas of MAGD (abstracts of OpenReview PvvQlhBbgu and of
its later version on HAL, 2025); how they are carried out is our reading [ours].
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.data.batches import Examples
from jdcl_jax.diffusion.process import signal_to_noise
from jdcl_jax.diffusion.sampler import Sampler, sample
from jdcl_jax.errors import UserError
from jdcl_jax.keys import subkeys
from jdcl_jax.methods import sample_replay
from jdcl_jax.methods.denoising import Noised, bind, network_labels
from jdcl_jax.methods.sample_replay import SampleReplay
from jdcl_jax.methods.starts import start_stream
from jdcl_jax.methods.timesteps import TimestepLaw
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import Streams

INPUTS = ("renoised", "all_states")

DEFAULTS: dict[str, object] = {
    "replay_weight": 0.75,  # lambda [code]
    **sample_replay.DEFAULTS,
    "distil_on": "renoised",  # or "all_states" of the teacher's reverse chain, whose outputs are there already
    "stop_snr": 0.0,  # the chain ends, and distillation stays, where the signal-to-noise ratio is at most this; 0: off
}


class GenerativeDistillation(SampleReplay):
    """The target on a re-noised teacher sample is the teacher's own output there."""

    phase_name = "distil"
    target_passes = 1

    def check(self) -> None:
        super().check()
        if self.options["distil_on"] not in INPUTS:
            raise UserError(f"method.distil_on is '{self.options['distil_on']}'; write one of: {', '.join(INPUTS)}")
        if self.options["stop_snr"] < 0:
            raise UserError("method.stop_snr is negative; write a signal-to-noise ratio, or 0 for none")
        self._check_stop()
        if self._on_states:
            for key in ("replay", "timesteps", "t_min", "classifier_guidance"):
                if self.options[key] != DEFAULTS[key]:
                    raise UserError(f"method.{key} has no effect with method.distil_on=all_states; leave it out")
            if self.setup.guidance > 0:
                raise UserError(
                    "method.distil_on=all_states would teach the outputs with guidance, which would then be guided "
                    "again; write sampler.guidance=0 or method.distil_on=renoised"
                )

    def _check_stop(self) -> None:
        largest = float(signal_to_noise(self.setup.schedule).max())
        if self.options["stop_snr"] >= largest:
            raise UserError(
                f"method.stop_snr is {self.options['stop_snr']:g}, above the {largest:.4g} of the least noisy "
                "timestep, and stops nothing; write less, or 0 for none"
            )

    @property
    def class_streams(self) -> tuple[str, ...]:  # type: ignore[override]
        """The reverse chain's states are no images to classify."""
        return ("current",) if self._on_states else ("current", "replay")

    @property
    def _on_states(self) -> bool:
        return self.options["distil_on"] == "all_states"

    def chain(self) -> Sampler:
        full = super().chain()
        return Sampler(full.kind, full.steps, full.eta, full.clip, full.prediction, self.options["stop_snr"])

    def law(self) -> TimestepLaw:
        law = super().law()
        if self.options["stop_snr"] <= 0:
            return law
        noisy = np.flatnonzero(signal_to_noise(self.setup.schedule) <= self.options["stop_snr"])
        first = int(noisy[0]) if len(noisy) else law.timesteps - 1
        return TimestepLaw(law.timesteps, law.kind, max(law.t_min, first))

    def target(self, noised: Noised, context: Context) -> jax.Array:
        return self.teacher_output(context, noised.x_t, noised.t, noised.labels)

    def rehearsed(self, batch: dict[str, Examples], context: Context) -> tuple[Noised, jax.Array]:
        return self._states(batch["replay"], context) if self._on_states else super().rehearsed(batch, context)

    def _states(self, starts: Examples, context: Context) -> tuple[Noised, jax.Array]:
        """All states of the teacher's chains, S B of them, with its outputs as targets, and a key for each.

        Of a conditional teacher, some chains are of no class, as often as labels are dropped in training.
        """
        setup, labels = self.setup, network_labels(self.setup, starts)
        predict = bind(setup, context.method["teacher"], labels)
        _, path = sample(predict, setup.schedule, self.chain(), subkeys(starts.key, "sample"), setup.image_shape)
        count = len(path.t)
        x_t, output = (jax.lax.stop_gradient(x.reshape((-1, *setup.image_shape))) for x in (path.x_t, path.output))
        asked = None if labels is None else jnp.tile(labels, count)
        keys = jnp.concatenate([subkeys(starts.key, number) for number in range(count)])
        return Noised(x_t, jnp.repeat(path.t, len(starts.key)), asked, output), keys

    def old_streams(self) -> Streams:
        return {"replay": start_stream(self.setup)} if self._on_states else super().old_streams()

    def old_passes(self) -> float:
        states = len(self.chain().visited(self.setup.schedule))
        return (self.setup.sampling_passes + 3) * states if self._on_states else super().old_passes()


METHODS = {"gd": (GenerativeDistillation, DEFAULTS)}
