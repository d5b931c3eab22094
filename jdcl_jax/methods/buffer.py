"""Replay buffers: which training examples are kept, as their row numbers.

A buffer is {"rows": int32 [capacity], "count": int32 [], "offered": int32 []}; rows past `count` are 0 and never
read. It is filled on the host once per task, from keys that name the run and the task.
"""

import jax
import numpy as np

from jdcl_jax.errors import UserError
from jdcl_jax.keys import fold_name
from jdcl_jax.methods.method import Memory
from jdcl_jax.training.state import Context
from jdcl_jax.training.streams import Rows

POLICIES = ("reservoir", "class_balanced")


def empty_buffer(capacity: int) -> Memory:
    """A buffer without examples."""
    return {"rows": np.zeros(capacity, np.int32), "count": np.int32(0), "offered": np.int32(0)}


def fill(
    buffer: Memory,
    rows: np.ndarray,
    labels: np.ndarray,
    tasks: np.ndarray | None = None,
    *,
    policy: str,
    generator: np.random.Generator,
) -> Memory:
    """Offers a task's rows to the buffer.

    Args:
      buffer: the buffer before.
      rows: int32 [n], training rows of the task.
      labels: int32 [N], labels of all training rows.
      tasks: int [N], their tasks; None: no class comes in several.
      policy: "reservoir": every row ever offered is kept with the same probability; "class_balanced": every class
        seen has the same share, up to one, and within a class every task that it came in [ours].
      generator: this task's own.

    Raises:
      UserError: an unknown policy.
    """
    kept = buffer["rows"][: int(buffer["count"])]
    capacity = len(buffer["rows"])
    order = generator.permutation(rows)
    if policy == "reservoir":
        chosen = _reservoir(kept, order, int(buffer["offered"]), capacity, generator)
    elif policy == "class_balanced":
        chosen = _class_balanced(kept, order, labels, np.zeros_like(labels) if tasks is None else tasks, capacity)
    else:
        raise UserError(f"method.buffer_policy is '{policy}'; write one of: {', '.join(POLICIES)}")
    new = np.zeros(capacity, np.int32)
    new[: len(chosen)] = chosen
    return {"rows": new, "count": np.int32(len(chosen)), "offered": np.int32(buffer["offered"] + len(rows))}


def _reservoir(
    kept: np.ndarray, rows: np.ndarray, offered: int, capacity: int, generator: np.random.Generator
) -> list[int]:
    """Vitter's algorithm R, continued after `offered` rows."""
    chosen = list(kept)
    for number, row in enumerate(rows, start=offered + 1):
        if len(chosen) < capacity:
            chosen.append(row)
        elif (place := generator.integers(number)) < capacity:
            chosen[place] = row
    return chosen


def _class_balanced(
    kept: np.ndarray, rows: np.ndarray, labels: np.ndarray, tasks: np.ndarray, capacity: int
) -> list[int]:
    """An equal share per class, of it one per task; the first get one more where the shares do not come out even."""
    chosen: list[int] = []
    for of_class, share in _shares(np.concatenate([kept, rows]), labels, capacity):
        for of_task, own_share in _shares(of_class, tasks, share):
            chosen.extend(of_task[:own_share])
    return chosen


def _shares(rows: np.ndarray, names: np.ndarray, capacity: int) -> list[tuple[np.ndarray, int]]:
    """Rows by their names (int [N], of all rows), in the order in which those first come, each with its share."""
    known = list(dict.fromkeys(names[rows].tolist()))
    share, extra = divmod(capacity, len(known))
    return [(rows[names[rows] == name], share + (number < extra)) for number, name in enumerate(known)]


def task_generator(key: jax.Array) -> np.random.Generator:
    """A NumPy generator from a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(fold_name(key, "buffer"))).tolist())


def buffer_rows(name: str) -> Rows:
    """A stream's rows: uniform draws with replacement from the buffer that `context.method[name]` holds."""

    def rows(context: Context, key: jax.Array, positions: jax.Array) -> jax.Array:
        buffer = context.method[name]
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        places = jax.vmap(lambda k: jax.random.randint(k, (), 0, buffer["count"]))(keys)
        return buffer["rows"][places]

    return rows
