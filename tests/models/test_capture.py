"""Captured inputs are the rows that a layer's kernel multiplies, named by the layer's path."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.models.capture import captured, matching
from jdcl_jax.models.classifier import ImageClassifier
from jdcl_jax.models.joint import ClassHead, JointNetwork
from jdcl_jax.models.layers import Conv
from jdcl_jax.models.unet import UNet

UNET = UNet(
    out_channels=3, channels=(4, 8), layers_per_block=1, attention_resolutions=(4,), heads=2, head_channels=0,
    groups=4, num_classes=5,
)  # fmt: skip


def normal(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def batch(size=2):
    labels = jnp.arange(size) % 5
    return normal(0, (size, 8, 8, 3)), jnp.array([3, 500, 70, 999][:size]), labels


def random_like(tree):
    """Random numbers in the place of all parameters, so that no kernel or bias is zero."""
    return jax.tree.map(lambda leaf: 0.3 * normal(np.prod(leaf.shape, dtype=int), leaf.shape), tree)


def init(network: JointNetwork):
    return random_like(jax.eval_shape(lambda: network.init(jax.random.key(1), (8, 8, 3))))


def outputs_by_flax(params, *args):
    """Layer -> output, by Flax's own means."""
    call = functools.partial(UNET.apply, capture_intermediates=True, mutable=["intermediates"])
    _, sown = jax.jit(call)({"params": params}, *args)
    leaves = jax.tree_util.tree_flatten_with_path(sown["intermediates"])[0]
    return {"/".join(step.key for step in path[:-2]): leaf for path, leaf in leaves}


def at(params, layer):
    for step in layer.split("/"):
        params = params[step]
    return params


def product(rows, layer):
    """Rows @ kernel + bias in float64, [B, n, out]."""
    kernel = np.asarray(layer["kernel"], np.float64)
    return np.asarray(rows, np.float64) @ kernel.reshape(-1, kernel.shape[-1]) + layer.get("bias", 0.0)


# -- which rows


def test_rows_times_kernel_are_the_outputs_of_every_layer_of_a_unet():
    params = init(JointNetwork(UNET))
    layers = matching(params, "*")
    assert len(layers) == 51
    call = jax.jit(lambda params, *args: captured(lambda: UNET.apply({"params": params}, *args), layers, {UNet: ""}))
    found, outputs = call(params, *batch()), outputs_by_flax(params, *batch())
    assert sorted(found) == sorted(layers)
    for layer, rows in found.items():
        wanted = np.asarray(outputs[layer]).reshape(2, -1, outputs[layer].shape[-1])
        np.testing.assert_allclose(product(rows, at(params, layer)), wanted, atol=2e-5, err_msg=layer)
    shapes = {layer: found[layer].shape for layer in ("conv_in", "time2", "down0_sample", "up1_sample")}
    assert shapes == {
        "conv_in": (2, 8 * 8, 9 * 3),
        "time2": (2, 1, 16),
        "down0_sample": (2, 4 * 4, 9 * 4),
        "up1_sample": (2, 8 * 8, 9 * 8),
    }
    assert found["mid_attention/key"].shape == (2, 4 * 4, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "strides": 1, "padding": 1},
        {"kernel_size": 3, "strides": 2, "padding": 1},
        {"kernel_size": 3, "strides": 2, "padding": 0},
        {"kernel_size": 5, "strides": 3, "padding": 2},
        {"kernel_size": 1, "strides": 1, "padding": 0, "use_bias": False},
        {"upsample": True},
    ],
)
@pytest.mark.parametrize("size", [(5, 8), (6, 7)])
def test_patches_of_a_convolution(options, size):
    layer, x = Conv(features=4, **options), normal(0, (2, *size, 3))
    params = random_like(jax.eval_shape(layer.init, jax.random.key(0), x)["params"])
    rows = captured(lambda: layer.apply({"params": params}, x), ["image/conv"], {Conv: "image/conv"})["image/conv"]
    wanted = layer.apply({"params": params}, x)
    np.testing.assert_allclose(product(rows, params), wanted.reshape(2, -1, 4), atol=1e-5)


class Twice(nn.Module):
    """One layer for two inputs, the second with more positions."""

    @nn.compact
    def __call__(self, a, b):
        shared = nn.Dense(2, name="shared")
        return shared(a).sum() + shared(b).sum()


def test_rows_of_several_calls_stand_behind_each_other():
    network, a, b = Twice(), normal(0, (3, 1, 4)), normal(1, (3, 2, 2, 4))
    variables = network.init(jax.random.key(0), a, b)

    def both():
        network.apply(variables, a, b)
        network.apply(variables, 10 * a, b)

    rows = captured(both, ["shared"], {Twice: ""})["shared"]
    b = b.reshape(3, 4, 4)
    np.testing.assert_array_equal(rows, np.concatenate([a, b, 10 * a, b], axis=1))


def test_examples_are_kept_apart():
    params = init(JointNetwork(UNET))
    layers = matching(params, "*attention*/value,up1_sample,time2")
    x, t, labels = batch(4)

    @jax.jit
    def rows(*args):
        return captured(lambda: UNET.apply({"params": params}, *args), layers, {UNet: ""})

    whole, alone = rows(x, t, labels), rows(x[2:3], t[2:3], labels[2:3])
    for layer in layers:
        np.testing.assert_allclose(whole[layer][2:3], alone[layer], atol=1e-4, err_msg=layer)
        assert np.abs(whole[layer][2] - whole[layer][1]).max() > 0.01


@pytest.mark.parametrize("layer", [nn.Dense(3, dtype=jnp.bfloat16), Conv(3, 1, padding=0, dtype=jnp.bfloat16)])
def test_rows_are_rounded_as_the_layer_rounds_its_input(layer):
    x = normal(0, (2, 4, 4, 3))
    params = layer.init(jax.random.key(0), x)["params"]
    rows = captured(lambda: layer.apply({"params": params}, x), [""], {type(layer): ""})[""]
    assert rows.dtype == jnp.float32
    wanted = x.astype(jnp.bfloat16).astype(np.float32).reshape(2, 16, 3)
    np.testing.assert_array_equal(rows, wanted)
    assert np.abs(wanted - x.reshape(2, 16, 3)).max() > 1e-3


# -- which networks


def test_layers_of_several_networks_have_their_paths():
    network = JointNetwork(UNET, ClassHead(5, hidden=6))
    params, images = init(network), batch()[0]
    layers = ["unet/conv_in", "head/hidden", "head/logits"]

    @jax.jit
    def call(params):
        rows = captured(lambda: network.classify(params, images), layers, {UNet: "unet", ClassHead: "head"})
        return rows, network.classify(params, images), network.pooled(params, images)

    rows, logits, pooled = call(params)
    np.testing.assert_allclose(product(rows["head/logits"], params["head"]["logits"])[:, 0], logits, atol=1e-5)
    np.testing.assert_array_equal(rows["head/hidden"][:, 0], pooled)
    np.testing.assert_array_equal(rows["unet/conv_in"][:, 9, 12:15], images[:, 1, 1])  # the middle of a window


def test_a_network_that_is_not_named_is_not_looked_at():
    network = JointNetwork(UNET, ClassHead(5, hidden=6))
    params, images = init(network), batch()[0]
    call = functools.partial(captured, lambda: network.classify(params, images), ["unet/conv_in"])
    assert jax.eval_shape(lambda: call({UNet: "unet"}))["unet/conv_in"].shape == (2, 64, 27)
    with pytest.raises(UserError, match="no inputs of unet/conv_in: the forward pass does not run it"):
        jax.eval_shape(lambda: call({ClassHead: "head"}))


def test_two_networks_of_one_class_are_not_mixed_up():
    network = JointNetwork(UNET, ClassHead(5, hidden=6), separate=True)
    params, (x, t, labels) = init(network), batch()
    roots = {UNet: "encoder"}

    def both(params):
        network.classify(params, x)
        network.denoise(params, x, t, labels, None)

    with pytest.raises(ValueError, match="'encoder/conv_in' was run with two kernels"):
        jax.eval_shape(lambda params: captured(lambda: both(params), ["encoder/conv_in"], roots), params)

    def twice(params):
        network.classify(params, x)
        network.classify(params, x)

    rows = jax.eval_shape(lambda params: captured(lambda: twice(params), ["encoder/conv_in"], roots), params)
    assert rows["encoder/conv_in"].shape == (2, 128, 27)


@pytest.mark.parametrize("layer", ["stage_1", "features_norm", "nowhere/key"])
def test_what_is_no_such_layer_is_refused(layer):
    network, images = ImageClassifier(3, channels=(4,), features=4), normal(0, (2, 8, 8, 1))
    variables = network.init(jax.random.key(0), images)
    call = lambda layers: captured(lambda: network.apply(variables, images), layers, {ImageClassifier: ""})  # noqa: E731
    assert list(call(["features"])) == ["features"]
    with pytest.raises(UserError, match=f"no inputs of {layer}: the forward pass does not run it as a dense or conv"):
        call(["features", layer])


# -- which layers


def test_patterns_choose_layers_in_the_order_of_the_tree():
    params = {
        "unet": {
            "mid": {"cross": {"key": {"kernel": 0}, "value": {"kernel": 0, "bias": 0}}, "norm": {"scale": 0}},
            "conv_in": {"kernel": 0},
        },
        "head": {"logits": {"kernel": 0}, "key": {"embedding": 0}},
    }
    assert matching(params, "unet/mid/cross/value, */cross/*") == ["unet/mid/cross/key", "unet/mid/cross/value"]
    assert matching(params, "head/*,unet/con?_in") == ["unet/conv_in", "head/logits"]
    assert matching(params, "*") == ["unet/mid/cross/key", "unet/mid/cross/value", "unet/conv_in", "head/logits"]


@pytest.mark.parametrize(
    ("patterns", "pattern", "close"),
    [
        ("*/key,*/cross/key", "\\*/cross/key", "mid_attention/key"),
        ("conv_in,mid_attention/keys", "mid_attention/keys", "mid_attention/key"),
        ("Conv_in", "Conv_in", "conv_in"),
        ("conv_in,", "", ""),
    ],
)
def test_a_pattern_without_a_layer_is_refused_with_what_was_meant(patterns, pattern, close):
    with pytest.raises(UserError, match=f"no layer matches '{pattern}'; .* such as .*{close}"):
        matching(init(JointNetwork(UNET)), patterns)
