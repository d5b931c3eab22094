"""JDCL's global stage: the model of all tasks learns from generated images alone, taught by two teachers.

Long form, over a batch of N images, O of old classes and L of the new task's [2411.08224, code]:

  .01 (sum_O |eps - e|^2 + sum_L |eps - e|^2) / N  + 1e-5 (sum_O CE + sum_L CE) / N
  + 2 (sum_O |eps - eps_old|^2 + sum_L |eps - eps_local|^2) / N
  + .002 (sum_O softCE(p_old) + sum_L softCE(p_local)) / N

Without the local stage, new images are real and their teacher is the truth, noise and label; without distillation, the
loss is MSE + alpha CE as in the local stage [ours].

Each image has one teacher, so each term is one mean over the batch with the teacher's answer chosen per image. That
reduced form is computed here. softCE is written as KL(teacher || student), which differs by the teacher's entropy, a
constant: the gradient is the same, and the term is zero where both agree.

A batch is made of `GROUPS` groups, each of one teacher, so that a teacher's pass is over its own images only: one pass
per image, with shapes that do not depend on the task. How many groups are old is drawn at every step such that every
stored image is as likely as any other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jdcl_jax.data.batches import Examples, to_float
from jdcl_jax.data.views import Views
from jdcl_jax.keys import fold_name, subkeys
from jdcl_jax.methods.denoising import (
    class_losses,
    cross_entropy,
    match,
    match_both,
    noise_examples,
    strong_logits,
    strong_views,
)
from jdcl_jax.methods.method import Setup
from jdcl_jax.training.gradients import Loss, Metrics
from jdcl_jax.training.state import Context, PyTree
from jdcl_jax.training.streams import Stream, examples_of

GROUPS = 4
REPLAY = "replay"  # the name of the stream


def teaching(options: Mapping[str, Any]) -> str:
    """Which of the weights that are kept label, teach and are copied: the averaged ones, or the raw."""
    return "raw" if options["teacher"] == "last" else "averaged"


def old_groups(context: Context) -> jax.Array:
    """How many of the groups are of old classes at this step, int32 []; GROUPS * share in expectation."""
    key = jax.random.fold_in(fold_name(context.key, "groups"), context.step)
    return jnp.floor(GROUPS * context.method["store"]["share"] + jax.random.uniform(key)).astype(jnp.int32)


def is_old(context: Context, size: int) -> jax.Array:
    """Which images of (this device's share of) a batch are of old classes, bool [size]."""
    return jnp.arange(size) % GROUPS < old_groups(context)


def by_teacher(teachers: PyTree, context: Context, answer: Callable[..., PyTree], *arrays: jax.Array) -> PyTree:
    """The answers of each image's own teacher, without gradient.

    Args:
      teachers: leaves [n, ...]: the old model, then the local one if n is 2.
      context: says how many groups are old.
      answer: (params, *arrays of some images) -> arrays [b, ...].
      *arrays: [B, ...], B a multiple of `GROUPS`.
    """
    old, most = old_groups(context), jax.tree.leaves(teachers)[0].shape[0] - 1

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape((-1, GROUPS, *x.shape[1:])), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape((-1, *x.shape[2:]))

    def of_group(given: tuple[jax.Array, ...]) -> PyTree:
        group, *images = given
        chosen = jnp.minimum((group >= old).astype(jnp.int32), most)
        return answer(jax.tree.map(lambda x: x[chosen], teachers), *images)

    answers = jax.lax.map(of_group, (jnp.arange(GROUPS), *map(split, arrays)))
    return jax.lax.stop_gradient(jax.tree.map(join, answers))


def soft_divergence(logits: jax.Array, target: jax.Array) -> jax.Array:
    """KL(target || softmax(logits)), nats [B]; target probabilities [B, C]."""
    return optax.losses.kl_divergence(jax.nn.log_softmax(logits), target)


def store_stream(batch_size: int, views: Views) -> Stream:
    """Uniform draws, with replacement, from the replay set in `context.method["store"]`.

    It holds "images" uint8 [N, H, W, C], "labels" int32 [N], "rows" int32 [N], the filled rows, old classes first;
    "old" and "new", how many there are of either; and "share", the old ones' share.
    """

    def draw(context: Context, keys: jax.Array) -> Examples:
        store, old = context.method["store"], is_old(context, len(keys))
        count = jnp.where(old, store["old"], store["new"])
        place = jax.vmap(lambda key, n: jax.random.randint(key, (), 0, n))(subkeys(keys, "place"), count)
        row = jnp.asarray(store["rows"])[jnp.where(old, place, store["old"] + place)]
        images, labels = (jnp.asarray(store[name])[row] for name in ("images", "labels"))
        return examples_of(to_float(images), labels, keys, views.weak)

    return Stream(batch_size, draw=draw, multiple=GROUPS)


def global_loss(setup: Setup, options: Mapping[str, Any]) -> Loss:
    """The loss of the global stage; `options` are JDCL's. Its class terms begin after `class_delay` steps.

    Metrics are its four terms, weighted.
    """

    def loss(params: PyTree, batch: dict[str, Examples], context: Context) -> tuple[jax.Array, Metrics]:
        examples = mixed(batch, context)
        denoising = _denoising_terms(setup, options, params, examples, context)

        def classes() -> Metrics:
            return _class_terms(setup, options, params, examples, context)

        if options["class_delay"] > 0:
            zeros = {"loss_class": jnp.zeros(()), "loss_class_distillation": jnp.zeros(())}
            terms = denoising | jax.lax.cond(context.step >= options["class_delay"], classes, lambda: zeros)
        else:
            terms = denoising | classes()
        return sum(terms.values(), start=jnp.zeros(())), terms

    return loss


def mixed(batch: dict[str, Examples], context: Context) -> Examples:
    """The replayed images; where there is a "current" stream its real images instead of new replayed ones."""
    if "current" not in batch:
        return batch[REPLAY]
    replayed, real = batch[REPLAY], batch["current"]
    old = is_old(context, len(replayed.label))
    return Examples(
        image=_chosen(old, replayed.image, real.image),
        label=_chosen(old, replayed.label, real.label),
        key=replayed.key,
        original=_chosen(old, replayed.original, real.original),
    )


def _chosen(old: jax.Array, of_old: jax.Array | None, of_new: jax.Array | None) -> jax.Array:
    assert of_old is not None
    assert of_new is not None
    return jnp.where(old.reshape((-1,) + (1,) * (of_old.ndim - 1)), of_old, of_new)


def _denoising_terms(
    setup: Setup, options: Mapping[str, Any], params: PyTree, examples: Examples, context: Context
) -> Metrics:
    noised = noise_examples(setup, examples)
    if not options["distillation"]:
        (mse,) = match(setup, params, [(noised, noised.target, examples.key)])
        return {"loss_denoising": mse, "loss_distillation": jnp.zeros(())}

    def answer(teacher: PyTree, x_t: jax.Array, t: jax.Array) -> jax.Array:
        return setup.apply(teacher, x_t, t, None, None)

    teachers = context.method["models"][teaching(options)]
    said = by_teacher(teachers, context, answer, noised.x_t, noised.t)
    if not options["local"]:
        said = _chosen(is_old(context, len(said)), said, noised.target)
    mse, distance = match_both(setup, params, noised, said, examples.key)
    return {
        "loss_denoising": options["denoising_weight"] * mse,
        "loss_distillation": options["distillation_weight"] * distance,
    }


def _class_terms(
    setup: Setup, options: Mapping[str, Any], params: PyTree, examples: Examples, context: Context
) -> Metrics:
    classifier = setup.classifier
    assert classifier is not None
    if not options["distillation"]:
        (value,) = class_losses(setup, params, [examples], [True])
        return {"loss_class": value, "loss_class_distillation": jnp.zeros(())}

    def answer(teacher: PyTree, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(classifier.logits(teacher, images, None))

    teachers = context.method["models"][teaching(options)]
    said = by_teacher(teachers, context, answer, strong_views(setup, examples))
    if not options["local"]:
        said = _chosen(is_old(context, len(said)), said, jax.nn.one_hot(examples.label, said.shape[-1]))
    logits = strong_logits(setup, params, [examples])
    return {
        "loss_class": options["class_weight"] * jnp.mean(cross_entropy(logits, examples.label)),
        "loss_class_distillation": options["class_distillation_weight"] * jnp.mean(soft_divergence(logits, said)),
    }
