"""Disks that are full, read-only, slow or have changed a bit: nothing is lost, and the reason is said once."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import runs
from faults.lives import Life, faults_of, live, newest_position, steps_of
from faults.states import differences
from faults.victim import Fault


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    return f"{runs.words('er', str(tmp_path_factory.mktemp('cache')))},tasks.first=2"


@pytest.fixture(scope="module")
def peace(words, tmp_path_factory) -> tuple[Path, Life]:
    """A run that nothing happens to."""
    workdir = tmp_path_factory.mktemp("peace") / "run"
    life = live(words, workdir)
    assert life.code == 0, life.log
    return workdir, life


@pytest.fixture(scope="module")
def stopped(words, tmp_path_factory) -> Path:
    """A run in the middle of its second task, with checkpoints of that task and of the end of the first."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    life = live(words, workdir, Fault("step", 10, 0.0, int(signal.SIGTERM), slow=0.2))
    assert life.code == 75, life.log
    return workdir


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
    """A copy of `stopped` that a test may harm."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 3 MiB; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def one_line(life: Life) -> str:
    """The last line that a refused run said; it has exit code 2 and no traceback."""
    assert life.code == 2, life.log
    assert "Traceback" not in life.log
    errors = [line for line in life.log.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert life.log.rstrip().endswith(errors[0])
    return errors[0]


def goes_on(words: str, workdir: Path, peace: tuple[Path, Life]) -> str:
    """The run ends as if nothing had happened; what it said."""
    life = live(words, workdir)
    assert life.code == 0, life.log
    assert faults_of(life, steps_of(peace[1])) == []
    assert differences(peace[0], workdir) == []
    return life.log


def latest(workdir: Path) -> list[Path]:
    return sorted((workdir / "checkpoints" / "latest").iterdir(), key=lambda folder: int(folder.name))


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_where_there_is_room(words, disk, tmp_path, peace) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(1700 * 1024))
    said = one_line(live(words, disk / "run", beside=tmp_path / "full"))
    assert "no room: " in said or "No space left" in said
    assert "start the same command again" in said
    assert newest_position(disk / "run")[2] > 0  # it had come as far as a checkpoint
    ballast.unlink()
    goes_on_elsewhere = shutil.copytree(disk / "run", tmp_path / "run")
    goes_on(words, Path(goes_on_elsewhere), peace)


def test_a_disk_that_can_only_be_read_is_refused_in_one_line_and_left_as_it_was(words, stopped, disk, tmp_path) -> None:
    shutil.copytree(stopped, disk / "run")
    before = sorted(path.relative_to(disk) for path in disk.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "can't be written (Read-only file system)" in one_line(live(words, disk / "run", beside=tmp_path / "ro"))
    assert sorted(path.relative_to(disk) for path in disk.rglob("*")) == before


@pytest.mark.parametrize("harm", ["bit", *(pytest.param(harm, marks=pytest.mark.long) for harm in ("cut", "gone"))])
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used_and_that_is_said_once(
    harm, words, copy, peace
) -> None:
    newest = latest(copy)[-1]
    data = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    if harm == "gone":
        data.unlink()
    else:
        whole = bytearray(data.read_bytes())
        whole[len(whole) // 2] ^= 1
        data.write_bytes(whole if harm == "bit" else whole[: len(whole) // 2])
    life = live(words, copy)
    assert life.code == 0, life.log
    warned = [line for line in life.log.splitlines() if "is damaged" in line]
    assert len(warned) == 1
    assert str(newest) in warned[0]
    assert "using the one before" in warned[0]
    begun = next(words for words in life.trace if words[0] == "begun")
    assert 0 < int(begun[3]) < int(newest.name)
    assert (copy / "checkpoints" / "damaged" / f"latest-{newest.name}").exists()
    assert differences(peace[0], copy) == []


def test_without_the_end_of_a_task_the_newest_other_checkpoint_is_used(words, copy, peace) -> None:
    """What a task left is then gone for good, but the run is not."""
    shutil.rmtree(copy / "checkpoints" / "tasks" / "1")
    life = live(words, copy)
    assert life.code == 0, life.log
    different = differences(peace[0], copy)
    assert different
    assert all(line.startswith("leaf task 1 ") for line in different)


@pytest.mark.long
def test_where_no_checkpoint_is_sound_the_run_begins_again_and_says_so(words, copy, peace) -> None:
    for data in copy.glob("checkpoints/*/*/state/**/d/*"):
        data.write_bytes(data.read_bytes()[:-7])
    life = live(words, copy)
    assert life.code == 0, life.log
    assert life.log.count("starting from the beginning") == 1
    assert differences(peace[0], copy) == []


@pytest.mark.end_to_end
@pytest.mark.long
def test_a_slow_disk_changes_nothing(words, tmp_path, peace) -> None:
    """Checkpoints that take a second each are waited for, and none is lost; one of them is cut off in the middle."""
    life = live(words, tmp_path / "run", Fault("save", 5, 0.5), SLOW_DISK="1.0")
    assert life.code == -9, life.log
    assert sum(words[0] == "slow" for words in life.trace) >= 4  # two checkpoints at least, each in parts
    goes_on(words, tmp_path / "run", peace)
