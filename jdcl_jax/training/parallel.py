"""Devices: the one file that knows how a step or a sampler is spread over them.

A step is written for one device's share of the batch. Under `pmap` each device gets its share of the examples'
numbers and averages the gradients; under `jit` the numbers are one array sharded over the devices and the compiler
does the same. State and context are plain replicated trees in both.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdcl_jax.errors import UserError
from jdcl_jax.training.backend import compiler_options

MODES = ("pmap", "jit")
AXIS = "data"


class Parallel:
    """Maps pure functions over the local devices.

    Args:
      mode: "pmap" or "jit"; the numbers are the same.
      devices: which devices; all local ones by default.

    Raises:
      UserError: an unknown mode.
    """

    def __init__(self, mode: str = "pmap", devices: Sequence[jax.Device] | None = None):
        if mode not in MODES:
            raise UserError(f"parallel.mode is '{mode}'; write one of: {', '.join(MODES)}")
        if jax.process_count() > 1:
            raise UserError("training over several hosts is not there yet; run on one host")
        self.mode = mode
        self.devices = list(devices or jax.local_devices())
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def count(self) -> int:
        """How many devices share the work."""
        return len(self.devices)

    def replicate(self, tree: Any) -> Any:
        """Puts a tree of arrays on every device."""
        return jax.device_put(tree, self._replicated)

    def split(self, tree: Any) -> Any:
        """Shares arrays [B, ...] out over the devices along their first axis."""

        def share(x: Any) -> jax.Array:
            if x.shape[0] % self.count:
                raise UserError(
                    f"a batch of {x.shape[0]} can't be shared by {self.count} devices; write a multiple of it"
                )
            if self.mode == "pmap":
                x = x.reshape((self.count, x.shape[0] // self.count, *x.shape[1:]))
            return jax.device_put(x, self._split)

        return jax.tree.map(share, tree)

    def compile_step(self, step: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
        """Compiles `step(state, context, ids, fed, axis_name)` for arguments like `args`; the state is donated.

        Returns: the compiled function of (state, context, ids, fed), which refuses arguments of other shapes, and the
        seconds that compiling took.
        """
        if self.mode == "pmap":
            mapped = jax.pmap(
                functools.partial(step, axis_name=AXIS),
                axis_name=AXIS,
                in_axes=(None, None, 0, 0),
                out_axes=None,
                devices=self.devices,
                donate_argnums=(0,),
            )
        else:
            mapped = jax.jit(step, out_shardings=self._replicated, donate_argnums=(0,))
        return _compile(mapped, *args)

    def compile_map(self, function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], float]:
        """Compiles `function(shared, split)` -> arrays [b, ...]; the result comes back whole, [B, ...]."""
        if self.mode == "pmap":
            mapped = jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), devices=self.devices)
        else:
            mapped = jax.jit(function, out_shardings=self._split)
        compiled, seconds = _compile(mapped, *args)
        if self.mode == "jit":
            return compiled, seconds

        def join(x: jax.Array) -> jax.Array:
            return x.reshape((-1, *x.shape[2:]))

        return lambda shared, split: jax.tree.map(join, compiled(shared, split)), seconds


def _compile(mapped: Any, *args: Any) -> tuple[Callable[..., Any], float]:
    start = time.perf_counter()
    compiled = mapped.lower(*args).compile(compiler_options=compiler_options() or None)
    return compiled, time.perf_counter() - start
