"""The short form of the campaign: every method killed at a few random moments, asked to stop, and robbed of a part."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faults import runs
from faults.lives import REPOSITORY, Life, environment, faults_of
from faults.tables import tables

CAMPAIGN = Path(__file__).with_name("campaign.py")
KILLS, TERMINATIONS = 2, 2
SHORT = ("jdcl",)
ROBBED = ("gd", "er")  # of the others' parts each is taken away in test_jdcl_run.py and test_solver_runs.py


@pytest.mark.parametrize(
    "method",
    [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in runs.METHODS],
)
def test_runs_that_are_killed_end_like_one_that_was_not(method, tmp_path) -> None:
    out = tmp_path / "found.json"
    words = [
        f"--kills={KILLS}",
        f"--terminations={TERMINATIONS}",
        f"--controls={int(method in ROBBED)}",
        "--cold",
        f"--methods={method}",
        f"--out={out}",
    ]
    ended = subprocess.run(
        [sys.executable, str(CAMPAIGN), f"--methods={method}", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert out.exists(), ended.stderr[-2000:]
    found = json.loads(out.read_text())["methods"][method]
    assert found["problems"] == []
    assert ended.returncode == 0
    for name, number in (("SIGKILL", KILLS), ("SIGTERM", TERMINATIONS)):
        assert found["tried"][name] == found["survived"][name] == number
    assert found["most_seconds_to_end_after_sigterm"] < 10
    robbed = found["things_that_differ_without"]
    assert list(robbed) == (list(runs.LOST[method])[-1:] if method in ROBBED else [])
    assert all(robbed.values())


def test_the_tables_of_the_docs_are_those_of_the_long_form() -> None:
    found = json.loads((REPOSITORY / "results" / "faults" / "campaign.json").read_text())
    assert tables(found) in (REPOSITORY / "docs" / "faults.md").read_text()
    assert found["methods"].keys() == runs.METHODS.keys()


# -- the judge itself


def life(trace: list[str], resumed: tuple[int, int, int], log: str = "") -> Life:
    return Life(0, 1.0, None, log, [line.split() for line in trace], resumed)


@pytest.mark.parametrize(
    ("done", "resumed", "words"),
    [
        (["begun 0 0 0 9.0", "step 2", "step 3"], (0, 0, 2), "began at"),
        (["begun 0 0 2 9.0", "step 2", "step 3"], (0, 0, 2), "made the steps"),  # one twice
        (["begun 0 0 0 9.0", "step 3", "step 5"], (0, 0, 0), "made the steps"),  # one left out
        (["begun 1 0 3 9.0", "evaluation 1"], (1, 0, 3), "evaluated"),
    ],
)
def test_work_done_twice_or_left_out_is_seen(done, resumed, words) -> None:
    assert any(words in fault for fault in faults_of(life(done, resumed), [2, 3, 5]))


def test_a_life_without_faults_has_none_and_a_traceback_is_one() -> None:
    done = ["begun 0 0 2 9.0", "step 3", "step 5", "evaluation 1"]
    assert faults_of(life(done, (0, 0, 2)), [2, 3, 5]) == []
    assert len(faults_of(life(done, (0, 0, 2), "x\nTraceback (most recent call last):\n"), [2, 3, 5])) == 1
