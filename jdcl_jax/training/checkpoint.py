"""Checkpoints: the one file that knows orbax.

A checkpoint holds a tree of arrays and a JSON record. `latest/` keeps the last two of them, named by the run's step;
`tasks/` keeps one for the end of every task, named by the task (from 1). A checksum over all arrays is saved beside
them, so that one cut short or altered is found when it is read and the one before is used instead.
"""

import contextlib
import copy
import errno
import functools
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jdcl_jax.errors import UserError, first_line
from jdcl_jax.training import hosts

PyTree = Any
SPARE = 2**20  # bytes that must be free beside the arrays: orbax's own files, the record, metrics and pictures
FOR_NOW = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.ESTALE)
FOR_NOW_SAID = ("Permission denied", "PERMISSION_DENIED", "Too many open files", "Input/output error",
                "RESOURCE_EXHAUSTED", "Cannot allocate memory")  # fmt: skip
"""What says that a file can't be read now, not that it is damaged; tensorstore has no errno."""
Record = dict[str, Any]

logger = logging.getLogger(__name__)


def checksum(tree: PyTree) -> int:
    """CRC-32 over the paths, types, shapes and bytes of all arrays in a tree."""
    value = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        value = zlib.crc32(array.view(np.uint8).data if array.size else b"", zlib.crc32(head.encode(), value))
    return value


def _record_checksum(record: Record) -> int:
    """CRC-32 over a record as JSON gives it back, without this number; records of before have none."""
    plain = json.loads(json.dumps({key: value for key, value in record.items() if key != "record_checksum"}))
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


@functools.cache
def _quieten_late_reads() -> None:
    """Where one read fails, those under way end in a loop that is closed, each with a traceback for nobody."""
    before = sys.unraisablehook

    def hook(found: "sys.UnraisableHookArgs") -> None:
        if "Event loop is closed" not in str(found.exc_value):
            before(found)

    sys.unraisablehook = hook


def to_host(tree: PyTree) -> PyTree:
    """A copy in host memory that later donated steps cannot touch."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))


class Checkpoints:
    """The checkpoints of one run, written in the background.

    Args:
      directory: the folder for `latest/` and `tasks/`; made if absent.
      read_only: never write, move or delete anything.
      check: is given every state before it is saved, as arrays in host memory, and may raise.
    """

    def __init__(
        self, directory: Path, *, read_only: bool = False, check: Callable[[PyTree], None] = lambda state: None
    ):
        _quieten_late_reads()
        self.directory = directory.absolute()
        self._read_only, self._check = read_only, check
        if hosts.is_writer():
            with self._disk():
                self._latest = self._manager("latest", keep=2)
                self._tasks = self._manager("tasks", keep=None)

    def _manager(self, name: str, keep: int | None) -> ocp.CheckpointManager:
        folder = self.directory / name
        if not self._read_only:
            folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=hosts.WRITER, active_processes={hosts.WRITER} if hosts.several() else None
            ),
        )
        return ocp.CheckpointManager(folder, options=options)

    def save(self, step: int, state: PyTree, record: Record) -> None:
        """Saves the middle of a task under the run's step; where that step is saved already, nothing changes.

        Raises:
          UserError: this one or the one before can't be written; several hosts no longer have the same state.
        """
        self._save("latest", step, state, record)

    def save_task(self, task: int, state: PyTree, record: Record) -> None:
        """Saves the end of a task (from 1); never deleted. Otherwise as `save`."""
        self._save("tasks", task, state, record)

    def _save(self, name: str, step: int, state: PyTree, record: Record) -> None:
        arrays = to_host(state)
        self._check(arrays)
        value = checksum(arrays)
        hosts.check_same(
            value,
            "the processes no longer have the same state, so that the run can't go on; start it again from its last "
            "checkpoint on hosts of one kind, with the same versions",
        )
        if not hosts.is_writer():
            return
        manager = self._latest if name == "latest" else self._tasks
        # A copy of the record: orbax writes it later, in a thread of its own.
        record = copy.deepcopy({**record, "checksum": value})
        record["record_checksum"] = _record_checksum(record)
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        with self._disk():
            if step in manager.all_steps():
                return
            self.wait()  # for what is being written already
            self._check_room(sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
            manager.save(step, args=items, force=True)

    def _check_room(self, size: int) -> None:
        """Half a checkpoint is of no use, and where it fails in the background nobody knows how far it came."""
        free = shutil.disk_usage(self.directory).free
        if free < size + SPARE:
            raise OSError(
                errno.ENOSPC,
                f"no room: {size / 2**20:.1f} MiB and {SPARE / 2**20:.0f} to spare are needed, {free / 2**20:.1f} free",
            )

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Makes one line of whatever orbax and tensorstore raise where they can't write."""
        try:
            yield
        except (MemoryError, UserError):
            raise
        except Exception as error:
            raise UserError(
                f"the checkpoints in {self.directory} can't be written ({first_line(error)}); free space or mend the "
                "disk, and start the same command again: it goes on from the last one that was saved"
            ) from error

    def restore_newest(self, target: PyTree, order: Callable[[Record], Any]) -> tuple[PyTree, Record] | None:
        """The newest sound checkpoint (numpy arrays, record), or None if there is none.

        Damaged ones are moved to `damaged/` and named in a warning; the next older one is tried.

        Args:
          target: a tree of arrays or `jax.ShapeDtypeStruct` of the expected structure.
          order: sorts records by age, newest last.
        """
        found, damaged = [], 0
        for manager, name in ((self._latest, "latest"), (self._tasks, "tasks")):
            for step in manager.all_steps():
                try:
                    found.append((order(self._record(manager, step)), name, step))
                except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                    damaged += 1
                    self._set_aside(name, step, error)
        for _, name, step in sorted(found, reverse=True):
            try:
                return self._restore(self._latest if name == "latest" else self._tasks, step, target)
            except Exception as error:
                self._set_aside(name, step, error)
        if found or damaged:
            logger.warning("no checkpoint in %s is sound; starting from the beginning", self.directory)
        return None

    def restore_task(self, task: int, target: PyTree) -> tuple[PyTree, Record]:
        """The checkpoint at the end of a task (from 1).

        Raises:
          UserError: there is none, or it is damaged.
        """
        tasks = self.tasks()
        if task not in tasks:
            have = ", ".join(map(str, tasks)) or "none"
            raise UserError(f"{self.directory} has no checkpoint of task {task}; finished tasks: {have}")
        try:
            return self._restore(self._tasks, task, target)
        except Exception as error:
            raise UserError(
                f"the checkpoint of task {task} in {self.directory} is damaged: {first_line(error)}"
            ) from error

    def tasks(self) -> list[int]:
        """The tasks whose end is saved, from 1."""
        return sorted(self._tasks.all_steps())

    def _record(self, manager: ocp.CheckpointManager, step: int) -> Record:
        restored = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
        record = dict(restored["record"])
        if record.get("record_checksum", of_record := _record_checksum(record)) != of_record:
            raise ValueError("its record does not have the checksum that was saved with it")
        return record

    def _restore(self, manager: ocp.CheckpointManager, step: int, target: PyTree) -> tuple[PyTree, Record]:
        record = self._record(manager, step)
        shapes = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), target)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        state = manager.restore(step, args=items)["state"]
        if checksum(state) != record["checksum"]:
            raise ValueError("its arrays do not have the checksum that was saved with them")
        for wanted, found in zip(jax.tree.leaves(target), jax.tree.leaves(state), strict=True):
            if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):  # orbax gives back what it has
                raise ValueError(f"it holds {found.dtype} {found.shape} where {wanted.dtype} {wanted.shape} belongs")
        return state, record

    def _set_aside(self, name: str, step: int, error: Exception) -> None:
        """Puts a damaged checkpoint away; raises where it may be sound and only could not be read now."""
        source = self.directory / name / str(step)
        if isinstance(error, MemoryError):
            raise error
        if getattr(error, "errno", None) in FOR_NOW or any(words in str(error) for words in FOR_NOW_SAID):
            raise UserError(
                f"checkpoint {source} can't be read ({first_line(error)}); mend that and start the same command again, "
                f"or move {source} away to go on from the one before"
            ) from error
        logger.warning("checkpoint %s is damaged (%s); using the one before", source, first_line(error))
        if self._read_only:
            return
        target = self.directory / "damaged" / f"{name}-{step}"
        with self._disk():
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            source.rename(target)
        (self._latest if name == "latest" else self._tasks).reload()

    @hosts.by_writer
    def wait(self) -> None:
        """Returns when everything saved so far is on disk.

        Raises:
          UserError: it can't be written.
        """
        with self._disk():
            self._latest.wait_until_finished()
            self._tasks.wait_until_finished()

    @hosts.by_writer
    def close(self) -> None:
        """Waits and lets go of the folder."""
        with self._disk():
            self._latest.close()
            self._tasks.close()
