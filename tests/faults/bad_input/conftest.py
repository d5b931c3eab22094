"""Counts of all cases, a process that answers command lines, and one finished run that nothing may change."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.bad_input.endings import LONG, TABLE, CommandLines, fingerprint, table


@pytest.fixture(scope="session", autouse=True)
def counts() -> Iterator[None]:
    """Writes the table of the long form when all is done."""
    yield
    if TABLE and "PYTEST_XDIST_WORKER" not in os.environ:
        Path(TABLE).parent.mkdir(parents=True, exist_ok=True)
        Path(TABLE).write_text(table())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LONG:
        terminalreporter.write_line(table())


@pytest.fixture(scope="session")
def command_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLines]:
    """Every program, asked by its command line."""
    answering = CommandLines(tmp_path_factory.mktemp("forking"))
    yield answering
    answering.close()


@pytest.fixture(scope="session")
def run_words(tiny_words: Callable[..., str]) -> str:
    """Behind the colon of configs/digits.py: a run of two tasks in few seconds, with curves."""
    return tiny_words(
        "gd", "tasks.first=2", "checkpoint.every=2", "evaluation.likelihood.images=4",
        "evaluation.scores=('fd_classifier','kld','bpd_fixed_small','bpd_fixed_large')",
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished(run_words: str, tmp_path_factory: pytest.TempPathFactory, command_lines: CommandLines) -> Iterator[Path]:
    """A finished run with the small network, as `command_lines` has it; it is the same in the end as it was."""
    place = tmp_path_factory.mktemp("finished")
    from faults.bad_input.endings import DIGITS

    ending = command_lines(place, "main", f"--config={DIGITS}:{run_words}", "--workdir=run")
    assert ending.code == 0, ending.err
    before = fingerprint(place)
    yield place / "run"
    assert fingerprint(place) == before
