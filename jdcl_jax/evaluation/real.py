"""The real side of every comparison: test images, and what is computed from them once a run."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jdcl_jax.evaluation.features import FeatureExtractor
from jdcl_jax.evaluation.frechet import FeatureStatistics, statistics
from jdcl_jax.evaluation.precision_recall import Manifold, manifold


class TaskSplit(Protocol):
    """Images uint8 [N, H, W, C] and labels, rows sorted by task; as `data.tasks.TaskSplit`."""

    @property
    def images(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def starts(self) -> np.ndarray: ...
    @property
    def counts(self) -> np.ndarray: ...


class TaskSequence(Protocol):
    """The part of `data.tasks.TaskSequence` that scores need."""

    @property
    def groups(self) -> Sequence[Sequence[int]]: ...
    @property
    def test(self) -> TaskSplit: ...


@dataclasses.dataclass(frozen=True, eq=False)
class RealSet:
    """Features float32 [N, d] of some real images; what scores need of them is computed once."""

    features: np.ndarray

    @functools.cached_property
    def statistics(self) -> FeatureStatistics:
        return statistics(self.features)

    @functools.cached_property
    def manifold(self) -> Manifold:
        return manifold(self.features)


class RealSide:
    """The test images of a task sequence, with their features per extractor.

    Make one for a run and pass it to every `evaluate_generator`: each extractor sees the test
    images once, and statistics of a task or a union are computed once.

    Attributes:
        groups: the classes of each task; a class may be in several.
        test: the test split.
    """

    def __init__(self, sequence: TaskSequence):
        self.groups = tuple(tuple(int(label) for label in group) for group in sequence.groups)
        self.test = sequence.test
        self._features: dict[str, np.ndarray] = {}
        self._sets: dict[tuple[str, int, int], RealSet] = {}

    def task(self, extractor: FeatureExtractor, task: int) -> RealSet:
        """The test images of one task, 0-based."""
        start = int(self.test.starts[task])
        return self._set(extractor, start, start + int(self.test.counts[task]))

    def seen(self, extractor: FeatureExtractor, task: int) -> RealSet:
        """The test images of tasks 0..task."""
        return self._set(extractor, 0, self.num_seen(task))

    def labels(self, task: int) -> np.ndarray:
        """The classes of the test images of one task, int [n]."""
        start = int(self.test.starts[task])
        return self.test.labels[start : start + int(self.test.counts[task])]

    def num_seen(self, task: int) -> int:
        """How many test images tasks 0..task have."""
        return int(self.test.starts[task]) + int(self.test.counts[task])

    def _set(self, extractor: FeatureExtractor, start: int, stop: int) -> RealSet:
        if extractor.name not in self._features:
            self._features[extractor.name] = extractor(self.test.images)
        key = (extractor.name, start, stop)
        if key not in self._sets:
            self._sets[key] = RealSet(self._features[extractor.name][start:stop])
        return self._sets[key]
