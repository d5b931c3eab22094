"""Training of the classifier whose features and class predictions the scores use [ours].

It is a measuring instrument, not part of any method: trained once on *all* the real classes, before
the first task, and the same for every method that is compared.
"""

import dataclasses
import functools
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.features import ClassifierFeatures
from jdcl_jax.models.classifier import ImageClassifier

_INIT, _ORDER, _AUGMENT = 0, 1, 2
_STEPS_IN_FLIGHT = 16


class LabelledImages(Protocol):
    """Images uint8 [N, H, W, C] with labels int [N], as `data.datasets.Split`."""

    @property
    def images(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """Everything besides the data that the trained parameters depend on [ours].

    The defaults are for 8x8 digits (99 % of the test images right). For Fashion-MNIST at 32x32,
    `features=128, steps=1200, batch_size=128, flip=True` gets 89 to 90 %.

    Attributes:
        num_classes: classes of the whole sequence; labels are 0..num_classes-1.
        channels, features: the network, see `ImageClassifier`.
        steps, batch_size: length of the training.
        learning_rate: peak of AdamW's rate, reached after 5 % of the steps, then cosine to zero.
        weight_decay: AdamW's decoupled weight decay.
        flip: mirror each training image left to right with probability 1/2.
        shift: move each training image by up to so many pixels both ways (edges are repeated).
        seed: names the initial parameters, the order of the data and the augmentation.

    Raises:
        UserError: a number that must be at least 1 is not, or there is no stage.
    """

    num_classes: int
    channels: tuple[int, ...] = (32, 64)
    features: int = 64
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    flip: bool = False
    shift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # configs hold lists too
        for name in ("num_classes", "features", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"the scores' classifier has {name}={getattr(self, name)}: write at least 1")
        if not self.channels or min(self.channels) < 1:
            raise UserError(
                f"the scores' classifier has channels={self.channels}: write one or more numbers of at least 1"
            )

    def model(self) -> ImageClassifier:
        return ImageClassifier(self.num_classes, self.channels, self.features)

    def optimizer(self) -> optax.GradientTransformation:
        warmup = max(1, self.steps // 20)
        rate = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, self.steps + 1)
        return optax.adamw(rate, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier and how good it is.

    Attributes:
        extractor: the network as a feature extractor and predictor.
        validation_accuracy: in [0, 1]; None where there are no validation images.
        test_accuracy: in [0, 1]; reported only, nothing is ever chosen by it.
    """

    extractor: ClassifierFeatures
    validation_accuracy: float | None
    test_accuracy: float | None


@flax.struct.dataclass
class _State:
    params: Any
    optimizer: Any


def train_classifier(
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    settings: ClassifierSettings,
) -> TrainedClassifier:
    """Trains on all of `train` for a fixed number of steps and measures the last parameters.

    A Python loop over one compiled step, because the gradient of a convolution inside `lax.scan` is
    many times slower on CPU. Initial parameters, order (a new permutation each epoch) and
    augmentation are pure functions of `settings.seed` and the epoch or step, so equal input gives
    equal parameters, also when the classes come in another order (see `rows_by_class`). Neither
    `validation` nor `test` influences the parameters.

    Raises:
        UserError: no training images, labels out of range, or a training that diverged.
    """
    for name, split in (("train", train), ("validation", validation), ("test", test)):
        _check(name, split, settings.num_classes)
    if not len(train.labels):
        raise UserError("the classifier for scores has no training images: give it some")
    params = _fit(train, settings)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UserError(
            f"training the classifier for scores diverged at learning rate {settings.learning_rate}: set a lower one"
        )
    extractor = ClassifierFeatures(settings.model(), params)
    return TrainedClassifier(extractor, accuracy(extractor, validation), accuracy(extractor, test))


def accuracy(extractor: ClassifierFeatures, split: LabelledImages) -> float | None:
    """Share of images, in [0, 1], whose most probable class is their label; None without images."""
    if not len(split.labels):
        return None
    predicted = extractor.probabilities(split.images).argmax(axis=1)
    return float(np.mean(predicted == split.labels))


def rows_by_class(split: LabelledImages) -> np.ndarray:
    """Row numbers int64 [N], sorted by label, each class in its own order.

    Training and cache look at images in this order, so that runs with other task groups or another
    order of the classes, whose splits are sorted by task, share one classifier.
    """
    return np.argsort(split.labels, kind="stable")


def _check(name: str, split: LabelledImages, num_classes: int) -> None:
    if len(split.images) != len(split.labels):
        raise UserError(f"{name} has {len(split.images)} images but {len(split.labels)} labels: give one each")
    if len(split.labels) and not 0 <= split.labels.min() <= split.labels.max() < num_classes:
        raise UserError(
            f"{name} labels run from {split.labels.min()} to {split.labels.max()} but the "
            f"classifier has {num_classes} classes: use labels 0 to {num_classes - 1}"
        )


def _fit(train: LabelledImages, settings: ClassifierSettings) -> Any:
    state = _initial_state(settings, train.images.shape[1:])
    order = _order(settings.seed, len(train.labels), settings.steps, settings.batch_size)
    labels = np.asarray(train.labels, np.int32)
    for step, rows in enumerate(rows_by_class(train)[np.asarray(order)]):
        state = _train_step(settings, state, train.images[rows], labels[rows], step)
        if step % _STEPS_IN_FLIGHT == 0:
            jax.block_until_ready(state)  # or the batches of all steps queue up in memory
    return jax.device_get(state.params)


def _key(seed: int | jax.Array, name: int, index: int | jax.Array = 0) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), name), index)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _order(seed: jax.Array, size: int, steps: int, batch_size: int) -> jax.Array:
    """Row numbers int32 [steps, batch_size]: one permutation of the data after another."""
    epochs = -(-steps * batch_size // size)
    rows = jax.vmap(lambda epoch: jax.random.permutation(_key(seed, _ORDER, epoch), size))(jnp.arange(epochs))
    return rows.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _initial_state(settings: ClassifierSettings, shape: tuple[int, ...]) -> _State:
    params = settings.model().init(_key(settings.seed, _INIT), jnp.zeros((1, *shape)))["params"]
    return _State(params, settings.optimizer().init(params))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _train_step(
    settings: ClassifierSettings,
    state: _State,
    images: jax.Array,
    labels: jax.Array,
    step: jax.Array,
) -> _State:
    images = _augment(images, _key(settings.seed, _AUGMENT, step), settings.flip, settings.shift)
    images = images.astype(jnp.float32) / 127.5 - 1.0

    def loss(params: Any) -> jax.Array:
        logits, _ = settings.model().apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, optimizer = settings.optimizer().update(jax.grad(loss)(state.params), state.optimizer, state.params)
    return _State(optax.apply_updates(state.params, updates), optimizer)


def _augment(images: jax.Array, key: jax.Array, flip: bool, shift: int) -> jax.Array:
    """Flips and shifts each image on its own; repeats the edge where the image moved away."""
    count, height, width, _ = images.shape
    flip_key, down_key, right_key = jax.random.split(key, 3)
    columns = jnp.arange(width)[None]
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (count, 1))
        columns = jnp.where(mirrored, width - 1 - columns, columns)
    if shift:
        down = jax.random.randint(down_key, (count, 1), -shift, shift + 1)
        right = jax.random.randint(right_key, (count, 1), -shift, shift + 1)
        rows = jnp.clip(jnp.arange(height)[None] + down, 0, height - 1)
        images = jnp.take_along_axis(images, rows[:, :, None, None], axis=1)
        columns = jnp.clip(columns + right, 0, width - 1)
    if flip or shift:
        columns = jnp.broadcast_to(columns, (count, width))
        images = jnp.take_along_axis(images, columns[:, None, :, None], axis=2)
    return images
