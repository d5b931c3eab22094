"""Floating-point operations of a traced function: products of matrices and convolutions, with the bodies of loops
counted as often as they run (XLA's own count takes them once).
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of one call; elementwise work is left out, as in published counts."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Layers are traced as they are written down, without what suits a CPU: a model's operations are the same there."""
    with mock.patch.object(jax, "default_backend", lambda: "any accelerator"):
        yield


def _count(jaxpr: Any) -> float:
    return sum(_operations(equation) for equation in jaxpr.eqns)


def _operations(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_count(jaxpr) for jaxpr in _inner(equation.params)]
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "while" and sum(inner):
        raise ValueError("products in a loop of unknown length can't be counted")
    if name == "cond":
        return max(inner)
    return sum(inner)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for name, value in params.items():
        if name.startswith(("fwd", "bwd", "jvp")):  # of custom derivatives: what is not run here
            continue
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr"):
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item


def _dot(equation: Any) -> float:
    left, right = (variable.aval.shape for variable in equation.invars)
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    free = [n for i, n in enumerate(left) if i not in contracted and i not in batched]
    return 2.0 * math.prod(free) * math.prod(right)


def _convolution(equation: Any) -> float:
    """A zero that dilates the input is not multiplied."""
    kernel = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    taps = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    dilation = math.prod(equation.params["lhs_dilation"])
    groups = equation.params["batch_group_count"]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps / dilation / groups
