"""Checkpoints with bytes flipped or files missing, under every program that reads them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from faults.bad_input import nasty
from faults.bad_input.endings import cases, check_ending, fingerprint, folder

READERS = (
    ("sample", "--workdir=run", "--num=2"),
    ("sample", "--workdir=run", "--num=2", "--task=1"),
    ("fisher", "--workdir=run", "--images=3", "--timesteps=2"),
)


def spoil(draw: Callable[..., Any], path: Path) -> None:
    """Damages a file or a folder of a checkpoint."""
    how = draw(st.sampled_from(("missing", "bytes", "bytes", "bytes", "link", "other kind")))
    if path.is_dir() or how != "bytes":
        was_folder = path.is_dir()
        shutil.rmtree(path) if was_folder else path.unlink()
        if how == "link":
            path.symlink_to(path)
        elif how == "other kind":
            path.touch() if was_folder else path.mkdir()
        elif how == "bytes" and was_folder:
            path.mkdir()
    else:
        path.write_bytes(draw(nasty.damaged(path.read_bytes())))


@cases(4, 60)
@hypothesis.given(data=st.data())
def test_damaged_checkpoints_are_read_or_refused(data: st.DataObject, finished: Path, command_lines: Any) -> None:
    with folder() as place:
        run = place / "run"
        shutil.copytree(finished, run)
        inside = sorted((run / "checkpoints").rglob("*"))
        tasks = [path for path in inside if "tasks" in path.parts]
        choice = st.one_of(st.sampled_from(tasks), st.sampled_from([run / "checkpoints", *inside]))
        spoil(data.draw, data.draw(choice, label="path"))
        before = fingerprint(run)
        ending = command_lines(place, *data.draw(st.sampled_from(READERS), label="command"))
        check_ending("checkpoints", ending, "checkpoint", "task", "run")
        assert fingerprint(run) == before
