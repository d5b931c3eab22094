"""The UNet: published sizes, and that every argument does what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.keys import example_keys
from jdcl_jax.models.unet import UNet, timestep_embedding


def size(unet: UNet, shape: tuple[int, int, int]) -> int:
    labels = jnp.zeros((1,), jnp.int32) if unet.num_classes else None
    init = jax.eval_shape(
        lambda: unet.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32), labels)
    )
    return sum(leaf.size for leaf in jax.tree.leaves(init))


def test_networks_of_generative_distillation_have_their_published_sizes() -> None:
    fashion_mnist = UNet(1, (64, 128, 256, 512), layers_per_block=1, attention_resolutions=(4,))
    cifar10 = UNet(3, (128, 256, 256, 256), layers_per_block=2, attention_resolutions=(16,))
    assert size(fashion_mnist, (32, 32, 1)) == 42_855_873
    assert size(cifar10, (32, 32, 3)) == 35_746_307


GPPDM = UNet(3, (128, 128, 256, 256, 512, 512), layers_per_block=2, context_resolutions=(4,))


def test_the_network_with_cross_attention_has_the_size_that_diffusers_gives_it() -> None:
    """At 4x4 and, in the middle, at 2x2; the second number has a linear layer with a bias before the context."""

    def init():
        x, context = jnp.zeros((1, 64, 64, 6)), jnp.zeros((1, 1, 768))
        return GPPDM.init(jax.random.key(0), x, jnp.zeros((1,), jnp.int32), context=context)

    number = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init)))
    assert number == 143_607_171
    assert number + 768 * 768 + 768 == 144_197_763


TINY = UNet(1, (8, 16), layers_per_block=1, attention_resolutions=(4,), groups=4)


@functools.partial(jax.jit, static_argnums=0)
def apply(unet: UNet, params: dict, *arguments: jax.Array | None) -> jax.Array:
    return unet.apply(params, *arguments)


def inputs(batch: int) -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(jax.random.key(1), (batch, 8, 8, 1)), jnp.arange(batch) * 100


def random_params(unet: UNet, *more: jax.Array) -> dict:
    x, t = inputs(2)
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), x, t, *more))
    keys = iter(jax.random.split(jax.random.key(2), 500))
    return jax.tree.map(lambda s: 0.3 * jax.random.normal(next(keys), s.shape), shapes)


def test_examples_do_not_see_each_other() -> None:
    params = random_params(TINY)
    x, t = inputs(4)
    whole = apply(TINY, params, x, t)
    assert whole.shape == x.shape
    np.testing.assert_allclose(apply(TINY, params, x[1:3], t[1:3]), whole[1:3], atol=1e-4)


def test_the_timestep_matters() -> None:
    params = random_params(TINY)
    x, t = inputs(2)
    assert not np.allclose(apply(TINY, params, x, t), apply(TINY, params, x, t + 500), atol=1e-3)


def test_timestep_embedding_is_cosines_then_sines() -> None:
    got = timestep_embedding(jnp.array([3]), 4)[0]
    slow = 3 / 10_000**0.5
    np.testing.assert_allclose(got, [np.cos(3.0), np.cos(slow), np.sin(3.0), np.sin(slow)], atol=1e-6)


def test_a_conditional_network_reads_its_labels_and_has_one_for_none() -> None:
    unet = UNet(1, (8, 16), layers_per_block=1, groups=4, num_classes=3)
    x, t = inputs(2)
    params = random_params(unet, jnp.zeros(2, jnp.int32))
    outputs = [apply(unet, params, x, t, jnp.full(2, label)) for label in range(4)]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert not np.allclose(a, b, atol=1e-3)


def test_labels_go_with_classes_and_only_with_them() -> None:
    x, t = inputs(2)
    with pytest.raises(ValueError, match="labels"):
        TINY.init(jax.random.key(0), x, t, jnp.zeros(2, jnp.int32))


def test_dropout_has_one_mask_per_example_and_layer_and_needs_keys() -> None:
    unet = UNet(1, (8, 16), layers_per_block=1, groups=4, dropout=0.5)
    params = random_params(unet)
    x, t = inputs(4)
    keys = example_keys(jax.random.key(3), jnp.arange(4))
    dropped = apply(unet, params, x, t, None, keys)
    np.testing.assert_allclose(apply(unet, params, x[2:], t[2:], None, keys[2:]), dropped[2:], atol=1e-4)
    assert not np.allclose(dropped, apply(unet, params, x, t), atol=1e-3)
    assert not np.allclose(dropped, apply(unet, params, x, t, None, keys[::-1]), atol=1e-3)


def test_scale_and_shift_is_another_network_of_the_right_size() -> None:
    plain, scaled = (UNet(1, (8, 16), 1, groups=4, scale_shift=s) for s in (False, True))
    widths = [8, 16, 16, 16, 16, 16, 8, 8]  # of the eight residual blocks: down, down, middle, middle, up
    assert size(scaled, (8, 8, 1)) - size(plain, (8, 8, 1)) == sum((4 * 8 + 1) * w for w in widths)


def test_half_precision_computes_in_bfloat16_and_answers_in_float32() -> None:
    unet = UNet(1, (8, 16), layers_per_block=1, attention_resolutions=(4,), groups=4, dtype=jnp.bfloat16)
    x, t = inputs(2)
    params = random_params(TINY)
    output = apply(unet, params, x, t)
    assert output.dtype == jnp.float32
    full = apply(TINY, params, x, t)
    assert 0 < float(jnp.max(jnp.abs(output - full))) < 0.1 * float(jnp.max(jnp.abs(full)))


def test_the_bias_of_the_keys_is_never_trained() -> None:
    params = random_params(TINY)
    x, t = inputs(2)
    gradients = jax.jit(jax.grad(lambda p: jnp.sum(TINY.apply(p, x, t) ** 2)))(params)["params"]
    assert float(jnp.max(jnp.abs(gradients["mid_attention"]["key_bias"]))) == 0.0
    assert float(jnp.max(jnp.abs(gradients["mid_attention"]["query"]["bias"]))) > 0.0


# -- a context

ATTENDING = UNet(1, (8, 16), layers_per_block=1, attention_resolutions=(8,), groups=4, context_resolutions=(4,))


def tokens(batch: int, number: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(5), (batch, number, 6))


def context_params(unet: UNet) -> dict:
    x, t = inputs(2)
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), x, t, context=tokens(2)))
    generator = np.random.default_rng(2)
    return jax.tree.map(lambda s: np.asarray(0.3 * generator.standard_normal(s.shape), np.float32), shapes)


quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles in half the time


@functools.partial(quick, static_argnums=0)
def apply_with(unet: UNet, params: dict, x: jax.Array, t: jax.Array, context: jax.Array) -> jax.Array:
    return unet.apply(params, x, t, context=context)


def attentions(unet: UNet) -> set[str]:
    return {name for name in context_params(unet)["params"] if "attention" in name or "transformer" in name}


def test_transformer_blocks_stand_at_their_heights_and_in_the_middle_in_the_place_of_self_attention() -> None:
    here = {"down1_transformer0", "mid_transformer", "up1_transformer0", "up1_transformer1"}
    there = {"down0_attention0", "up0_attention0", "up0_attention1"}
    assert attentions(ATTENDING) == here | there
    assert attentions(ATTENDING.clone(attention_resolutions=())) == here
    assert attentions(ATTENDING.clone(attention_resolutions=(4, 8))) == here | there
    assert attentions(ATTENDING.clone(context_resolutions=(1,))) == {"mid_transformer"} | there


def test_a_context_goes_with_context_resolutions_and_only_with_them() -> None:
    (x, t), key = inputs(2), jax.random.key(0)
    for method in (None, UNet.features):
        with pytest.raises(ValueError, match="a context goes with context_resolutions, and only with them"):
            TINY.init(key, x, t, context=tokens(2), method=method)
        with pytest.raises(ValueError, match="a context goes with context_resolutions, and only with them"):
            ATTENDING.init(key, x, t, method=method)


def test_each_example_reads_its_own_tokens() -> None:
    params, (x, t), context = context_params(ATTENDING), inputs(4), tokens(4)
    whole = apply_with(ATTENDING, params, x, t, context)
    assert whole.shape == x.shape
    np.testing.assert_allclose(apply_with(ATTENDING, params, x[1:3], t[1:3], context[1:3]), whole[1:3], atol=1e-4)
    other = apply_with(ATTENDING, params, x, t, context.at[2, 1].add(1.0))
    np.testing.assert_allclose(other[jnp.array([0, 1, 3])], whole[jnp.array([0, 1, 3])], atol=1e-4)
    assert np.abs(other[2] - whole[2]).max() > 1e-2


def test_each_transformer_block_alone_reads_the_context() -> None:
    """Encoder, middle and decoder: silence the values of all others, and the tokens still matter."""
    x, t = inputs(2)

    def silenced(kept: str) -> dict:
        def one(path, leaf):
            names = [step.key for step in path]
            return leaf * (names[1] == kept or names[2:4] != ["cross", "value"])

        return jax.tree_util.tree_map_with_path(one, context_params(ATTENDING))

    for kept in ("down1_transformer0", "mid_transformer", "up1_transformer0", "up1_transformer1", "none"):
        out = [apply_with(ATTENDING, silenced(kept), x, t, sign * tokens(2)) for sign in (1, -1)]
        assert (float(np.abs(out[0] - out[1]).max()) > 1e-3) == (kept != "none")


def test_features_read_the_context_as_a_whole_pass_does() -> None:
    params, (x, t), context = context_params(ATTENDING), inputs(2), tokens(2)

    @quick
    def both(context):
        seen = []

        def edit(features):
            seen.extend(features)
            return features

        ATTENDING.apply(params, x, t, edit=edit, context=context)
        return ATTENDING.apply(params, x, t, context=context, method=UNet.features), seen

    features, seen = both(context)
    for actual, expected in zip(features, seen, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    other, _ = both(-context)
    assert [bool(np.abs(a - b).max() > 1e-3) for a, b in zip(features, other, strict=True)] == [False] * 3 + [True] * 2


def test_half_precision_reads_a_context_too() -> None:
    params, (x, t) = context_params(ATTENDING), inputs(2)
    half, full = (
        apply_with(unet, params, x, t, tokens(2)) for unet in (ATTENDING.clone(dtype=jnp.bfloat16), ATTENDING)
    )
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.max(jnp.abs(half - full))) < 0.1 * float(jnp.max(jnp.abs(full)))
