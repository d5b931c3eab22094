"""Counts of all cases, a process that answers command lines, and one finished run that nothing may change."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from faults.bad_input import nasty
from faults.bad_input.endings import DIGITS, LONG, TABLE, CommandLines, fingerprint, table


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
def finished(
    tiny_words: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, command_lines: CommandLines
) -> Iterator[Path]:
    """A real run with the small network, on data whose name and classes are tags; it is the same in the end."""
    place = tmp_path_factory.mktemp("finished")
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    data = place / f"{nasty.TAG.replace('/', '')}.npz"
    np.savez(data, images=images, labels=np.arange(60) % 6, class_names=np.array(nasty.TAGS))
    words = tiny_words(
        "finetune",
        "classifier.kind=joint",
        "classifier.hidden=8",
        "tasks.num_tasks=3",
        "tasks.first=2",
        "train.steps=2",
        "checkpoint.every=2",
        "sampler.steps=2",
        "evaluation.likelihood.images=2",
        "evaluation.num_samples=20",
        "evaluation.batch_size=20",
        "diffusion.timesteps=10",
        "evaluation.scores=('accuracy','fd_classifier','kld','bpd_fixed_small','bpd_fixed_large')",
    )
    ending = command_lines(
        place, "main", f"--config={DIGITS}:{words}", f"--config.data.name=npz:{data}", "--workdir=run"
    )
    assert ending.code == 0, ending.err
    assert "Warning" not in ending.err, ending.err
    before = fingerprint(place)
    yield place / "run"
    assert fingerprint(place) == before
