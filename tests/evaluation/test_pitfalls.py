"""What bpd hides, in numbers known by hand, and Kendall's tau of small rankings."""

import math

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.pitfalls import (
    bound_share,
    kendall_tau,
    mixture_demonstration,
    mixture_penalty,
    rank_agreement,
)

NAN = math.nan


def test_mixture_penalty_by_hand() -> None:
    assert mixture_penalty(0.125, 64) == 2 / 64
    assert mixture_penalty(0.5, 10) == 0.0
    assert mixture_penalty(1e-3, 3072) == pytest.approx(0.00292, abs=5e-6)  # all but forgotten, and nothing to see
    assert mixture_penalty(0.75, 1) < 0


@pytest.mark.parametrize(("dims", "p"), [(1, 0.1), (64, 0.01), (3072, 1e-6), (64, 0.9)])
def test_measured_rise_is_the_penalty(dims: int, p: float) -> None:
    measured = mixture_demonstration(dims, p)
    assert measured.formula == mixture_penalty(p, dims)
    assert measured.rise == pytest.approx(measured.formula, rel=1e-9)
    assert measured == mixture_demonstration(dims, p)


def test_bits_of_the_demonstration_are_those_of_half_a_gaussian() -> None:
    # Entropy of a unit Gaussian per dimension, plus the one bit of which mode it was.
    dims = 1000
    entropy = 0.5 * math.log2(2 * math.pi * math.e)
    assert mixture_demonstration(dims, 0.1).before == pytest.approx(entropy + 1 / dims, abs=0.015)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, NAN])
def test_mixture_weight_outside_its_range_is_refused(p: float) -> None:
    with pytest.raises(UserError, match="above 0 and below 1"):
        mixture_penalty(p, 10)


def test_no_dimensions_are_refused() -> None:
    with pytest.raises(UserError, match="dims is 0"):
        mixture_demonstration(0, 0.1)


def test_kendall_tau_by_hand() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Of six pairs five agree and one does not.
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # tau-b with one tie in a: (2 - 0) / sqrt(2 * 3)
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))


def test_kendall_tau_leaves_out_pairs_with_an_unknown_value() -> None:
    assert kendall_tau([1, NAN, 2, 3, 4], [2, 0, math.inf, 1, 3]) == pytest.approx((2 - 1) / 3)
    assert kendall_tau([1, None, 2], [5, 0, 6]) == pytest.approx(1)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1], [2]), ([1, NAN], [2, 3]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0.5, 0.5, 0.5])]
)
def test_kendall_tau_is_nan_where_nothing_is_ranked(a: list[float], b: list[float]) -> None:
    assert math.isnan(kendall_tau(a, b))


def test_rankings_of_different_length_are_refused() -> None:
    with pytest.raises(UserError, match="3 and 2 values"):
        kendall_tau([1, 2, 3], [1, 2])


def test_agreement_is_one_where_scores_prefer_the_same_whatever_their_direction() -> None:
    values = {"fid": [10.0, 20.0, 30.0], "coverage": [0.9, 0.8, 0.7], "bpd": [3.0, 2.0, 1.0]}
    found = rank_agreement(values, {"fid": True, "coverage": False, "bpd": True})
    assert found == pytest.approx({("fid", "coverage"): 1.0, ("fid", "bpd"): -1.0, ("coverage", "bpd"): -1.0})
    assert list(found) == [("fid", "coverage"), ("fid", "bpd"), ("coverage", "bpd")]
    both_higher = rank_agreement(values, dict.fromkeys(values, False))
    assert both_higher[("fid", "bpd")] == pytest.approx(-1.0)
    assert both_higher[("fid", "coverage")] == pytest.approx(-1.0)


def test_agreement_needs_every_direction() -> None:
    with pytest.raises(UserError, match="no direction for kld"):
        rank_agreement({"fid": [1.0, 2.0], "kld": [1.0, 2.0]}, {"fid": True})


def test_bound_share_by_hand() -> None:
    assert bound_share([4.0, 2.0, 1.0, 1.0], 2) == 0.25
    assert bound_share([4.0, 2.0, 1.0, 1.0], 0) == 1.0
    assert bound_share(np.array([1.0, 0.0, 3.0], np.float32), 2) == 0.75
    for from_t in (-1, 3):
        with pytest.raises(UserError, match="from 0 to 2"):
            bound_share([1.0, 2.0, 3.0], from_t)
