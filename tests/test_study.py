"""The command line of a study: two tiny methods from the first start, over an interruption, to the page.

On a first task joint training is fine-tuning, so the second run finds the first one's compiled programs in the cache.
"""

import functools
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from jdcl_jax import campaign
from jdcl_jax.study import main
from refusals import refusal_of

REPOSITORY = Path(__file__).parents[1]
DIGITS = str(REPOSITORY / "configs" / "digits.py")


@pytest.fixture(autouse=True)
def _children(monkeypatch) -> None:
    """Runs that a study starts find this package, do not start anew for large pages, and compile in half the time."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {quick}")


@pytest.fixture
def arguments(tiny_words, tmp_path):
    """`arguments("finetune,gr")`: a command line of runs of one tiny task, one at a time."""

    def make(methods: str, *more: str, words: tuple[str, ...] = ()) -> list[str]:
        study = [
            f"--config={DIGITS}:{tiny_words('tasks.first=1', *words)}",
            f"--methods={methods}",
            "--seeds=0",
            f"--workdir={tmp_path / 'study'}",
        ]
        return [*study, "--jobs=1", *more]

    return make


refusal = functools.partial(refusal_of, main)


def stop_at(file: Path) -> None:
    """Asks this process to stop as soon as there is that file, which only a run in progress writes."""
    while not file.exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.end_to_end
@pytest.mark.long
def test_a_study_is_interrupted_goes_on_and_is_then_finished(arguments, tmp_path, capsys, monkeypatch) -> None:
    words, workdir = arguments("finetune,joint(train.log_every=1)"), tmp_path / "study"
    monkeypatch.setattr(campaign, "MOST_GRADIENTS", 16)
    threading.Thread(target=stop_at, args=(workdir / "runs" / "finetune-0" / "config.json",), daemon=True).start()
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 130
    said = capsys.readouterr().err
    assert "[0/2] started   finetune seed 0" in said
    assert "stopped; the same command goes on where it was: python -m jdcl_jax.study" in said
    assert not (workdir / "study.html").exists()

    main(words)  # goes on
    printed = capsys.readouterr()
    assert "\n[2/2] finished  joint(train.log_every=1)" in printed.err
    assert "\n[1/1] finished  structure of the gradients" in printed.err
    assert re.search(r"^joint\(train\.log_every=1\) +[0-9.]+ ", printed.out, re.MULTILINE)
    assert f"study: {workdir}/study.html" in printed.out
    page = (workdir / "study.html").read_text(encoding="utf-8")
    assert "Study: 2 methods on digits" in page
    assert "finetune, seed 0, after task 1" in page
    assert "Without curves after every task" in page
    table = (workdir / "study.csv").read_text().splitlines()
    assert sum(line.startswith("joint(train.log_every=1),fd_classifier,last_union,") for line in table) == 1

    logs = {path: path.stat().st_mtime_ns for path in (workdir / "logs").iterdir()}
    assert len(logs) == 3
    assert "Per-sample gradients of the run" in page
    (workdir / "study.html").unlink()
    main(words)  # runs nothing
    assert capsys.readouterr().err == "all 2 runs are finished\n"
    assert {path: path.stat().st_mtime_ns for path in (workdir / "logs").iterdir()} == logs
    assert (workdir / "study.html").read_text(encoding="utf-8") == page

    (workdir / "study.html").unlink()
    main(["--report-only", f"--workdir={workdir}"])
    assert (workdir / "study.html").read_text(encoding="utf-8") == page
    main([*arguments("joint(train.log_every=1),finetune"), "--report-only"])
    table = capsys.readouterr().out
    assert table.rindex("\njoint(") < table.rindex("\nfinetune ")


def test_a_run_that_fails_is_listed_and_the_page_is_made(arguments, tmp_path, capsys) -> None:
    """A weights file is read by the run itself, so what is wrong with it is found there."""
    words = ("evaluation.scores=('fid',)", f"evaluation.inception_weights={tmp_path / 'absent.npz'}")
    with pytest.raises(SystemExit) as end:
        main(arguments("finetune", words=words))
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert "failed runs: 1;" in said
    assert said.count("absent.npz") >= 2  # when it failed, and at the end
    assert f"{tmp_path}/study/logs/finetune-0.log" in said
    assert "finetune, seed 0: no results yet" in (tmp_path / "study" / "study.html").read_text(encoding="utf-8")


def test_what_cannot_be_is_one_line_and_leaves_nothing(arguments, tmp_path, capsys) -> None:
    assert "no workdir" in refusal(capsys, f"--config={DIGITS}", "--methods=gd")
    assert "no config" in refusal(capsys, "--methods=gd", f"--workdir={tmp_path / 'study'}")
    assert "no methods" in refusal(capsys, *arguments(""))
    assert "did you mean 'gd'" in refusal(capsys, *arguments("finetune,gdd"))
    assert "--jobs=-1" in refusal(capsys, *arguments("gd", "--jobs=-1"))
    assert "holds no study" in refusal(capsys, "--report-only", f"--workdir={tmp_path / 'study'}")
    assert list(tmp_path.iterdir()) == []


def test_the_default_seeds_are_three(tmp_path, capsys) -> None:
    assert "seed=0" in refusal(capsys, f"--config={DIGITS}:seed=0", "--methods=gd", f"--workdir={tmp_path / 'study'}")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "0,1,2" in capsys.readouterr().out
