"""Distillation on pure noise: the teacher's outputs on N(0, I), plain or mirrored (arXiv 2311.14028's baselines)."""

import jax
import jax.numpy as jnp

from jdcl_jax.data.batches import Examples
from jdcl_jax.keys import example_normal, subkeys
from jdcl_jax.methods import teacher
from jdcl_jax.methods.denoising import Noised, network_labels
from jdcl_jax.methods.starts import start_stream
from jdcl_jax.methods.teacher import TeacherMethod
from jdcl_jax.methods.timesteps import TimestepLaw, draw_timesteps
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import Streams

DEFAULTS: dict[str, object] = {
    "replay_weight": 8.0,  # lambda [code], of the plain form
    **teacher.DEFAULTS,
}


class Gaussian(TeacherMethod):
    """The input is z ~ N(0, I) at every t ~ U{0..T-1}; the target is what the teacher says to it."""

    phase_name = "distil_noise"

    def noise(self, keys: jax.Array, t: jax.Array) -> jax.Array:
        """The inputs, float32 [B, H, W, C]."""
        del t
        return example_normal(subkeys(keys, "z"), self.setup.image_shape)

    def rehearsed(self, batch: dict[str, Examples], context: Context) -> tuple[Noised, jax.Array]:
        setup, starts = self.setup, batch["replay"]
        t = draw_timesteps(TimestepLaw(setup.schedule.timesteps), subkeys(starts.key, "t"))
        z, labels = self.noise(starts.key, t), network_labels(setup, starts)
        return Noised(z, t, labels, self.teacher_output(context, z, t, labels)), starts.key

    def old_streams(self) -> Streams:
        return {"replay": start_stream(self.setup)}

    def old_passes(self) -> float:
        return 3 + 1


class SymmetricGaussian(Gaussian):
    """The lower t, the more symmetric the noise, as images are [code: the authors' trainer].

    For t > 2T/3 plain noise; for T/3 < t <= 2T/3 mirrored top to bottom or left to right, each with probability 1/2
    (the code: half of the examples each); for t <= T/3 both.
    """

    phase_name = "distil_mirrored_noise"

    def noise(self, keys: jax.Array, t: jax.Array) -> jax.Array:
        z, third = super().noise(keys, t), self.setup.schedule.timesteps / 3
        upright = jax.vmap(jax.random.bernoulli)(subkeys(keys, "axis"))
        low, middle = t <= third, (t > third) & (t <= 2 * third)
        z = jnp.where(_per_image(low | (middle & upright)), mirrored(z, 1), z)
        return jnp.where(_per_image(low | (middle & ~upright)), mirrored(z, 2), z)


def mirrored(z: jax.Array, axis: int) -> jax.Array:
    """Images [B, H, W, C] whose first half along an axis is the mirror image of the second."""
    half = z.shape[axis] // 2
    second = jax.lax.slice_in_dim(z, z.shape[axis] - half, z.shape[axis], axis=axis)
    rest = jax.lax.slice_in_dim(z, half, z.shape[axis], axis=axis)
    return jnp.concatenate([jnp.flip(second, axis), rest], axis=axis)


def _per_image(chosen: jax.Array) -> jax.Array:
    return chosen[:, None, None, None]


METHODS = {"gaussian": (Gaussian, DEFAULTS), "symmetric_gaussian": (SymmetricGaussian, DEFAULTS)}
