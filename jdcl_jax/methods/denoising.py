"""The losses that all methods share, of denoising and of classifying, and the pieces they are made of."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdcl_jax.data.batches import Examples
from jdcl_jax.diffusion.guidance import Term, with_terms
from jdcl_jax.diffusion.process import prediction_target, q_sample, squared_error
from jdcl_jax.diffusion.sampler import Predict, Sampler, guided, sample
from jdcl_jax.diffusion.variational import hybrid_loss
from jdcl_jax.keys import example_normal, subkeys
from jdcl_jax.methods.method import Apply, Phase, Setup
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

    Labels of a conditional denoiser become "no class" with probability `label_dropout`, and where they are not known.
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
    return jnp.where(drop | (examples.label < 0), setup.num_classes, examples.label)


def _together(arrays: Sequence[jax.Array]) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)


def match(setup: Setup, params: PyTree, parts: Sequence[tuple[Noised, jax.Array, jax.Array]]) -> list[jax.Array]:
    """Mean squared errors between the denoiser's outputs and targets, one [] for each part.

    Args:
      setup: network and schedule.
      params: the denoiser's.
      parts: (noised examples, target [B, H, W, C], keys [B]) each; all go through the network in one pass.
    """
    noised, _, keys = (list(column) for column in zip(*parts, strict=True))
    labels = _together([n.labels for n in noised]) if noised[0].labels is not None else None
    dropout = subkeys(_together(keys), "dropout")
    output = setup.apply(params, _together([n.x_t for n in noised]), _together([n.t for n in noised]), labels, dropout)
    losses, first = [], 0
    for part, target, _ in parts:
        last = first + len(part.t)
        losses.append(jnp.mean(squared_error(output[first:last], target)))
        first = last
    return losses


def match_both(
    setup: Setup, params: PyTree, noised: Noised, said: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean squared errors of one output against the noise and against what was said, [] each."""
    output = setup.apply(params, noised.x_t, noised.t, noised.labels, subkeys(keys, "dropout"))
    return jnp.mean(squared_error(output, noised.target)), jnp.mean(squared_error(output, said))


def denoising_losses(
    setup: Setup, params: PyTree, batches: Sequence[Examples], laws: Sequence[TimestepLaw | None] | None = None
) -> list[jax.Array]:
    """The simple loss of DDPM, one [] for each batch; `laws` of their timesteps where they are not uniform.

    Of a network that learns its variance, the hybrid loss of improved DDPM (arXiv 2102.09672).
    """
    laws = laws or [None] * len(batches)
    noised = [noise_examples(setup, examples, law) for examples, law in zip(batches, laws, strict=True)]
    if setup.with_variance is not None:
        return _hybrid_losses(setup, params, batches, noised)
    return match(setup, params, [(n, n.target, e.key) for n, e in zip(noised, batches, strict=True)])


def _hybrid_losses(
    setup: Setup, params: PyTree, batches: Sequence[Examples], noised: Sequence[Noised]
) -> list[jax.Array]:
    assert setup.with_variance is not None
    assert setup.bound is not None
    labels = _together([n.labels for n in noised if n.labels is not None]) if noised[0].labels is not None else None
    dropout = subkeys(_together([examples.key for examples in batches]), "dropout")
    x_t, t = _together([n.x_t for n in noised]), _together([n.t for n in noised])
    output = setup.with_variance(params, x_t, t, labels, dropout)
    losses, first = [], 0
    for examples, n in zip(batches, noised, strict=True):
        last = first + len(n.t)
        said = output[first:last]
        each = hybrid_loss(setup.bound, setup.sampler.prediction, said, n.target, examples.image, n.x_t, n.t)
        losses.append(jnp.mean(each))
        first = last
    return losses


def strong_views(setup: Setup, examples: Examples) -> jax.Array:
    """What the classifier is shown, [B, H, W, C]: strong views of the images before the denoiser's weak ones."""
    images = examples.image if examples.original is None else examples.original
    return setup.views.strong(images, subkeys(examples.key, "strong"))


def strong_logits(setup: Setup, params: PyTree, batches: Sequence[Examples]) -> jax.Array:
    """The classifier's logits on strong views of all examples, float32 [sum of B, C], with dropout."""
    assert setup.classifier is not None
    keys = _together([examples.key for examples in batches])
    views = _together([strong_views(setup, examples) for examples in batches])
    return setup.classifier.logits(params, views, subkeys(keys, "class_dropout"))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of logits [B, C] and labels int [B], nats [B]; 0 where the label is not known (-1)."""
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(labels >= 0, values, 0.0)


def class_losses(
    setup: Setup, params: PyTree, batches: Sequence[Examples], generated: Sequence[bool] | None = None
) -> list[jax.Array]:
    """Alpha times the mean cross-entropy over the known labels, on strong views; one [] for each batch.

    The number of known labels in a batch is taken as its expectation, so that the loss is a mean over examples. All
    labels of `generated` batches are known. Zeros where there is no classifier.
    """
    if setup.classifier is None:
        return [jnp.zeros(()) for _ in batches]
    values = cross_entropy(strong_logits(setup, params, batches), _together([e.label for e in batches]))
    losses, first = [], 0
    for examples, made in zip(batches, generated or [False] * len(batches), strict=True):
        last = first + len(examples.label)
        known = 1.0 if made else max(setup.classifier.label_fraction, 1e-9)
        losses.append(setup.classifier.weight * jnp.mean(values[first:last]) / known)
        first = last
    return losses


def joint_losses(
    setup: Setup, params: PyTree, batches: Sequence[Examples], laws: Sequence[TimestepLaw | None] | None = None
) -> list[jax.Array]:
    """What a network learns from images: the denoising loss, + alpha cross-entropy where it also classifies."""
    denoising, classes = denoising_losses(setup, params, batches, laws), class_losses(setup, params, batches)
    return [a + b for a, b in zip(denoising, classes, strict=True)]


def bind(setup: Setup, params: PyTree, labels: jax.Array | None) -> Predict:
    """The denoiser as a sampler wants it: parameters and labels bound, guided if the setup says so.

    Labels are what a conditional denoiser is asked for, or what an unconditional one's classifier is to guide it to.
    """
    learned = setup.sampler.variance == "learned"
    apply = setup.with_variance if learned else setup.apply
    assert apply is not None

    conditional = functools.partial(_asked, apply, params, labels)
    if labels is None:
        return conditional
    if setup.num_classes == 0:
        towards = setup.classifier.towards if setup.classifier else None
        assert towards is not None, "labels need a conditional denoiser, or a classifier that guides"
        return lambda x_t, t: towards(params, x_t, t, labels, setup.classifier_guidance)
    nothing = jnp.full_like(labels, setup.num_classes)
    unconditional = functools.partial(_asked, apply, params, nothing)
    return guided(conditional, unconditional, setup.guidance, setup.sampler.variance)


def _asked(apply: Apply, params: PyTree, labels: jax.Array | None, x_t: jax.Array, t: jax.Array) -> jax.Array:
    return apply(params, x_t, t, labels, None)


def generate(
    setup: Setup,
    params: PyTree,
    labels: jax.Array | None,
    keys: jax.Array,
    sampler: Sampler | None = None,
    terms: Sequence[Term] = (),
) -> jax.Array:
    """One image per key: float32 [B, H, W, C]; `labels` int32 [B] exactly if the denoiser is asked for classes.

    `terms` guide it further.
    """
    sampler = sampler or setup.sampler
    predict = with_terms(bind(setup, params, labels), setup.schedule, sampler, terms)
    images, _ = sample(predict, setup.schedule, sampler, keys, setup.image_shape)
    return images


def plain_phase(setup: Setup, stream: Stream, steps: int, *, name: str = "train") -> Phase:
    """Plain training on one stream called "current"."""

    def loss(params: PyTree, batch: dict[str, Examples], context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        del context
        (value,) = denoising_losses(setup, params, [batch["current"]])
        if setup.classifier is None:
            return value, {}
        (classes,) = class_losses(setup, params, [batch["current"]])
        return value + classes, {"loss_denoising": value, "loss_class": classes}

    return Phase(name, loss, {"current": stream}, steps, passes=3 + setup.class_passes)
