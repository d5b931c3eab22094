"""Generative replay (GR): the teacher's samples are treated as data (arXiv 2311.14028's baseline)."""

import jax

from jdcl_jax.methods import sample_replay
from jdcl_jax.methods.denoising import Noised
from jdcl_jax.methods.sample_replay import SampleReplay
from jdcl_jax.training.state import Context

DEFAULTS: dict[str, object] = {
    "replay_weight": 1.0,  # lambda [code]
    **sample_replay.DEFAULTS,
}


class GenerativeReplay(SampleReplay):
    """The target on a re-noised teacher sample is the noise that was added."""

    def target(self, noised: Noised, context: Context) -> jax.Array:
        del context
        return noised.target


METHODS = {"gr": (GenerativeReplay, DEFAULTS)}
