"""What training changes: arrays only, so that it checkpoints and maps over devices as it is."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any
Array = jax.Array | np.ndarray | np.generic


@flax.struct.dataclass
class Pool:
    """Training data in device memory: images uint8 [N, H, W, C], labels int32 [N], rows sorted by task."""

    images: Array
    labels: Array


@flax.struct.dataclass
class Range:
    """A contiguous part of a pool's rows: [start, start + count), both int32 []."""

    start: Array
    count: Array


@flax.struct.dataclass
class Context:
    """What a step reads and does not change.

    Attributes:
      key: the key of this task and phase; the step folds its own number in.
      pool: the training data, or None where it is too large for the device and every call is fed its rows.
      method: the method's own arrays (teacher, buffer rows, weights, ...), same shapes for every task.
      step: int32 [], the number of the step in its phase; every step fills it in.
    """

    key: jax.Array
    pool: Pool | None
    method: dict[str, PyTree]
    step: jax.Array = np.int32(0)  # type: ignore[assignment]


@flax.struct.dataclass
class TrainState:
    """One network in training.

    Attributes:
      step: int32 [], steps made in the current phase.
      updates: int32 [], updates made since the run began.
      params: the network's parameters.
      ema: their exponential moving average, or None where it is off.
      opt_state: the optimiser's state.
      tracked: what a method adds up while it trains or observes, by name; zero when a task begins.
    """

    step: jax.Array
    updates: jax.Array
    params: PyTree
    ema: PyTree
    opt_state: optax.OptState
    tracked: dict[str, PyTree]

    @property
    def averaged(self) -> PyTree:
        """The EMA where there is one, else the raw parameters."""
        return self.params if self.ema is None else self.ema


def create_state(
    params: PyTree, optimizer: optax.GradientTransformation, *, ema: bool, tracked: dict[str, PyTree] | None = None
) -> TrainState:
    """A state at step 0; the average starts as a copy of the parameters."""
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),  # two arrays: a donated buffer must not be given twice
        updates=jnp.zeros((), jnp.int32),
        params=params,
        ema=average,
        opt_state=optimizer.init(params),
        tracked=tracked or {},
    )


def begin_phase(
    state: TrainState, optimizer: optax.GradientTransformation, *, reset_optimizer: bool, params: PyTree = None
) -> TrainState:
    """The state in which a phase starts: step 0 and, if asked, a fresh optimiser state.

    With `params` it starts from these: they are also the new average, whose warm-up begins again.
    """
    if params is not None:
        params = jax.tree.map(jnp.copy, params)  # the step gives its arrays away
        average = None if state.ema is None else jax.tree.map(jnp.copy, params)
        state = dataclasses.replace(state, params=params, ema=average, updates=jnp.zeros((), jnp.int32))
    opt_state = optimizer.init(state.params) if reset_optimizer else state.opt_state
    return dataclasses.replace(state, step=jnp.zeros((), jnp.int32), opt_state=opt_state)


def begin_task(state: TrainState) -> TrainState:
    """The state in which a task starts: nothing tracked yet."""
    return dataclasses.replace(state, tracked=jax.tree.map(jnp.zeros_like, state.tracked))
