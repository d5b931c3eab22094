"""The scores by their final names, and what each of them needs.

A score on Inception features and one on the classifier's never share a name: only the Frechet
distance on Inception features is `fid`, only the kernel distance on them `kid`.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation import coverage, frechet, kernel, precision_recall
from jdcl_jax.evaluation.assign import asked_until
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


@dataclasses.dataclass(frozen=True)
class LabelScore:
    """A score that compares the classes that images were asked to show with those that they show [ours].

    Attributes:
        description: one line for tables and reports.
        lower_is_better: direction.
        compare: (classes asked for [N], classes predicted [N]) -> value, N >= 1.
    """

    description: str
    lower_is_better: bool
    compare: Callable[[np.ndarray, np.ndarray], float]
    features: None = None
    least: int = 1
    most: None = None


@dataclasses.dataclass(frozen=True)
class MeasuredScore:
    """A score of the network itself, measured elsewhere on real images; it needs no generated image.

    Attributes:
        description: one line for tables and reports.
        lower_is_better: direction.
        needs: what must be there to measure it: "likelihood" (`evaluation.likelihood.images`), "classifier" (one that
            learns along), "average" (such a classifier, and averaged weights), "validation" (such a classifier, and
            held-out training images), or nothing.
    """

    description: str
    lower_is_better: bool = False
    needs: str | None = None
    features: None = None
    least: int = 1
    most: None = None


Score = FeatureScore | CoverageScore | LabelScore | MeasuredScore


class Measured(NamedTuple):
    """One measured score: its values per task float64 [T] and on the union, and of how many images each task's is."""

    row: np.ndarray
    union: float
    images: np.ndarray


def _frechet(real: RealSet, generated: np.ndarray) -> float:
    return frechet.frechet_distance(real.statistics, frechet.statistics(generated))


def _kernel(real: RealSet, generated: np.ndarray) -> float:
    return kernel.kernel_distance(real.features, generated)


def _precision(real: RealSet, generated: np.ndarray) -> float:
    return precision_recall.share_inside(generated, real.manifold)


def _recall(real: RealSet, generated: np.ndarray) -> float:
    return precision_recall.share_inside(real.features, precision_recall.manifold(generated))


def _share_equal(asked: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(asked == predicted))


def _bound(variance: str) -> MeasuredScore:
    words = f"Bound on the code length in bits/dim with the {variance} variance, held-out test images"
    return MeasuredScore(words, True, "likelihood")


def _accuracy(words: str, needs: str = "classifier") -> MeasuredScore:
    return MeasuredScore(f"Accuracy of the network's own classifier, {words}", needs=needs)


def _probe(words: str) -> MeasuredScore:
    return MeasuredScore(
        f"Accuracy of {words} on the denoiser's pooled features at t = 0, fitted to training images of all tasks seen"
    )


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


_PER_TASK = "per task: its classes' part of the sum, divided by the task's share of the test images"

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
        f"KL(true || predicted) of class histograms in nats, half a count added to each predicted class; {_PER_TASK}, "
        "negative where its classes are made too often",
        True,
        coverage.kld_by_class,
    ),
    "kld_epsilon": CoverageScore(
        f"KL(true || predicted) of class histograms in nats, 1e-8 added to every share; {_PER_TASK}, "
        "negative where its classes are made too often",
        True,
        coverage.kld_epsilon_by_class,
    ),
    "ard": CoverageScore(
        f"Half the L1 distance of true and predicted class histograms; {_PER_TASK}; mass on unseen classes counts "
        "in the union alone",
        True,
        coverage.ard_by_class,
    ),
    "label_accuracy": LabelScore(
        "Share of generated images that the classifier gives the class asked for", False, _share_equal
    ),
    "bpd_fixed_small": _bound("fixed-small (posterior)"),
    "bpd_fixed_large": _bound("fixed-large (beta_t)"),
    "eps_mse": MeasuredScore(
        "Mean over all t of the mean squared error of the predicted noise, held-out test images", True, "likelihood"
    ),
    "accuracy": _accuracy(
        "any class of the data set may be answered, or by a classifier apart any seen so far (class-incremental), "
        "test images"
    ),
    "accuracy_masked": _accuracy("the task is told and only its classes may be answered (task-aware), test images"),
    "accuracy_by_class": _accuracy("class-incremental, the mean over classes of each one's share, test images"),
    "accuracy_masked_by_class": _accuracy("task-aware, the mean over classes of each one's share, test images"),
    "accuracy_raw": _accuracy("class-incremental, with the raw weights, test images"),
    "accuracy_ema": _accuracy("class-incremental, with the averaged weights, test images", "average"),
    "accuracy_validation": _accuracy("class-incremental, held-out training images", "validation"),
    "linear_probe": _probe("a linear classifier"),
    "knn_probe": _probe("a nearest-neighbour classifier"),
}


def select(names: Iterable[str]) -> dict[str, Score]:
    """The scores of these names, in this order.

    Raises:
        UserError: an unknown name.
    """
    chosen = {}
    for name in names:
        if not isinstance(name, str) or name not in SCORES:
            raise UserError(f"unknown score {name!r}: write some of {', '.join(SCORES)}")
        chosen[name] = SCORES[name]
    return chosen


def needed_features(names: Iterable[str]) -> frozenset[str]:
    """Names of the feature extractors that these scores need."""
    return frozenset(score.features for score in select(names).values() if score.features)


def needs_likelihood(names: Iterable[str]) -> list[str]:
    """Which of these scores need `evaluation.likelihood.images` > 0; in order."""
    chosen = select(names).items()
    return [name for name, score in chosen if isinstance(score, MeasuredScore) and score.needs == "likelihood"]


_LACKING = {
    "likelihood": "write evaluation.likelihood.images=16 (test images per task to measure it on)",
    "classifier": "write classifier.kind=joint",
    "average": "write classifier.kind=joint and train.ema=0.995",
    "validation": "write classifier.kind=joint and data.validation=0.05",
    None: "measure it",
}


def check_measured(names: Iterable[str], measured: Collection[str]) -> None:
    """Checks that every chosen score that is measured on the network is among the `measured` ones.

    Raises:
        UserError: one is not.
    """
    for name, score in select(names).items():
        if isinstance(score, MeasuredScore) and name not in measured:
            raise UserError(f"evaluation.scores has {name}; {_LACKING[score.needs]}, or leave {name} out")


def check_needs(names: Iterable[str], there: Mapping[str, bool]) -> None:
    """Checks that what the chosen scores need is there: need -> whether it is.

    Raises:
        UserError: something is not.
    """
    chosen = select(names).items()
    met = [n for n, score in chosen if isinstance(score, MeasuredScore) and (not score.needs or there[score.needs])]
    check_measured(names, met)


def check_conditional(names: Iterable[str], conditional: bool) -> None:
    """Checks that no chosen score needs a class-conditional denoiser where there is none.

    Raises:
        UserError: a score of the classes asked for, and an unconditional denoiser.
    """
    for name, score in select(names).items():
        if isinstance(score, LabelScore) and not conditional:
            raise UserError(
                f"evaluation.scores has {name}, but the denoiser is not asked for classes; "
                f"write model.class_conditional=True, or leave {name} out"
            )


def check_counts(
    names: Iterable[str], num_samples: int, num_tasks: int, groups: Sequence[Sequence[int]] | None = None
) -> None:
    """Checks before a run that every score is defined with so many generated images.

    Args:
        names: scores.
        num_samples: generated images after each task.
        num_tasks: number of tasks of the run.
        groups: the classes of each task, if the denoiser is conditional and its samples run through the
            seen classes in turn; then a task has no more images than were asked for its classes.

    Raises:
        UserError: a score would get fewer images per task than it needs.
    """
    for name, score in select(names).items():
        share = score.least * num_tasks  # a task is judged by its share of all images at most
        enough = max(share, asked_until(groups, score.least)) if groups else share
        if num_samples < enough:
            raise UserError(
                f"{num_samples} generated images for {num_tasks} tasks are too few for {name}: "
                f"generate at least {enough}"
            )
