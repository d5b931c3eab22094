"""The folder of a run: whose it is, and whether it is finished."""

import contextlib
import fcntl
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from jdcl_jax.config import differing_keys
from jdcl_jax.errors import UserError
from jdcl_jax.paths import named_path
from jdcl_jax.reporting.files import write_bytes
from jdcl_jax.reporting.page import write_report
from jdcl_jax.reporting.runs import MACHINE_KEYS, load_run
from jdcl_jax.reporting.writer import write_json
from jdcl_jax.training import hosts


def default_workdir(config: ml_collections.ConfigDict) -> Path:
    """runs/<dataset>-<method>-<seed>; of a path only its last part."""
    name = config.data.name.split(":", 1)
    dataset = (
        Path(name[1]).stem
        if name[0] in ("npz", "folder") and len(name) > 1
        else config.data.name.replace(":", "-").replace("/", "-")
    )
    return Path("runs") / f"{dataset}-{config.method.name}-{config.seed}"


class Workdir:
    """The folder of a run with this config.

    Raises:
      UserError: the folder holds a run with another config; the message names the keys.
    """

    def __init__(self, path: Path, config: ml_collections.ConfigDict):
        self.path = named_path(path, "--workdir", home=False)
        try:
            self._config = json.loads(config.to_json_best_effort())
        except ValueError as error:  # Python writes no whole number of more than 4300 digits
            raise UserError("the config has a number of thousands of digits; write a smaller one") from error
        hosts.told_by_writer(self._check_config)

    def _check_config(self) -> None:
        file = self.path / "config.json"
        if not file.exists():
            return
        different = [
            line for line in differing_keys(read_json(file), self._config) if line.split(":")[0] not in MACHINE_KEYS
        ]
        if different:
            raise UserError(
                f"{self.path} holds a run with another config ({'; '.join(different)}); "
                "write another --workdir, or the same values"
            )

    def finished_results(self) -> dict[str, Any] | None:
        """The results of a finished run, else None. A report that is missing is made."""
        return hosts.told_by_writer(self._finished_results)

    def _finished_results(self) -> dict[str, Any] | None:
        file = self.path / "results.json"
        if not file.exists():
            return None
        results = read_json(file)
        if results.get("status") != "finished":
            return None
        load_run(self.path)  # whoever reads on may rely on its form
        if not (self.path / "report.html").exists():
            write_report(self.path)
        return results

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder and keeps other processes out while the run lasts.

        A run that was refused before `write_config` leaves nothing behind, so that it can be started again with
        another config.

        Raises:
          UserError: it can't be written, or another process is running in it.
        """
        with contextlib.ExitStack() as held:
            hosts.told_by_writer(lambda: self._claim(held))
            yield

    def _claim(self, held: contextlib.ExitStack) -> None:
        """Locks the folder until `held` is closed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((self.path / ".lock").open("w"))
        except OSError as error:
            raise UserError(
                f"the workdir {self.path} can't be written ({error.strerror}); write another --workdir"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process is running in {self.path}; wait for it or write another --workdir"
            ) from error
        self._check_config()
        held.callback(self._leave_nothing_if_refused)

    def write_config(self) -> None:
        """Writes config.json; from here on the folder belongs to this config."""
        write_json(self.path / "config.json", self._config)

    def _leave_nothing_if_refused(self) -> None:
        if (self.path / "config.json").exists():
            return
        (self.path / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it was there before and holds something
            self.path.rmdir()

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes results.json as a whole."""
        write_json(self.path / "results.json", results)

    def write_curves(self, task: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes curves/task_NN.npz (task from 1) as a whole."""
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
        write_bytes(self.path / "curves" / f"task_{task:02d}.npz", data.getvalue())

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Writes results.json and report.html; returns the results as they read from the file."""
        self.write_results(results)
        return hosts.told_by_writer(self._report)

    def _report(self) -> dict[str, Any]:
        write_report(self.path)
        return read_json(self.path / "results.json")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises:
      UserError: it is broken.
    """
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} can't be read ({error}); remove it or write another --workdir") from error
