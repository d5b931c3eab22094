"""From images to the feature vectors that scores compare."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.errors import UserError


class FeatureExtractor(Protocol):
    """What every source of features offers.

    Attributes:
        name: "classifier" or "inception"; scores ask for their features by it.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, C] -> features float32 [N, d], row by row."""
        ...


class Classifier(FeatureExtractor, Protocol):
    """A feature extractor that also predicts classes."""

    def features_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, H, W, C] -> features float32 [N, d], probabilities float64 [N, C]."""
        ...


def in_batches(function: Callable[[np.ndarray], Any], images: np.ndarray, batch_size: int) -> Iterator[Any]:
    """Runs `function` over all images in batches of exactly `batch_size`, so it compiles once.

    A batch's results are fetched while the device works on the next.

    The last batch is filled with zeros and its surplus results are cut off. Without images one
    batch of zeros runs and nothing of it is kept, so that results still have their widths.

    Args:
        function: batch uint8 [batch_size, H, W, C] -> tree of arrays [batch_size, ...].
        images: uint8 [N, H, W, C].
        batch_size: images per call.

    Yields:
        The trees of numpy arrays, in order; their first axes add up to N.
    """

    def fetched(results: Any, count: int) -> Any:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], results)

    before: tuple[Any, int] | None = None
    for start in range(0, max(len(images), 1), batch_size):
        batch = images[start : start + batch_size]
        count = len(batch)
        if count < batch_size:
            batch = np.pad(batch, [(0, batch_size - count)] + [(0, 0)] * (images.ndim - 1))
        results = function(batch)
        if before is not None:
            yield fetched(*before)
        before = results, count
    assert before is not None
    yield fetched(*before)


class ClassifierFeatures:
    """A trained `ImageClassifier` as a feature extractor that also predicts classes.

    Args:
        model: a module that returns (logits, features), e.g. `models.classifier.ImageClassifier`.
        params: its parameters.
        batch_size: the one batch size that is compiled; results depend on it only by rounding.
    """

    name = "classifier"

    def __init__(self, model: nn.Module, params: Any, batch_size: int = 256):
        self.model = model
        self.params = jax.tree.map(jnp.asarray, params)
        self.batch_size = batch_size

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [N, d] of images uint8 [N, H, W, C]."""
        return self.features_and_probabilities(images)[0]

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities float64 [N, num_classes] of images uint8 [N, H, W, C]."""
        return self.features_and_probabilities(images)[1]

    def features_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both of the above from one pass over the images.

        The softmax is taken in float64, so that very unlikely classes keep their order.

        Raises:
            UserError: images that are not uint8 [N, H, W, C].
        """
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f"the classifier got images of type {images.dtype} and shape {images.shape}: give uint8 [N, H, W, C]"
            )
        run = functools.partial(_forward, self.model, self.params)
        parts = list(in_batches(run, images, self.batch_size))
        logits = np.concatenate([part[0] for part in parts]).astype(np.float64)
        features = np.concatenate([part[1] for part in parts])
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return features, odds / odds.sum(axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: nn.Module, params: Any, images: jax.Array) -> Any:
    return model.apply({"params": params}, images.astype(jnp.float32) / 127.5 - 1.0)
