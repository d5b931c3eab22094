"""What bits per dimension (bpd) do not show: why a forgotten mode hardly costs any, and which scores agree.

arXiv 2303.15342 [paper] warns of bpd as a score of continual learning; the demonstrations here are exact [ours]. A
model that drops an old mode's weight from 1/2 to p generates hardly any image of it, yet the likelihood of an old image
falls by the factor 2 p only, whose logarithm its many dimensions share.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from jdcl_jax.errors import UserError

_HALF_DISTANCE = 30.0  # standard deviations from the origin to each mode: they do not overlap in float64
_POINTS = 64


@dataclasses.dataclass(frozen=True)
class MixtureDemonstration:
    """Bits/dim of an old mode's points before and after its weight dropped, from exact log-densities.

    Attributes:
        before: mean -log2 density / dims with the weight 1/2.
        after: the same with the weight p.
        formula: `mixture_penalty`, which `rise` should equal.
    """

    before: float
    after: float
    formula: float

    @property
    def rise(self) -> float:
        """The measured rise in bits/dim."""
        return self.after - self.before


def mixture_penalty(p: float, dims: int) -> float:
    """Rise in bits/dim of an old mode's images when its mixture weight drops from 1/2 to p: log2(0.5 / p) / dims.

    Exact for modes that do not overlap, whatever their shape.

    Raises:
        UserError: p is not inside (0, 1), or dims is below 1.
    """
    if not 0.0 < p < 1.0:
        raise UserError(f"the mixture weight p is {p}: write a number above 0 and below 1")
    if dims < 1:
        raise UserError(f"dims is {dims}: write the number of pixel values of an image, at least 1")
    return math.log2(0.5 / p) / dims


def mixture_demonstration(dims: int, p: float, seed: int = 0) -> MixtureDemonstration:
    """Measures `mixture_penalty` on points of the old one of two unit Gaussians far apart; float64, deterministic.

    Args:
        dims: dimensions of the points, for instance the pixel values of an image.
        p: the old mode's weight afterwards; the new mode has 1 - p.
        seed: names the points.

    Raises:
        UserError: as `mixture_penalty`.
    """
    formula = mixture_penalty(p, dims)
    centre = np.full(dims, _HALF_DISTANCE / math.sqrt(dims))
    points = centre + np.random.default_rng(seed).standard_normal((_POINTS, dims))
    logs = np.stack([_log_normal(points, centre), _log_normal(points, -centre)])  # old mode, new mode

    def bits(weight: float) -> float:
        log_density = np.logaddexp(math.log(weight) + logs[0], math.log1p(-weight) + logs[1])
        return float(-np.mean(log_density) / (dims * math.log(2.0)))

    return MixtureDemonstration(before=bits(0.5), after=bits(p), formula=formula)


def kendall_tau(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Kendall's rank correlation (tau-b, which corrects for ties) of two scores of the same N things, in [-1, 1].

    Pairs in which a value is unknown (None, NaN or infinite) are left out. NaN where fewer than two pairs remain, or
    where one side is constant and so ranks nothing.

    Raises:
        UserError: the lengths differ.
    """
    if len(a) != len(b):
        raise UserError(f"cannot compare the rankings of {len(a)} and {len(b)} values: give both of the same runs")
    pairs = np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 2 or np.any(pairs.min(axis=1) == pairs.max(axis=1)):
        return math.nan
    return float(stats.kendalltau(pairs[0], pairs[1], variant="b").statistic)


def rank_agreement(
    values: Mapping[str, Sequence[float]], lower_is_better: Mapping[str, bool]
) -> dict[tuple[str, str], float]:
    """Kendall's tau between the rankings that every two scores give of the same checkpoints or methods.

    Args:
        values: per score, its values in one common order of the things ranked; unknown ones as in `kendall_tau`.
        lower_is_better: per score, its direction; turned where needed, so that tau = 1 means that both scores agree on
            which of every two is better, and -1 that they always contradict each other.

    Returns: tau per pair of scores, in the order of `values`, each pair once.

    Raises:
        UserError: a score without a direction, or scores of different lengths.
    """
    missing = sorted(set(values) - set(lower_is_better))
    if missing:
        raise UserError(f"no direction for {', '.join(missing)}: add to lower_is_better whether lower is better")
    goodness = {
        name: np.asarray(scores, np.float64) * (-1.0 if lower_is_better[name] else 1.0)
        for name, scores in values.items()
    }
    return {(a, b): kendall_tau(goodness[a], goodness[b]) for a, b in itertools.combinations(goodness, 2)}


def bound_share(bits: Sequence[float] | np.ndarray, from_t: int) -> float:
    """Share, in [0, 1], of sum_t L_t that the timesteps t >= from_t carry.

    Args:
        bits: L_t in bits/dim for t = 0..T-1, [T].
        from_t: 0..T-1.

    Raises:
        UserError: from_t is not a timestep.
    """
    terms = np.asarray(bits, np.float64)
    if not 0 <= from_t < len(terms):
        raise UserError(f"from_t is {from_t}: write a timestep from 0 to {len(terms) - 1}")
    return float(terms[from_t:].sum() / terms.sum())


def _log_normal(points: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Log-density in nats of N(mean, I) at points [N, D]: float64 [N]."""
    return -0.5 * (np.sum((points - mean) ** 2, axis=1) + points.shape[1] * math.log(2.0 * math.pi))
