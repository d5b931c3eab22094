"""Times the forms of self-attention against each other, result and gradients: which one a device should take.

    python benchmarks/attention.py --out=results/attention.json

The shapes are those of the networks that are timed elsewhere, one layer of each. The first side is the form that the
package takes on this device.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
from collections.abc import Callable

import _compare
import _ours
import _part
import _rows
import jax
import jax.numpy as jnp
from _sizes import SIZES, Size

from jdcl_jax.models.attention import attention
from jdcl_jax.training.backend import compiler_options

FORMS = {"cpu": ("chunked", "plain"), "gpu": ("plain", "fused"), "tpu": ("plain",)}
"""Of each backend; the one that it takes by default first."""
HEAD = 8  # channels


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    return [_row(options, name) for name in (["small"] if options.tiny else ["small", "large"])]


def _row(options: argparse.Namespace, name: str) -> _rows.Row:
    shape, backend = shape_of(SIZES[name], options.tiny), jax.default_backend()
    count = 1 if backend == "cpu" else 20
    sides = {form: _compare.timed(_job(form, shape, count), count) for form in FORMS[backend]}
    what = f"attention and its gradients, {' x '.join(map(str, shape))}, {_ours.compute_dtype()}"
    return _rows.timed_row(what, "layer", _compare.alternate(sides, options.repeats))


def shape_of(size: Size, tiny: bool = False) -> tuple[int, int, int, int]:
    """[B, pixels, heads, channels] of the layer with the largest feature map."""
    height = max(size.attention)
    level = next(i for i in range(len(size.channels)) if size.image[0] // 2**i == height)
    batch = 2 if tiny else size.batch_on(jax.default_backend(), "train")
    return batch, height**2, size.channels[level] // HEAD, HEAD


def _job(form: str, shape: tuple[int, ...], count: int) -> Callable[[], object]:
    """A layer whose results go into the next one, so that `count` of them run one after another."""
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = tuple(jax.random.normal(key, shape, _ours.compute_dtype()) for key in keys[:3])
    weights = jax.random.normal(keys[3], shape)

    def loss(arrays: tuple[jax.Array, ...]) -> jax.Array:
        return jnp.sum(weights * attention(*arrays, form=form))

    def layers(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return jax.lax.fori_loop(0, count, lambda _, x: jax.grad(loss)(x), arrays)

    compiled = jax.jit(layers).lower(arrays).compile(compiler_options=compiler_options() or None)
    return lambda: jax.block_until_ready(compiled(arrays))


if __name__ == "__main__":
    _part.run_part(_part.parser(__doc__).parse_args(), measure)
