"""Summaries of a 3x3 matrix by hand, in both directions, and what stays undefined."""

import numpy as np
import pytest

from jdcl_jax.evaluation.forgetting import summarise

NAN = np.nan
MATRIX = np.array([[0.9, NAN, NAN], [0.95, 0.8, NAN], [0.5, 0.7, 0.6]])
UNION = [0.9, 0.85, 0.55]


def values(matrix, union, lower_is_better):
    summary = summarise(matrix, union, lower_is_better)
    return {name: entry["value"] for name, entry in summary.items()}


def test_summary_of_a_score_where_higher_is_better():
    assert values(MATRIX, UNION, False) == pytest.approx(
        {
            "last_union": 0.55,
            "average": (0.5 + 0.7 + 0.6) / 3,
            "incremental": (0.9 + (0.95 + 0.8) / 2 + (0.5 + 0.7 + 0.6) / 3) / 3,
            "forgetting_max": ((0.95 - 0.5) + (0.8 - 0.7)) / 2,
            "bwt": ((0.5 - 0.9) + (0.7 - 0.8)) / 2,
            "rise": ((0.9 - 0.5) + (0.8 - 0.7)) / 2,
        }
    )


def test_summary_of_a_score_where_lower_is_better():
    # Task 1: best 2 (after task 1), last 9; task 2: best and first 4, last 3, so it got better.
    matrix = [[2, None, None], [5, 4, None], [9, 3, 1]]
    assert values(matrix, [2, 5, 7], True) == pytest.approx(
        {
            "last_union": 7,
            "average": 13 / 3,
            "incremental": (2 + 4.5 + 13 / 3) / 3,
            "forgetting_max": ((9 - 2) + (3 - 4)) / 2,
            "bwt": ((2 - 9) + (4 - 3)) / 2,
            "rise": ((9 - 2) + (3 - 4)) / 2,
        }
    )


def test_forgetting_counts_from_the_best_and_bwt_from_the_first():
    matrix = [[1, NAN, NAN], [3, 5, NAN], [2, 5, 5]]
    assert values(matrix, [1, 1, 1], False)["forgetting_max"] == pytest.approx((3 - 2) / 2)
    assert values(matrix, [1, 1, 1], False)["bwt"] == pytest.approx((2 - 1) / 2)
    assert values(matrix, [1, 1, 1], True)["forgetting_max"] == pytest.approx((2 - 1) / 2)
    assert values(matrix, [1, 1, 1], True)["bwt"] == pytest.approx((1 - 2) / 2)


def test_negating_a_score_and_its_direction_keeps_forgetting_and_transfer():
    higher, lower = values(MATRIX, UNION, False), values(-MATRIX, UNION, True)
    assert higher["forgetting_max"] == pytest.approx(lower["forgetting_max"])
    assert higher["bwt"] == pytest.approx(lower["bwt"])
    assert higher["rise"] == pytest.approx(lower["rise"])


def test_the_rise_counts_from_a_tasks_first_score_and_forgetting_from_its_best():
    # FID of task 1: 10 when learned, 6 at its best, 30 at the end; of task 2: 20, then 24.
    matrix = [[10, NAN, NAN], [6, 20, NAN], [30, 24, 15]]
    summary = values(matrix, [1, 1, 1], True)
    assert summary["rise"] == pytest.approx(((30 - 10) + (24 - 20)) / 2) == -summary["bwt"]
    assert summary["forgetting_max"] == pytest.approx(((30 - 6) + (24 - 20)) / 2)


def test_published_names_stand_beside_the_formulas_that_they_belong_to():
    lower, higher = summarise(MATRIX, UNION, True), summarise(MATRIX, UNION, False)
    for name, published in {
        "average": ["AFQ of CLoG", "of fid, AFID of arXiv 2509.23593"],
        "incremental": ["AIQ of CLoG"],
        "rise": ["FR of CLoG", "F of arXiv 2509.23593"],
    }.items():
        assert [words for words in published if words not in lower[name]["formula"]] == []
    assert "CLoG" not in higher["rise"]["formula"], "theirs is of scores where lower is better"
    assert lower["rise"]["formula"].startswith("mean_{j<T} (R[T,j] - R[j,j]), lower is better")
    assert higher["rise"]["formula"].startswith("mean_{j<T} (R[j,j] - R[T,j]), higher is better")


def test_formula_says_which_form_was_used():
    higher, lower = summarise(MATRIX, UNION, False), summarise(MATRIX, UNION, True)
    assert "max_{i<T} R[i,j] - R[T,j]" in higher["forgetting_max"]["formula"]
    assert "R[T,j] - min_{i<T} R[i,j]" in lower["forgetting_max"]["formula"]
    assert "R[T,j] - R[j,j]" in higher["bwt"]["formula"]
    assert "R[j,j] - R[T,j]" in lower["bwt"]["formula"]
    assert "higher is better" in higher["bwt"]["formula"]
    assert "lower is better" in lower["bwt"]["formula"]


def test_one_task_has_no_forgetting_and_no_transfer():
    assert values([[0.3]], [0.4], True) == {
        "last_union": 0.4,
        "average": 0.3,
        "incremental": 0.3,
        "forgetting_max": None,
        "bwt": None,
        "rise": None,
    }


def test_tasks_not_learned_yet_are_left_out():
    running = np.full((5, 5), NAN)
    running[:3, :3] = MATRIX
    union = [*UNION, None, None]
    assert values(running, union, False) == pytest.approx(values(MATRIX, UNION, False))
    assert set(values(np.full((2, 2), NAN), [None, None], True).values()) == {None}


def test_a_value_that_needs_an_unknown_entry_is_none_and_never_nan():
    matrix = MATRIX.copy()
    matrix[1, 0] = NAN
    assert values(matrix, [0.9, 0.85, None], False) == {
        "last_union": None,
        "average": pytest.approx(0.6),
        "incremental": None,
        "forgetting_max": None,
        "bwt": pytest.approx(-0.25),
        "rise": pytest.approx(0.25),
    }


def test_entries_above_the_diagonal_do_not_matter():
    matrix = MATRIX.copy()
    matrix[0, 2] = matrix[1, 2] = 1e9
    assert values(matrix, UNION, False) == values(MATRIX, UNION, False)
    running = np.triu(np.full((5, 5), 1e9), 1)  # nor do those of tasks not learned yet
    running[np.tril_indices(5)] = NAN
    running[:3, :3] = MATRIX
    assert values(running, UNION, False) == values(MATRIX, UNION, False)
