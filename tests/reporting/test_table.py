import numpy as np
import pytest

from jdcl_jax.reporting import formats
from jdcl_jax.reporting.table import score_table


def cells(text: str, first: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def test_a_row_has_the_last_tasks_scores_the_union_and_the_summaries(results):
    text = score_table(results())
    header = text.splitlines()[2].replace("task ", "task").split()
    assert header == ["score", "better", "task1", "task2", "task3", "union", "average", "bwt"]
    row = ["fd_classifier", "lower", "4.000", "3.000", "1.250", "4.400", "2.750", "-2.250"]
    assert cells(text, "fd_classifier") == row
    assert cells(text, "recall")[:5] == ["recall", "higher", "0.5000", "0.6000", "0.9500"]
    assert "after task 3 of 3" in text
    assert "average: mean_j R[T,j]" in text


def test_a_running_run_shows_the_last_task_that_is_known(results):
    tree = results(status="running")
    for score in tree["scores"].values():
        score["matrix"][2], score["union"][2], score["summary"] = [None] * 3, None, {}
    text = score_table(tree)
    assert "after task 2 of 3" in text
    assert cells(text, "fd_classifier") == ["fd_classifier", "lower", "2.000", "1.500", "2.200"]
    assert score_table(results(scores={})) == "no scores yet"


def test_arrays_with_nan_are_read_like_the_file(results):
    tree = results()
    for score in tree["scores"].values():
        score["matrix"] = np.array(score["matrix"], dtype=float)
        score["union"] = np.array(score["union"], dtype=float)
    assert score_table(tree) == score_table(results())


def test_twenty_tasks_stay_within_a_terminal(results):
    tree = results(tasks=[results()["tasks"][0]] * 20)
    for score in tree["scores"].values():
        score["matrix"] = (np.arange(400.0).reshape(20, 20) + 1).tolist()
        score["union"] = [1234.5] * 20
    text = score_table(tree)
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"task {task}" in text for task in range(1, 21))
    assert [line.split()[2] for line in text.splitlines() if line.startswith("recall")] == [
        "381.0",  # task 1 after task 20
        "389.0",  # task 9
        "397.0",  # task 17
        "2.750",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5234, "1.523"), (0.012345, "0.01235"), (13.4, "13.40"), (12345.6, "12346"), (0, "0"),
     (1234567, "1.235e+06"), (0.00000123, "1.230e-06"), (-2.5, "-2.500"), (float("nan"), "-"),
     (float("inf"), "-"), (None, "-")],
)  # fmt: skip
def test_numbers_have_four_digits(value, text):
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (3.21, "3.2 s"), (9.97, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"),
     (7500, "2 h 05 min"), (90000, "1 d 01 h"), (None, "-")],
)  # fmt: skip
def test_durations_have_two_units(seconds, text):
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [(1.2e12, "1.20 TFLOP"), (0, "0 FLOP"), (999, "999 FLOP"), (999_900, "1.00 MFLOP"),
     (3.456e18, "3.46 EFLOP"), (None, "-")],
)  # fmt: skip
def test_flops_have_si_prefixes(flops, text):
    assert formats.flops(flops) == text
