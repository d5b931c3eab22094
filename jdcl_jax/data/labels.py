"""Semi-supervised learning: which training labels are known. A label that is not known is -1."""

import numpy as np

from jdcl_jax.data.arrays import strata
from jdcl_jax.data.groups import LABEL_STREAM, random_stream
from jdcl_jax.errors import UserError

UNKNOWN = -1


def hide_labels(labels: np.ndarray, fraction: float, seed: int, domains: np.ndarray | None = None) -> np.ndarray:
    """Keeps a fraction of every class's labels, and writes -1 for the others.

    Of a class's n labels (in a domain) round(n * fraction), at least 1, are kept (none if the fraction is 0). Which
    ones depends on the class, the domain, their number of images and the seed alone, so that every order and grouping
    of the classes or domains knows the same.

    Args:
      labels: int [N], all >= 0, a class's images (of a domain) in the order of the data set.
      fraction: 0 to 1; the published ones are .008 and .05 (arXiv 2411.08224 [code]).
      seed: seed of the choice.
      domains: int [N]; None: there are none.

    Returns: int32 [N].

    Raises:
      UserError: a fraction outside 0 to 1.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"data.label_fraction is {fraction}; write a share of the labels, 0 to 1")
    known = np.zeros(len(labels), bool)
    for stratum, rows in strata(labels, domains) if fraction else ():
        count = max(1, round(len(rows) * fraction))
        known[rows[random_stream(seed, LABEL_STREAM, *stratum).permutation(len(rows))[:count]]] = True
    return np.where(known, labels, UNKNOWN).astype(np.int32)
