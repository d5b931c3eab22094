"""Attention is its definition in both forms, with the same gradients, in chunks of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.models import attention as module
from jdcl_jax.models.attention import attention


def inputs(*, batch=3, queries=5, keys=5, heads=2, width=4, scale=1.0):
    random = np.random.default_rng(0)

    def normal(length):
        shape = (batch, length, heads, width)
        return (scale * random.standard_normal(shape)).astype(np.float32)

    return normal(queries), normal(keys), normal(keys)


def definition(query, key, value):
    """In float64, one head of one example at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((*query.shape[:3], value.shape[3]))
    for b in range(query.shape[0]):
        for h in range(query.shape[2]):
            scores = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[3])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[b, :, h] = weights / weights.sum(1, keepdims=True) @ value[b, :, h]
    return out


@pytest.fixture(params=[1, 50, 2**19], ids=["chunks of 1", "chunks of 2", "no chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SCORES", request.param)


@pytest.mark.parametrize("keys", [5, 7])
def test_chunked_attention_is_its_definition(chunk, keys):
    arrays = inputs(keys=keys)
    actual = jax.jit(lambda *a: attention(*a, form="chunked"))(*arrays)
    np.testing.assert_allclose(actual, definition(*arrays), atol=1e-6)


def test_plain_attention_is_its_definition():
    arrays = inputs(keys=7)
    actual = attention(*arrays, form="plain")
    np.testing.assert_allclose(actual, definition(*arrays), atol=1e-6)


@pytest.mark.parametrize("keys", [5, 7])
def test_gradients_agree(chunk, keys):
    arrays = inputs(keys=keys)
    weights = np.random.default_rng(1).standard_normal(arrays[0].shape).astype(np.float32)

    def gradients(form):
        def loss(*arrays):
            return jnp.sum(weights * attention(*arrays, form=form))

        return jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)

    for actual, expected in zip(gradients("chunked"), gradients("plain"), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_fused_attention_is_its_definition_and_asks_for_the_kernel(monkeypatch):
    """The kernel itself needs a GPU; the layout and the scale that it is asked for do not."""
    original, asked = jax.nn.dot_product_attention, []

    def without_gpu(*arrays, implementation):
        asked.append(implementation)
        return original(*arrays, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", without_gpu)
    arrays = inputs(keys=7)
    np.testing.assert_allclose(attention(*arrays, form="fused"), definition(*arrays), atol=1e-6)
    assert asked == ["cudnn"]


def test_large_scores_stay_finite():
    arrays = inputs(scale=100.0)
    actual = attention(*arrays, form="chunked")
    np.testing.assert_allclose(actual, definition(*arrays), rtol=1e-3, atol=1e-3)


def test_bfloat16_keeps_its_dtype_and_a_float32_softmax():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in inputs(queries=64, keys=64))
    for form in ("plain", "chunked"):
        out = attention(query, key, value, form=form)
        assert out.dtype == jnp.bfloat16
        expected = definition(*(x.astype(jnp.float32) for x in (query, key, value)))
        np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.02)


@pytest.mark.parametrize("backend,loops", [("cpu", True), ("gpu", False), ("tpu", False)])
def test_the_backend_chooses_the_form(monkeypatch, backend, loops):
    monkeypatch.setattr(module, "CHUNK_SCORES", 50)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    jaxpr = str(jax.make_jaxpr(lambda *a: attention(*a))(*inputs()))
    assert ("custom_vjp" in jaxpr) == ("scan[" in jaxpr) == loops


def test_no_array_of_all_scores_is_kept_for_the_gradients(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SCORES", 50)
    arrays = inputs()
    _, vjp = jax.vjp(lambda *a: attention(*a, form="chunked"), *arrays)
    largest = max(leaf.size for leaf in jax.tree.leaves(vjp))
    assert largest == arrays[0].size < 3 * 2 * 5 * 5


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'plain', 'chunked' and 'fused', not 'flash'"):
        attention(*inputs(), form="flash")
