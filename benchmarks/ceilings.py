"""Measures what the device can do at all: a product of two large matrices, and a copy in its memory.

    python benchmarks/ceilings.py --out=results/ceilings.json

All devices work at once, as they do on a train step, and their rates are added up. Shares of the peak are of the
matrix product in the type of numbers that the network computes in.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
from collections.abc import Callable

import _compare
import _part
import _rows
import jax
import jax.numpy as jnp

from jdcl_jax.training.backend import compiler_options

MATMUL, COPY = "matrix product", "copy"  # names of rows
TIMES = 20  # links of a chain, so that what goes before and after it counts little


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    on_cpu = jax.default_backend() == "cpu"
    side, bytes_copied = (256, 2**22) if options.tiny else (2048, 2**28) if on_cpu else (8192, 2**32)
    types = ("float32",) if on_cpu else ("float32", "bfloat16")
    rows = [_product(dtype, side, options.repeats) for dtype in types]
    return [*rows, _copy(bytes_copied, options.repeats)]


def _product(dtype: str, side: int, repeats: int) -> _rows.Row:
    devices = jax.local_device_count()
    keys = jax.random.split(jax.random.key(0), devices)
    matrix = jax.pmap(lambda key: (jax.random.normal(key, (side, side)) / side**0.5).astype(dtype))(keys)

    def chain(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, TIMES, lambda _, z: (z @ y).astype(z.dtype), x)

    seconds = _rounds(chain, repeats, matrix, matrix)
    flops = 2 * side**3 * devices
    return _rows.timed_row(
        f"{MATMUL}, {dtype}, {side} x {side}",
        "product",
        seconds,
        flops=flops,
        flops_per_second=_rate(flops, seconds),
        devices=devices,
    )


def _copy(size: int, repeats: int) -> _rows.Row:
    devices = jax.local_device_count()
    x = jax.pmap(lambda first: first + jnp.arange(size // 4, dtype=jnp.float32))(jnp.arange(devices))

    def chain(x: jax.Array) -> jax.Array:  # negation: an exact copy would be left out
        return jax.lax.fori_loop(0, TIMES, lambda _, y: jax.lax.optimization_barrier(-y), x)

    seconds = _rounds(chain, repeats, x)
    moved = 2 * size * devices
    return _rows.timed_row(f"{COPY}, {size // 2**20} MiB", "copy", seconds, bytes_per_second=_rate(moved, seconds))


def _rounds(chain: Callable[..., jax.Array], repeats: int, *args: jax.Array) -> dict[str, list[float]]:
    """Seconds of one link; every device has its own arrays already."""
    compiled = jax.pmap(chain).lower(*args).compile(compiler_options=compiler_options() or None)
    side = _compare.timed(lambda: jax.block_until_ready(compiled(*args)), TIMES)
    return _compare.alternate({"jdcl_jax": side}, repeats)


def _rate(amount: float, seconds: dict[str, list[float]]) -> float:
    """Of the best round: a ceiling."""
    return amount / min(seconds["jdcl_jax"])


if __name__ == "__main__":
    _part.run_part(_part.parser(__doc__).parse_args(), measure)
