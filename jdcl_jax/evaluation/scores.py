"""The scores by their final names, and what each of them needs.

A score on Inception features and one on the classifier's never share a name: only the Frechet
distance on Inception features is `fid`, only the kernel distance on them `kid`.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation import coverage, frechet, kernel, precision_recall
from jdcl_jax.evaluation.real import RealSet
from jdcl_jax.evaluation.samples import PAIRWISE_CAP


@dataclasses.dataclass(frozen=True)
class FeatureScore:
    """A score that compares features of real and of generated images.

    Attributes:
        description: one line for tables and reports.
        lower_is_better: direction.
        features: name of the extractor, "classifier" or "inception".
        least: the fewest images on each side for which it is defined.
        most: images on each side beyond this number are thinned out; None: all are used.
        compare: (real set, generated features [N, d]) -> value.
    """

    description: str
    lower_is_better: bool
    features: str
    least: int
    most: int | None
    compare: Callable[[RealSet, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class CoverageScore:
    """A score that compares class histograms, as a sum over classes.

    Attributes:
        description: one line for tables and reports.
        lower_is_better: direction.
        by_class: (true counts [C], predicted counts [C]) -> terms float64 [C].
    """

    description: str
    lower_is_better: bool
    by_class: Callable[[np.ndarray, np.ndarray], np.ndarray]
    features: None = None
    least: int = 1
    most: None = None


Score = FeatureScore | CoverageScore


def _frechet(real: RealSet, generated: np.ndarray) -> float:
    return frechet.frechet_distance(real.statistics, frechet.statistics(generated))


def _kernel(real: RealSet, generated: np.ndarray) -> float:
    return kernel.kernel_distance(real.features, generated)


def _precision(real: RealSet, generated: np.ndarray) -> float:
    return precision_recall.share_inside(generated, real.manifold)


def _recall(real: RealSet, generated: np.ndarray) -> float:
    return precision_recall.share_inside(real.features, precision_recall.manifold(generated))


def _on(features: str, words: str, names: tuple[str, str, str, str]) -> dict[str, Score]:
    neighbours = f"k-NN k={precision_recall.NEIGHBOURS}, on {words}"
    least = precision_recall.LEAST
    scores = (
        FeatureScore(f"Frechet distance on {words}", True, features, frechet.LEAST, None, _frechet),
        FeatureScore(
            f"Kernel distance (unbiased MMD^2, cubic kernel) on {words}",
            True,
            features,
            kernel.LEAST,
            PAIRWISE_CAP,
            _kernel,
        ),
        FeatureScore(f"Improved precision, {neighbours}", False, features, least, PAIRWISE_CAP, _precision),
        FeatureScore(f"Improved recall, {neighbours}", False, features, least, PAIRWISE_CAP, _recall),
    )
    return dict(zip(names, scores, strict=True))


SCORES: dict[str, Score] = {
    **_on(
        "classifier",
        "features of a classifier trained on all real classes",
        ("fd_classifier", "kd_classifier", "precision_classifier", "recall_classifier"),
    ),
    **_on(
        "inception",
        "Inception-v3 features",
        ("fid", "kid", "precision_inception", "recall_inception"),
    ),
    "kld": CoverageScore(
        "KL(true || predicted) of class histograms in nats, half a count added to each predicted "
        "class; per task: its classes' part of the sum",
        True,
        coverage.kld_by_class,
    ),
    "ard": CoverageScore(
        "Half the L1 distance of true and predicted class histograms; per task: its classes' part "
        "of the sum, the rest being mass on unseen classes",
        True,
        coverage.ard_by_class,
    ),
}


def select(names: Iterable[str]) -> dict[str, Score]:
    """The scores of these names, in this order.

    Raises:
        UserError: an unknown name.
    """
    chosen = {}
    for name in names:
        if name not in SCORES:
            raise UserError(f"unknown score {name!r}: write some of {', '.join(SCORES)}")
        chosen[name] = SCORES[name]
    return chosen


def needed_features(names: Iterable[str]) -> frozenset[str]:
    """Names of the feature extractors that these scores need."""
    return frozenset(score.features for score in select(names).values() if score.features)


def check_counts(names: Iterable[str], num_samples: int, num_tasks: int) -> None:
    """Checks before a run that every score is defined with so many generated images.

    Raises:
        UserError: a score would get fewer images per task than it needs.
    """
    for name, score in select(names).items():
        if num_samples // num_tasks < score.least:
            raise UserError(
                f"{num_samples} generated images for {num_tasks} tasks are too few for {name}: "
                f"generate at least {score.least * num_tasks}"
            )
