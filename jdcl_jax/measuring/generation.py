"""Drawing many images from a denoiser: compiled once, batched, over all devices."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jdcl_jax.data.batches import to_uint8
from jdcl_jax.keys import example_keys
from jdcl_jax.methods.denoising import generate
from jdcl_jax.methods.method import Setup
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import PyTree

OnProgress = Callable[[int], None]
Draw = Callable[[PyTree, jax.Array | None, jax.Array], jax.Array]


class Generator:
    """Samples images of a denoiser, as uint8; image i depends on the key and on i alone.

    Args:
      setup: network, schedule and sampler.
      parallel: the devices.
      batch_size: images at a time; rounded up to a multiple of the devices.
      draw: instead of `methods.denoising.generate`, (params, labels, keys) -> images float32 [B, H, W, C].
    """

    def __init__(self, setup: Setup, parallel: Parallel, batch_size: int, draw: Draw | None = None):
        self._one_batch: Draw = draw or functools.partial(generate, setup)
        self._parallel = parallel
        self.batch_size = -(-batch_size // parallel.count) * parallel.count
        self._compiled: Callable[..., jax.Array] | None = None
        self.compile_seconds = 0.0

    def __call__(
        self,
        params: PyTree,
        key: jax.Array,
        num: int,
        labels: np.ndarray | None = None,
        on_progress: OnProgress | None = None,
    ) -> np.ndarray:
        """Draws `num` images, uint8 [num, H, W, C]; labels int32 [num] exactly if the denoiser is conditional."""
        shared = self._parallel.replicate((params, key))
        images = []
        for first in range(0, num, self.batch_size):
            ids = np.arange(first, first + self.batch_size, dtype=np.int32)
            given = None if labels is None else labels[np.minimum(ids, num - 1)]
            split = self._parallel.split((ids, given))
            if self._compiled is None:
                self._compiled, self.compile_seconds = self._parallel.compile_map(self._draw, shared, split)
            images.append(np.asarray(self._compiled(shared, split)))
            if on_progress:
                on_progress(min(first + self.batch_size, num))
        return np.concatenate(images)[:num]

    def _draw(self, shared: tuple[PyTree, jax.Array], split: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        (params, key), (ids, labels) = shared, split
        return to_uint8(self._one_batch(params, labels, example_keys(key, ids)))


def balanced_labels(classes: Sequence[int], num: int) -> np.ndarray:
    """Labels int32 [num] that run through the classes in turn, each equally often whatever the test images do."""
    return np.resize(np.array(classes, np.int32), num)
