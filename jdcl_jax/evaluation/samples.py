"""What every score on features asks of its samples: a finite matrix, enough rows, not too many."""

import numpy as np

from jdcl_jax.errors import UserError

# Scores that compare all pairs of samples use at most so many of each side [ours].
PAIRWISE_CAP = 10_000


def feature_matrix(features: np.ndarray, least: int, score: str) -> np.ndarray:
    """The features as float64 [N, d], checked as by `checked_features`."""
    return checked_features(features, least, score).astype(np.float64, copy=False)


def checked_features(features: np.ndarray, least: int, score: str) -> np.ndarray:
    """The features [N, d] as they are.

    Args:
        features: [N, d], any real type.
        least: the fewest rows for which the score is defined.
        score: its name in words, for the message.

    Raises:
        UserError: not a matrix, fewer rows than `least`, or a value that is not finite.
    """
    matrix = np.asarray(features)
    if matrix.ndim != 2:
        raise UserError(f"{score} got features of shape {matrix.shape}: give one row per image")
    if len(matrix) < least:
        raise UserError(
            f"{score} needs at least {least} images on each side and got {len(matrix)}: "
            "generate more samples, or hold out more test images"
        )
    if not np.isfinite(matrix).all():
        raise UserError(f"{score} got features with NaN or infinity: check the feature network")
    return matrix


def thinned(features: np.ndarray, cap: int) -> np.ndarray:
    """At most `cap` rows, drawn once and for all without replacement, in order.

    Not the first rows, because test images are sorted by task; not every n-th, because the labels of generated images
    may run through the classes in turn; by a fixed seed, so that the score is the same each time.
    """
    if len(features) <= cap:
        return features
    return features[np.sort(np.random.default_rng(0).permutation(len(features))[:cap])]
