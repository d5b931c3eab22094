"""Attention over pixels, stated so that every backend compiles it well."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Scores computed at a time, 1 MiB of float32: few enough to stay in a core's own cache, many enough
# to be worth the loop [ours, measured].
CHUNK_SCORES = 2**18


def attention(query: jax.Array, key: jax.Array, value: jax.Array, *, form: str | None = None) -> jax.Array:
    """softmax(query key^T / sqrt(d)) value, for every example and head; softmax in float32.

    Args:
      query: [B, Q, heads, d].
      key: [B, K, heads, d].
      value: [B, K, heads, d].
      form: "plain" writes down the formula; "chunked" computes it for a few examples' heads at a
        time, whose scores stay in the cache, and computes the scores again for the gradients
        instead of keeping them; "fused" is cuDNN's kernel, for NVIDIA GPUs, bfloat16 and float16
        (not measured yet: `benchmarks/attention.py` does). `None` takes "chunked" on CPU and
        "plain" elsewhere, decided when the caller is traced. Neither the chunked nor the fused form
        has a forward-mode derivative (`jax.jvp`).

    Returns:
      [B, Q, heads, d], of the dtype of `value`.

    Raises:
      ValueError: unknown form; the fused one for another dtype.
    """
    if form is None:
        form = "chunked" if jax.default_backend() == "cpu" else "plain"
    if form == "plain":
        return _plain(query, key, value)
    if form == "fused":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    if form != "chunked":
        raise ValueError(f"attention has the forms 'plain', 'chunked' and 'fused', not {form!r}")
    batch, _, heads, width = query.shape

    def rows(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x, 1, 2).astype(jnp.float32)
        return jnp.reshape(x, (batch * heads, x.shape[2], width))

    out = _chunked(rows(query) / math.sqrt(width), rows(key), rows(value))
    out = jnp.reshape(out, (batch, heads, -1, width))
    return jnp.swapaxes(out, 1, 2).astype(value.dtype)


def _plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)


@jax.custom_vjp
def _chunked(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The same for [M, Q, d], [M, K, d] and [M, K, d], with the scaling left out."""
    return _chunked_forward(query, key, value)[0]


def _chunked_forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, log_sum = _map_chunks(_values, query.shape[1] * key.shape[1], (query, key, value))
    return out, (query, key, value, out, log_sum)


def _chunked_backward(residuals: tuple[jax.Array, ...], dout: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key = residuals[:2]
    return _map_chunks(_gradients, query.shape[1] * key.shape[1], (*residuals, dout))


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _values(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Results [M, Q, d], and each denominator's logarithm [M, Q, 1]."""
    scores = jnp.einsum("mqd,mkd->mqk", query, key)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    # A value of 1 beside the others has the sum of the weights as its result, in the same pass over them. Dividing
    # the result instead of the weights saves another.
    sums = jnp.einsum("mqk,mkd->mqd", weights, _with(value, 1.0))
    out, total = sums[..., :-1], sums[..., -1:]
    return out / total, largest + jnp.log(total)


def _with(x: jax.Array, last: jax.Array | float) -> jax.Array:
    """[..., d] -> [..., d + 1]."""
    return jnp.concatenate([x, jnp.broadcast_to(last, (*x.shape[:-1], 1))], axis=-1)


def _gradients(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    log_sum: jax.Array,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dquery, dkey and dvalue; scores and their gradients are [M, K, Q]."""
    weights = jnp.exp(jnp.einsum("mkd,mqd->mkq", key, query) - jnp.swapaxes(log_sum, 1, 2))
    # The sum of weights times their gradients over k is that of out times dout over d.
    mean = jnp.sum(dout * out, axis=-1, keepdims=True)
    dscores = weights * jnp.einsum("mkd,mqd->mkq", _with(value, 1.0), _with(dout, -mean))
    # The barrier keeps XLA from moving the transposition into the product, which slows it down.
    dquery = lax.optimization_barrier(jnp.einsum("mkd,mkq->mdq", key, dscores))
    dkey = jnp.einsum("mkq,mqd->mkd", dscores, query)
    dvalue = jnp.einsum("mkq,mqd->mkd", weights, dout)
    return jnp.swapaxes(dquery, 1, 2), dkey, dvalue


def _map_chunks(function: Any, scores: int, arrays: tuple[jax.Array, ...]) -> Any:
    """Applies `function` to as many rows at a time as fit into the cache and divide them all."""
    rows = arrays[0].shape[0]
    most = min(rows, max(1, CHUNK_SCORES // scores))
    size = next(size for size in range(most, 0, -1) if rows % size == 0)
    if size == rows:
        return function(*arrays)
    chunks = tuple(jnp.reshape(x, (rows // size, size, *x.shape[1:])) for x in arrays)
    results = lax.map(lambda chunk: function(*chunk), chunks)
    return jax.tree.map(lambda y: jnp.reshape(y, (rows, *y.shape[2:])), results)
