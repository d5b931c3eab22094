"""The denoising loss, which all methods share, and the pieces it is made of."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdcl_jax.data.batches import Examples
from jdcl_jax.diffusion.process import prediction_target, q_sample, squared_error
from jdcl_jax.diffusion.sampler import Predict, Sampler, guided, sample
from jdcl_jax.keys import example_normal, subkeys
from jdcl_jax.methods.method import Phase, Setup
from jdcl_jax.methods.timesteps import TimestepLaw, draw_timesteps
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.streams import Stream


class Noised(NamedTuple):
    """Noised examples: x_t [B, H, W, C], t int32 [B], labels int32 [B] or None, and what the network should say."""

    x_t: jax.Array
    t: jax.Array
    labels: jax.Array | None
    target: jax.Array


def noise_examples(setup: Setup, examples: Examples, law: TimestepLaw | None = None) -> Noised:
    """Noises each example at its own t, drawn from its own key: uniform on 0..T-1, or by another law.

    Labels of a conditional denoiser become "no class" with probability `label_dropout`.
    """
    t = draw_timesteps(law or TimestepLaw(setup.schedule.timesteps), subkeys(examples.key, "t"))
    eps = example_normal(subkeys(examples.key, "eps"), setup.image_shape)
    x_t = q_sample(setup.schedule, examples.image, t, eps)
    target = prediction_target(setup.schedule, setup.sampler.prediction, examples.image, t, eps)
    return Noised(x_t, t, network_labels(setup, examples), target)


def network_labels(setup: Setup, examples: Examples) -> jax.Array | None:
    """The labels that the denoiser is trained with: None if it is unconditional, else some dropped."""
    if setup.num_classes == 0:
        return None
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, setup.label_dropout))(subkeys(examples.key, "label"))
    return jnp.where(drop, setup.num_classes, examples.label)


def match(setup: Setup, params: PyTree, parts: Sequence[tuple[Noised, jax.Array, jax.Array]]) -> list[jax.Array]:
    """Mean squared errors between the denoiser's outputs and targets, one [] for each part.

    Args:
      setup: network and schedule.
      params: the denoiser's.
      parts: (noised examples, target [B, H, W, C], keys [B]) each; all go through the network in one pass.
    """
    noised, _, keys = (list(column) for column in zip(*parts, strict=True))

    def together(arrays: list[jax.Array]) -> jax.Array:
        return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)

    labels = together([n.labels for n in noised]) if noised[0].labels is not None else None
    dropout = subkeys(together(keys), "dropout")
    output = setup.apply(params, together([n.x_t for n in noised]), together([n.t for n in noised]), labels, dropout)
    losses, first = [], 0
    for part, target, _ in parts:
        last = first + len(part.t)
        losses.append(jnp.mean(squared_error(output[first:last], target)))
        first = last
    return losses


def denoising_losses(
    setup: Setup, params: PyTree, batches: Sequence[Examples], laws: Sequence[TimestepLaw | None] | None = None
) -> list[jax.Array]:
    """The simple loss of DDPM, one [] for each batch; `laws` of their timesteps where they are not uniform."""
    laws = laws or [None] * len(batches)
    noised = [noise_examples(setup, examples, law) for examples, law in zip(batches, laws, strict=True)]
    return match(setup, params, [(n, n.target, e.key) for n, e in zip(noised, batches, strict=True)])


def bind(setup: Setup, params: PyTree, labels: jax.Array | None) -> Predict:
    """The denoiser as a sampler wants it: parameters and labels bound, guided if the setup says so."""

    def conditional(x_t: jax.Array, t: jax.Array) -> jax.Array:
        return setup.apply(params, x_t, t, labels, None)

    if labels is None:
        return conditional
    nothing = jnp.full_like(labels, setup.num_classes)
    return guided(conditional, lambda x_t, t: setup.apply(params, x_t, t, nothing, None), setup.guidance)


def generate(
    setup: Setup, params: PyTree, labels: jax.Array | None, keys: jax.Array, sampler: Sampler | None = None
) -> jax.Array:
    """One image per key: float32 [B, H, W, C]; `labels` int32 [B] exactly if the denoiser is conditional."""
    images, _ = sample(bind(setup, params, labels), setup.schedule, sampler or setup.sampler, keys, setup.image_shape)
    return images


def plain_phase(setup: Setup, stream: Stream, steps: int, *, name: str = "train") -> Phase:
    """Plain training on one stream called "current"."""

    def loss(params: PyTree, batch: dict[str, Examples], context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        del context
        (value,) = denoising_losses(setup, params, [batch["current"]])
        return value, {}

    return Phase(name, loss, {"current": stream}, steps, passes=3)
