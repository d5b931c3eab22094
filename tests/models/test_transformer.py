"""The transformer block is its formulas, written down in float64, and names its parameters for others to find."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jdcl_jax.models.transformer import TransformerBlock

GROUPS, HEADS, CHANNELS, WIDTH = 2, 4, 8, 5
SHAPE = (2, 3, 2, CHANNELS)
BLOCK = TransformerBlock(GROUPS, HEADS, jnp.float32)


def arrays(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(tokens)
    return random.standard_normal(SHAPE, np.float32), random.standard_normal((2, tokens, WIDTH), np.float32)


def random_params(block: TransformerBlock = BLOCK) -> dict:
    """{"cross/key/kernel": array}, none of them zero."""
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), *arrays(2)))["params"]
    random = np.random.default_rng(1)
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    params = {name: 0.5 * random.standard_normal(leaf.shape) for name, leaf in flat.items()}
    return {name: (leaf + name.endswith("scale")).astype(np.float32) for name, leaf in params.items()}


def tree(flat: dict) -> dict:
    return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


def normalised(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def by_hand(flat: dict, image: np.ndarray, context: np.ndarray) -> np.ndarray:
    """In float64, one head of one example at a time."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in flat.items()}
    x, context = np.asarray(image, np.float64).reshape(2, 6, CHANNELS), np.asarray(context, np.float64)

    def dense(name, h):
        return h @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def layer_norm(name, h):
        return normalised(h, (2,), 1e-5) * p[f"{name}/scale"] + p[f"{name}/bias"]

    def attend(name, h, tokens):
        out, size = np.zeros_like(h), CHANNELS // HEADS
        for example in range(2):
            for head in range(HEADS):
                mine = slice(head * size, (head + 1) * size)
                query = h[example] @ p[f"{name}/query/kernel"][:, mine]
                key, value = (tokens[example] @ p[f"{name}/{part}/kernel"][:, mine] for part in ("key", "value"))
                weights = np.exp(query @ key.T / np.sqrt(size))
                out[example, :, mine] = weights / weights.sum(1, keepdims=True) @ value
        return dense(f"{name}/out", out)

    h = normalised(x.reshape(2, 6, GROUPS, -1), (1, 3), 1e-6).reshape(x.shape)
    h = dense("proj_in", h * p["norm/scale"] + p["norm/bias"])
    h = h + attend("own", layer_norm("own_norm", h), layer_norm("own_norm", h))
    h = h + attend("cross", layer_norm("cross_norm", h), context)
    hidden, gate = np.split(dense("gated", layer_norm("gated_norm", h)), 2, axis=2)
    h = h + dense("narrow", hidden * gate * (1 + erf(gate / np.sqrt(2))) / 2)
    return (x + dense("proj_out", h)).reshape(SHAPE)


@pytest.mark.parametrize("form", ["plain", "chunked"])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_the_block_is_its_formulas(tokens: int, form: str) -> None:
    image, context = arrays(tokens)
    expected = by_hand(random_params(), image, context)
    traced = jax.jit(BLOCK.clone(form=form).apply).trace(tree(random_params()), image, context)
    assert str(traced.jaxpr).count("name=_chunked") == (form == "chunked") * (1 + (tokens > 1))
    np.testing.assert_allclose(traced.lower().compile()(tree(random_params()), image, context), expected, atol=2e-5)


def test_small_values_meet_the_eps_of_each_norm() -> None:
    """1e-6 of the groups' against a variance of 1e-6, 1e-5 of the layers' against some 1e-5."""
    params, (image, context) = random_params(), arrays(2)
    for name in ("proj_in/kernel", "proj_in/bias", "own/out/kernel", "own/out/bias", "cross/out/kernel"):
        params[name] = 5e-3 * params[name]
    params["cross/out/bias"] = 0 * params["cross/out/bias"]
    expected = by_hand(params, 1e-3 * image, context)
    actual = jax.jit(BLOCK.apply)(tree(params), 1e-3 * image, context)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_a_mean_of_a_thousand_deviations_leaves_the_layer_norms_their_digits() -> None:
    params, (image, context) = random_params(), arrays(2)
    params["proj_in/bias"] = params["proj_in/bias"] + np.float32(1000)
    expected = by_hand(params, image, context)
    actual = jax.jit(BLOCK.apply)(tree(params), image, context)
    np.testing.assert_allclose(actual, expected, atol=5e-3)


def test_parameters_are_found_by_their_names_and_only_keys_queries_and_values_have_no_bias() -> None:
    shapes = {name: leaf.shape for name, leaf in random_params().items()}
    pair = {"scale": (CHANNELS,), "bias": (CHANNELS,)}
    expected = {
        f"{norm}/{leaf}": s for norm in ("norm", "own_norm", "cross_norm", "gated_norm") for leaf, s in pair.items()
    }
    for attended, width in (("own", CHANNELS), ("cross", WIDTH)):
        expected |= {f"{attended}/query/kernel": (CHANNELS, CHANNELS)}
        expected |= {f"{attended}/{name}/kernel": (width, CHANNELS) for name in ("key", "value")}
    layers = {
        "proj_in": (8, 8),
        "own/out": (8, 8),
        "cross/out": (8, 8),
        "gated": (8, 64),
        "narrow": (32, 8),
        "proj_out": (8, 8),
    }
    expected |= {f"{name}/kernel": shape for name, shape in layers.items()}
    expected |= {f"{name}/bias": shape[1:] for name, shape in layers.items()}
    assert shapes == expected


def test_one_token_gives_queries_and_keys_no_gradient_at_all_and_two_give_them_one() -> None:
    """Of the map of one pixel, too, which is alone with itself."""

    def gradients(image: np.ndarray, context: np.ndarray) -> dict:
        def loss(params):
            return jnp.sum(jnp.sin(BLOCK.apply(params, image, context)))

        return flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(tree(random_params()))["params"], sep="/")

    def reached(gradient: dict) -> set[str]:
        names = ("own/query", "own/key", "own/value", "cross/query", "cross/key", "cross/value")
        return {name for name in names if np.any(gradient[f"{name}/kernel"] != 0)}

    image, context = arrays(2)
    values = {"own/value", "cross/value"}
    assert reached(gradients(image, context)) == values | {"own/query", "own/key", "cross/query", "cross/key"}
    assert reached(gradients(image, context[:, :1])) == values | {"own/query", "own/key"}
    assert reached(gradients(image[:, :1, :1], context)) == values | {"cross/query", "cross/key"}


def test_half_precision_keeps_its_norms_and_softmax_in_float32() -> None:
    half = TransformerBlock(GROUPS, HEADS, jnp.bfloat16)
    image, context = (jnp.asarray(x, jnp.bfloat16) for x in arrays(2))
    out, seen = half.apply(tree(random_params()), image, context, capture_intermediates=True)
    assert out.dtype == jnp.bfloat16
    layers = seen["intermediates"]
    for norm in ("own_norm", "cross_norm", "gated_norm"):
        assert layers[norm]["__call__"][0].dtype == jnp.float32
    for dense in ("proj_in", "own", "cross", "gated", "narrow", "proj_out"):
        assert layers[dense]["__call__"][0].dtype == jnp.bfloat16
    for attended in ("own", "cross"):
        for dense in ("query", "key", "value", "out"):
            assert layers[attended][dense]["__call__"][0].dtype == jnp.bfloat16
    expected = by_hand(random_params(), *(np.asarray(x, np.float32) for x in (image, context)))
    error = np.asarray(out, np.float64) - expected
    assert 0 < np.abs(error).max() < 0.03 * np.abs(expected).max()
