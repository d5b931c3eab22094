"""What layers are shown: the inputs of chosen layers during a forward pass, and how layers are chosen by name.

A layer is named by the path of its parameters, as in "unet/mid_attention/key".
"""

import difflib
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from jdcl_jax.errors import UserError
from jdcl_jax.models.convolution import windows
from jdcl_jax.models.layers import Conv

Roots = Mapping[type[nn.Module], str]
"""Class of a network -> where its parameters begin: {UNet: "unet", ClassHead: "head"}, or {UNet: ""} for its own tree.
Networks of other classes are not looked at."""


def matching(params: Any, patterns: str) -> list[str]:
    """Paths of the layers with a "kernel" that match any of the patterns, in the order of the tree.

    Args:
      params: a tree of dicts.
      patterns: with commas between them, as of file names; "*" also stands for several steps of a path:
        "*/cross/key,*/cross/value".

    Raises:
      UserError: a pattern that matches no layer.
    """
    layers = ["/".join(path[:-1]) for path in flatten_dict(params) if path[-1] == "kernel"]
    chosen = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        matched = [layer for layer in layers if fnmatchcase(layer, pattern)]
        if not matched:
            close = ", ".join(difflib.get_close_matches(pattern, layers, n=3, cutoff=0.0))
            raise UserError(f"no layer matches '{pattern}'; write paths of layers or patterns of them, such as {close}")
        chosen.update(matched)
    return [layer for layer in layers if layer in chosen]


def captured(apply: Callable[[], Any], layers: Collection[str], roots: Roots) -> dict[str, jax.Array]:
    """The inputs of chosen `Dense` and `Conv` layers while `apply` runs, as the rows that their kernels multiply.

    It may be traced by `jax.jit` as a whole, but `apply` itself must run the layers without a jit, scan or vmap around
    them. What only its result needs is then not computed.

    Args:
      apply: runs one or several networks by Flax's `apply`; its result is ignored.
      layers: their paths.
      roots: the networks that are looked at.

    Returns:
      Layer -> float32 [B, n, in], n positions of each of B examples: `rows @ kernel.reshape(in, out)` and the bias are
      the layer's output. `Conv` has one row per output pixel, in = k k Ci. Rows of several calls stand one behind the
      other along n.

    Raises:
      UserError: a layer that was not run, or is of another kind.
      ValueError: one layer was run with two kernels, so that two networks must have had the same root.
    """
    rows: dict[str, list[jax.Array]] = {}
    kernels: dict[str, Any] = {}

    def watch(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = _path(context.module, roots) if context.method_name == "__call__" else None
        if layer in layers and isinstance(context.module, nn.Dense | Conv):
            kernel: Any = context.module.get_variable("params", "kernel")
            if kernels.setdefault(layer, kernel) is not kernel:
                raise ValueError(f"'{layer}' was run with two kernels; capture one network of a class at a time")
            rows.setdefault(layer, []).append(_rows(context.module, *args, **kwargs))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        apply()
    if missing := [layer for layer in layers if layer not in rows]:
        raise UserError(
            f"no inputs of {', '.join(missing)}: the forward pass does not run it as a dense or convolution layer; "
            "choose layers that it runs"
        )
    return {layer: jnp.concatenate(rows[layer], axis=1) for layer in layers}


def _path(module: nn.Module, roots: Roots) -> str | None:
    """Path of a module's parameters, or None if its network is not looked at."""
    root = module
    while isinstance(root.parent, nn.Module):
        root = root.parent
    if type(root) not in roots:
        return None
    return "/".join(part for part in (roots[type(root)], *module.path) if part)


def _rows(layer: nn.Dense | Conv, x: jax.Array) -> jax.Array:
    """[B, ...] -> float32 [B, n, in], rounded first to the dtype in which the layer computes."""
    if layer.dtype is not None:
        x = x.astype(layer.dtype)
    x = x.astype(jnp.float32)
    if isinstance(layer, Conv):
        x = _patches(x, layer)
    return jnp.reshape(x, (x.shape[0], -1, x.shape[-1]))


def _patches(x: jax.Array, layer: Conv) -> jax.Array:
    """[B, H, W, Ci] -> [B, Ho, Wo, k k Ci], in the order of the kernel's [k, k, Ci]."""
    if layer.upsample:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    sides = (layer.padding, layer.padding)
    return windows(x, (layer.kernel_size, layer.kernel_size), layer.strides, (sides, sides))
