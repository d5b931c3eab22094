"""Several hosts that train one network together: the one file that knows jax.distributed.

Every process runs the same program on devices of its own. The first one alone reads and writes the workdir, and tells
the others what it read; so they need no file system in common. Importing this file imports nothing heavy: whatever
writes a file asks it who may.
"""

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from jdcl_jax.errors import UserError, first_line

if TYPE_CHECKING:
    import jax

P = ParamSpec("P")
T = TypeVar("T")
PyTree = Any

CHUNK = 2**24  # bytes sent at a time
WRITER = 0


@dataclass(frozen=True)
class _Place:
    process: int = 0
    count: int = 1


_place = _Place()


def join(coordinator: str, processes: int, process: int, timeout: int) -> None:
    """Joins the other processes of this run; call it before anything asks JAX for a device.

    Args:
      coordinator: HOST:PORT of the first process; empty where JAX finds the others itself (TPU, Slurm, Open MPI).
      processes: how many there are; below 0 likewise.
      process: the number of this one, from 0; below 0 likewise.
      timeout: seconds of silence after which a process counts as dead, and for which the others are waited for.

    Raises:
      UserError: the others can't be found or reached.
    """
    global _place
    import jax

    try:
        jax.distributed.initialize(
            coordinator or None,
            processes if processes >= 0 else None,
            process if process >= 0 else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--multihost can't find the other processes ({first_line(error)}); write --coordinator=HOST:PORT, "
            "--processes=N and --process=I, each process with its own I"
        ) from error
    _place = _Place(jax.process_index(), jax.process_count())


def several() -> bool:
    """Whether more than one process trains this network."""
    return _place.count > 1


def count() -> int:
    """How many processes there are."""
    return _place.count


def is_writer() -> bool:
    """Whether this process writes to the workdir."""
    return _place.process == WRITER


def by_writer(function: Callable[P, None]) -> Callable[P, None]:
    """The function does nothing in any but the writing process."""

    @functools.wraps(function)
    def only_there(*args: P.args, **kwargs: P.kwargs) -> None:
        if is_writer():
            function(*args, **kwargs)

    return only_there


def told_by_writer(make: Callable[[], T]) -> T:
    """What `make` returns in the writing process, in all of them; JSON.

    Raises:
      UserError: what `make` raised there, in all of them.
    """
    if not several():
        return make()
    said: dict[str, Any] = {}
    if is_writer():
        try:
            said = {"value": make()}
        except UserError as error:
            said = {"error": str(error)}
    said = json.loads(_bytes_from_writer(json.dumps(said).encode()))
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def arrays_from_writer(tree: PyTree, like: PyTree) -> PyTree:
    """The writing process's arrays, bit for bit, in all of them.

    Args:
      tree: arrays in host memory; what the others pass does not matter.
      like: arrays or `jax.ShapeDtypeStruct` of the same structure, shapes and types, the same in all.
    """
    if not several():
        return tree
    import jax

    own = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)) if is_writer() else b""
    data, at, leaves = _bytes_from_writer(own), 0, []
    for leaf in jax.tree.leaves(like):
        dtype = np.dtype(leaf.dtype)
        size = int(np.prod(leaf.shape, dtype=np.int64)) * dtype.itemsize
        leaves.append(np.frombuffer(data[at : at + size], dtype).reshape(leaf.shape).copy())
        at += size
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _bytes_from_writer(data: bytes) -> bytes:
    from jax.experimental import multihost_utils

    # As bytes: the broadcast is a sum, in which -0.0 would become 0.0.
    size = multihost_utils.broadcast_one_to_all(np.array([len(data) // CHUNK, len(data) % CHUNK], np.int32))
    total = int(size[0]) * CHUNK + int(size[1])
    parts = []
    for first in range(0, total, CHUNK):
        length = min(CHUNK, total - first)
        part = np.zeros(1 << (length - 1).bit_length(), np.uint8)  # few sizes: each is a program of its own
        if is_writer():
            part[:length] = np.frombuffer(data[first : first + length], np.uint8)
        parts.append(np.asarray(multihost_utils.broadcast_one_to_all(part))[:length].tobytes())
    return b"".join(parts)


def whole(array: "jax.Array") -> np.ndarray:
    """An array [B, ...] that is spread over the processes, in the memory of each."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_same(number: int, otherwise: str) -> None:
    """Raises `UserError`, which says `otherwise`, if a number of 32 bits is not the same in all processes."""
    if not several():
        return
    from jax.experimental import multihost_utils

    found = np.asarray(multihost_utils.process_allgather(np.array([number], np.uint32), tiled=True))
    if (found != found[0]).any():
        raise UserError(otherwise)


_turns = itertools.count()


def asked_to_stop() -> bool:
    """Whether all processes are to stop now because one of them got SIGTERM; all must ask equally often.

    JAX agrees on a turn to come, the same in all, at which the answer is yes; so turns must not be left out.
    """
    if not several():
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_turns))
