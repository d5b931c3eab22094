"""Which other Python tests/both_ends.py takes, and that what it runs is there."""

import subprocess
import sys
from pathlib import Path

import pytest

import both_ends

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("found", "own", "tried"),
    [
        ([(3, 11), (3, 12), (3, 13)], (3, 11), [(3, 13), (3, 12)]),
        ([(3, 11), (3, 12), (3, 13)], (3, 12), [(3, 13)]),
        ([(3, 11), (3, 12), (3, 13)], (3, 13), [(3, 11), (3, 12)]),
        ([(3, 9), (3, 10), (3, 11)], (3, 11), []),
        ([(3, 11)], (3, 11), []),
    ],
)
def test_the_newest_python_is_taken_or_else_the_oldest_that_is_supported(found, own, tried) -> None:
    assert both_ends.order(found, own, (3, 11)) == tried


def test_the_oldest_versions_are_those_of_setup_py() -> None:
    (python, jax), text = both_ends.supported(), (ROOT / "setup.py").read_text()
    assert f'python_requires=">={python[0]}.{python[1]}"' in text
    assert f'"jax>={jax}"' in text


def test_a_command_that_is_no_working_python_is_passed_over(tmp_path, monkeypatch) -> None:
    """The commands of pyenv on the PATH may only say that they are not there."""
    for name, text in (("python3.98", "echo not here >&2; exit 127"), ("python3.99", f'exec "{sys.executable}" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "none"))
    assert both_ends.pythons() == {sys.version_info[:2]: tmp_path / "python3.99"}


def test_without_another_python_it_says_so_and_ends_well(monkeypatch, capsys) -> None:
    monkeypatch.setattr(both_ends, "pythons", lambda: {sys.version_info[:2]: Path(sys.executable)})
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    assert both_ends.main() == 0
    assert capsys.readouterr().out.startswith("Only Python 3.")
