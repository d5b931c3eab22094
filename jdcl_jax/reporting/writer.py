"""metrics.jsonl and TensorBoard events of a run, and JSON that is valid whatever the numbers."""

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.files import write_bytes
from jdcl_jax.reporting.grids import grid


class Writer:
    """Writes what a run measures into its workdir: `metrics.jsonl`, and `tensorboard/` events.

    The methods carry the names of clu's `MetricWriter`, so that it can be put in this one's place;
    this one needs no TensorFlow. On a resumed run everything logged after the step of the
    checkpoint is dropped first, since it will be logged again.
    """

    def __init__(self, workdir: str | os.PathLike[str], resume_step: int = 0):
        """Opens the files of `workdir`, made if missing.

        Args:
          workdir: folder of the run.
          resume_step: global step of the checkpoint that the run goes on from; 0 for a new run.
            Lines of later steps and lines that are not whole are dropped from `metrics.jsonl`;
            TensorBoard hides later events.

        Raises:
          UserError: the folder cannot be written.
        """
        folder = Path(workdir)
        path = folder / "metrics.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            resumed = path.exists()
            if resumed:
                _keep_until(path, resume_step)
            self._lines: io.TextIOWrapper = path.open("a", encoding="utf-8")
            self._events = SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=resume_step + 1 if resumed else None,
                # The name holds only the second: two writers within one second must not share a
                # file.
                filename_suffix=f".{os.getpid()}.{resume_step}",
            )
        except OSError as error:
            raise UserError(
                f"cannot write the workdir {workdir}: {error.strerror}; give --workdir a folder that you may write"
            ) from error

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one line `{"step": step, **scalars}`, and its numbers as TensorBoard events.

        Args:
          step: global step over the whole run (optimiser updates done so far).
          scalars: numbers (Python, NumPy or 0-d JAX arrays) or short texts such as the phase. A NaN
            or infinite number becomes null in the line and is left out of TensorBoard.
        """
        values = {name: _plain(value) for name, value in scalars.items()}
        for name, value in values.items():
            if isinstance(value, list | dict):
                raise TypeError(f"write_scalars takes scalars; {name!r} is a {type(value).__name__}")
        self._lines.write(json.dumps({"step": int(step), **values}, allow_nan=False) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(name, value, int(step))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Shows a grid per name; `images[name]` is uint8 [N, H, W, C], C = 1 or 3."""
        for name, batch in images.items():
            self._events.add_image(name, grid(batch), int(step), dataformats="HWC")

    def flush(self) -> None:
        """Puts everything written so far on the disk."""
        self._lines.flush()
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self._lines.close()
        self._events.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
    """Writes `tree` as JSON, at once (a reader never sees half of it).

    Mappings, sequences, NumPy and JAX arrays and scalars of any depth; NaN and infinite numbers
    become null, paths become text.

    Raises:
      UserError: the place cannot be written.
      TypeError: something in `tree` has no JSON form.
    """
    text = json.dumps(_plain(tree), indent=2, allow_nan=False, ensure_ascii=False)
    # File names that are not UTF-8 hold lone surrogates, which UTF-8 refuses and an escape carries.
    write_bytes(path, (text + "\n").encode("utf-8", "backslashreplace"))


def _plain(value: Any) -> Any:
    """`value` with JSON's own types only; not-finite numbers become None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind == "V":  # bfloat16 and its like
            array = array.astype(np.float64)
        if array.dtype.kind in "biufU":
            return _plain(array.tolist())
    raise TypeError(f"no JSON form for a {type(value).__name__}: {value!r}")


def _keep_until(path: Path, last_step: int) -> None:
    """Drops the lines of `path` later than `last_step`, and those that are not whole."""
    old = path.read_bytes()
    # A line without its newline is half-written even where it happens to parse: `"step": 1` of
    # `"step": 12`.
    new = b"".join(line for line in old.splitlines(keepends=True) if _whole(line) and _step(line) <= last_step)
    if new != old:
        write_bytes(path, new)


def _whole(line: bytes) -> bool:
    return line.endswith(b"\n") and math.isfinite(_step(line))


def _step(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity where there is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
