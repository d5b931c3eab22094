"""Devices: the one file that knows how a step or a sampler is spread over them.

A step is written for one device's share of the batch. Under `pmap` each device gets its share of the examples'
numbers and averages the gradients; under `jit` the numbers are one array sharded over the devices and the compiler
does the same. State and context are plain replicated trees in both.
With several processes the arrays are global ones: each process holds the parts of its own devices.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdcl_jax.errors import UserError
from jdcl_jax.training import hosts
from jdcl_jax.training.backend import compiler_options

MODES = ("pmap", "jit")
AXIS = "data"


class Parallel:
    """Maps pure functions over the devices of all processes.

    Args:
      mode: "pmap" or "jit"; the numbers are the same.
      devices: which devices; all by default.

    Raises:
      UserError: an unknown mode; processes with different numbers of devices.
    """

    def __init__(self, mode: str = "pmap", devices: Sequence[jax.Device] | None = None):
        if mode not in MODES:
            raise UserError(f"parallel.mode is '{mode}'; write one of: {', '.join(MODES)}")
        self.mode = mode
        self.devices = list(devices or sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
        own = [place for place, device in enumerate(self.devices) if device.process_index == jax.process_index()]
        self._first, self._local, self._several = own[0], len(own), len(own) < len(self.devices)
        if self._several and len(own) * hosts.count() != len(self.devices):
            raise UserError("the processes of a run must have equally many devices; start it on hosts of one kind")
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def count(self) -> int:
        """How many devices share the work."""
        return len(self.devices)

    def replicate(self, tree: Any) -> Any:
        """Puts a tree of arrays on every device; several processes must have the same."""
        return jax.tree.map(self._everywhere, tree) if self._several else jax.device_put(tree, self._replicated)

    def _everywhere(self, x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(self._replicated, x.ndim):
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._everywhere(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, self._replicated, lambda index: host[index])

    def own(self, size: int) -> slice:
        """The rows of a batch of `size` that are this process's.

        Raises:
          UserError: the devices can't share it.
        """
        if size % self.count:
            raise UserError(f"a batch of {size} can't be shared by {self.count} devices; write a multiple of it")
        share = size // self.count
        return slice(self._first * share, (self._first + self._local) * share)

    def split(self, tree: Any) -> Any:
        """Shares arrays [B, ...] out over the devices along their first axis."""
        return self.split_own(jax.tree.map(lambda x: x[self.own(x.shape[0])], tree))

    def split_own(self, tree: Any) -> Any:
        """The same, of arrays that hold only this process's rows, see `own`."""

        def share(x: Any) -> jax.Array:
            if self.mode == "pmap":
                x = x.reshape((self._local, x.shape[0] // self._local, *x.shape[1:]))
            if self._several:
                return jax.make_array_from_process_local_data(self._split, np.asarray(x))
            return jax.device_put(x, self._split)

        return jax.tree.map(share, tree)

    def local(self, tree: Any) -> Any:
        """A replicated tree for a program of this process alone."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree) if self._several else tree

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
            mapped = jax.jit(function, out_shardings=self._replicated if self._several else self._split)
        compiled, seconds = _compile(mapped, *args)
        if self.mode == "jit":
            return compiled, seconds

        def join(x: jax.Array) -> jax.Array | np.ndarray:
            found = hosts.whole(x) if self._several else x
            return found.reshape((-1, *x.shape[2:]))

        return lambda shared, split: jax.tree.map(join, compiled(shared, split)), seconds


def _compile(mapped: Any, *args: Any) -> tuple[Callable[..., Any], float]:
    start = time.perf_counter()
    compiled = mapped.lower(*args).compile(compiler_options=compiler_options() or None)
    return compiled, time.perf_counter() - start
